/* Norms, gates and rotary positions: the inner loops. */
#include "elementwise.h"
#include "vec.h"

/* 1 / sqrt(mean + eps); the compiler's own square root is exact. */
static float reciprocal_root(float sum, const peg_norm *norm) { return 1.0f / __builtin_sqrtf(sum / (float)norm->size + norm->eps); }

PEG_INLINE float squares(const int type, const void *x, int64_t size) {
    vf a = vf_zero(), b = vf_zero();
    int64_t i = 0;
    for (; i + 2 * VL <= size; i += 2 * VL) {
        vf p = vf_load_as(type, at(type, x, i)), q = vf_load_as(type, at(type, x, i + VL));
        a = vf_fma(p, p, a);
        b = vf_fma(q, q, b);
    }
    for (; i < size; i += VL) {
        vf p = i + VL <= size ? vf_load_as(type, at(type, x, i)) : vf_load_part(type, at(type, x, i), (int)(size - i));
        a = vf_fma(p, p, a);
    }
    return vf_sum(vf_add(a, b));
}

PEG_INLINE void scale(const int type, const void *x, const peg_norm *norm, float factor, void *out) {
    const void *weight = norm->weight;
    vf f = vf_set1(factor), offset = vf_set1(norm->offset);
    int64_t size = norm->size;
    int64_t i = 0;
    for (; i + VL <= size; i += VL) {
        vf y = vf_mul(vf_mul(vf_load_as(type, at(type, x, i)), f), vf_add(offset, vf_load_as(type, at(type, weight, i))));
        vf_store_as(type, at_out(type, out, i), y);
    }
    if (i < size) {
        int rest = (int)(size - i);
        vf y = vf_mul(vf_mul(vf_load_part(type, at(type, x, i), rest), f), vf_add(offset, vf_load_part(type, at(type, weight, i), rest)));
        vf_store_part(type, at_out(type, out, i), y, rest);
    }
}

PEG_INLINE void add(const int type, const void *x, const void *residual, int64_t size, void *total) {
    int64_t i = 0;
    for (; i + VL <= size; i += VL) {
        vf y = vf_add(vf_load_as(type, at(type, x, i)), vf_load_as(type, at(type, residual, i)));
        vf_store_as(type, at_out(type, total, i), y);
    }
    if (i < size) {
        int rest = (int)(size - i);
        vf y = vf_add(vf_load_part(type, at(type, x, i), rest), vf_load_part(type, at(type, residual, i), rest));
        vf_store_part(type, at_out(type, total, i), y, rest);
    }
}

void PEG_NAME(peg_rms_row)(const peg_norm *norm, const void *x, void *out) {
#define RMS(type) scale(type, x, norm, reciprocal_root(squares(type, x, norm->size), norm), out)
    WITH_TYPE(norm->type, RMS)
}

void PEG_NAME(peg_add_rms_row)(const peg_norm *norm, const void *x, const void *residual, void *out, void *total) {
#define ADD(type) add(type, x, residual, norm->size, total)
    WITH_TYPE(norm->type, ADD)
    PEG_NAME(peg_rms_row)(norm, total, out);
}

/* The tanh of GELU is a logistic function of twice its argument: x / 2 * (1 + tanh(u)) = x / (1 + exp(-2 u)). */
PEG_INLINE vf gated(const peg_activation activation, vf gate, vf up) {
    vf minus = vf_sub(vf_zero(), gate);
    if (activation == PEG_GELU_TANH) {
        vf cubic = vf_fma(vf_mul(gate, gate), vf_set1(2 * 0.7978845608028654f * 0.044715f), vf_set1(2 * 0.7978845608028654f));
        minus = vf_mul(minus, cubic);
    }
    return vf_mul(vf_div(gate, vf_add(vf_set1(1.0f), vf_exp(minus))), up);
}

PEG_INLINE void gate_row(const peg_activation kind, const int type, const void *gate, const void *up, int64_t width, void *out) {
    int64_t i = 0;
    for (; i + VL <= width; i += VL)
        vf_store_as(type, at_out(type, out, i), gated(kind, vf_load_as(type, at(type, gate, i)), vf_load_as(type, at(type, up, i))));
    if (i < width) {
        int rest = (int)(width - i);
        vf y = gated(kind, vf_load_part(type, at(type, gate, i), rest), vf_load_part(type, at(type, up, i), rest));
        vf_store_part(type, at_out(type, out, i), y, rest);
    }
}

void PEG_NAME(peg_gated_row)(peg_activation activation, int type, const void *gate, const void *up, int64_t width, void *out) {
#define SILU(type) gate_row(PEG_SILU, type, gate, up, width, out)
#define GELU(type) gate_row(PEG_GELU_TANH, type, gate, up, width, out)
    if (activation == PEG_SILU) {
        WITH_TYPE(type, SILU)
    } else {
        WITH_TYPE(type, GELU)
    }
}

PEG_INLINE void turn(const int type, const void *x, const void *cos, const void *sin, int64_t half, void *out) {
    int64_t i = 0;
    for (; i < half; i += VL) {
        int rest = half - i < VL ? (int)(half - i) : VL;
        const void *p[6] = {at(type, x, i),       at(type, x, i + half),   at(type, cos, i),
                            at(type, cos, i + half), at(type, sin, i), at(type, sin, i + half)};
        vf v[6];
        for (int j = 0; j < 6; j++) v[j] = rest == VL ? vf_load_as(type, p[j]) : vf_load_part(type, p[j], rest);
        vf first = vf_fma(v[0], v[2], vf_mul(v[1], v[4])), second = vf_fma(v[1], v[3], vf_mul(v[0], v[5]));
        if (rest == VL) {
            vf_store_as(type, at_out(type, out, i), first);
            vf_store_as(type, at_out(type, out, i + half), second);
        } else {
            vf_store_part(type, at_out(type, out, i), first, rest);
            vf_store_part(type, at_out(type, out, i + half), second, rest);
        }
    }
}

void PEG_NAME(peg_rotary_heads)(int type, const void *x, int64_t heads, int64_t dim, int64_t width, const void *cos, const void *sin, void *out) {
#define TURN(type)                                                                                                         \
    for (int64_t j = 0; j < heads; j++) {                                                                                  \
        turn(type, at(type, x, j * dim), cos, sin, width / 2, at_out(type, out, j * dim));                                 \
        memcpy(at_out(type, out, j * dim + width), at(type, x, j * dim + width), (size_t)(dim - width) * size_of(type));   \
    }
    WITH_TYPE(type, TURN)
}
