/* Backward passes and losses: the inner loops. */
#include "training.h"
#include "vec.h"

#include <math.h>

PEG_INLINE vf load(const int type, const void *p, int64_t i, int64_t size) {
    return i + VL <= size ? vf_load_as(type, at(type, p, i)) : vf_load_part(type, at(type, p, i), (int)(size - i));
}

PEG_INLINE void store(const int type, void *p, int64_t i, int64_t size, vf x) {
    if (i + VL <= size) vf_store_as(type, at_out(type, p, i), x);
    else vf_store_part(type, at_out(type, p, i), x, (int)(size - i));
}

/* With n = x / root, y = n * (offset + weight), u = grad * (offset + weight): d_x = (u - n * mean(u n)) / root. */
PEG_INLINE void norm_row(const int type, const peg_norm *norm, const void *grad, const void *grad_total, const void *x, void *d_x, float *d_weight) {
    int64_t size = norm->size;
    vf squares = vf_zero(), along = vf_zero(), offset = vf_set1(norm->offset);
    for (int64_t i = 0; i < size; i += VL) {
        vf v = load(type, x, i, size), u = vf_mul(load(type, grad, i, size), vf_add(offset, load(type, norm->weight, i, size)));
        squares = vf_fma(v, v, squares);
        along = vf_fma(u, v, along);
    }
    float scale = 1.0f / sqrtf(vf_sum(squares) / (float)size + norm->eps);
    /* Of x itself: along holds sum(u x), and n = x * scale. */
    vf s = vf_set1(scale), back = vf_set1(-vf_sum(along) / (float)size * scale * scale * scale);
    for (int64_t i = 0; i < size; i += VL) {
        vf v = load(type, x, i, size), g = load(type, grad, i, size);
        vf u = vf_mul(g, vf_add(offset, load(type, norm->weight, i, size)));
        vf found = vf_fma(v, back, vf_mul(u, s));
        if (grad_total) found = vf_add(found, load(type, grad_total, i, size));
        store(type, d_x, i, size, found);
        if (d_weight) store(PEG_F32, d_weight, i, size, vf_fma(g, vf_mul(v, s), load(PEG_F32, d_weight, i, size)));
    }
}

void PEG_NAME(peg_rms_backward_row)(const peg_norm *norm, const void *grad, const void *grad_total, const void *x, void *d_x, float *d_weight) {
#define NORM(type) norm_row(type, norm, grad, grad_total, x, d_x, d_weight)
    WITH_TYPE(norm->type, NORM)
}

/* x * logistic(z), z = x or twice the argument of GELU's tanh, and its derivative: l + x l (1 - l) z'. */
PEG_INLINE vf activated(const int kind, vf x, vf *slope) {
    vf one = vf_set1(1.0f), z = x, dz = one;
    if (kind == PEG_GELU_TANH) {
        const float c = 2 * 0.7978845608028654f;
        vf square = vf_mul(x, x);
        z = vf_mul(x, vf_fma(square, vf_set1(c * 0.044715f), vf_set1(c)));
        dz = vf_fma(square, vf_set1(3 * c * 0.044715f), vf_set1(c));
    }
    vf l = vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), z))));
    vf y = vf_mul(x, l);
    *slope = vf_fma(vf_mul(y, vf_sub(one, l)), dz, l);
    return y;
}

PEG_INLINE void gated_row(const int kind, const int type, const void *grad, const void *gate, const void *up, int64_t width, void *d_gate, void *d_up) {
    for (int64_t i = 0; i < width; i += VL) {
        vf slope, g = load(type, grad, i, width), y = activated(kind, load(type, gate, i, width), &slope);
        vf by_gate = vf_mul(vf_mul(g, load(type, up, i, width)), slope);
        store(type, d_up, i, width, vf_mul(g, y));
        store(type, d_gate, i, width, by_gate);
    }
}

void PEG_NAME(peg_gated_backward_row)(int activation, int type, const void *grad, const void *gate, const void *up, int64_t width, void *d_gate, void *d_up) {
#define SILU(type) gated_row(PEG_SILU, type, grad, gate, up, width, d_gate, d_up)
#define GELU(type) gated_row(PEG_GELU_TANH, type, grad, gate, up, width, d_gate, d_up)
    if (activation == PEG_SILU) {
        WITH_TYPE(type, SILU)
    } else {
        WITH_TYPE(type, GELU)
    }
}

/* Rows are read twice, from the cache the second time: the greatest, then the sum of what exp gives below it. NaN and infinities come through. */
PEG_INLINE float norm_of(const int type, const void *row, int64_t columns) {
    vf most = vf_set1(-INFINITY), second = most, sum = vf_zero(), other = sum;
    int64_t i = 0;
    for (; i + 2 * VL <= columns; i += 2 * VL) {
        most = vf_max(vf_load_as(type, at(type, row, i)), most);
        second = vf_max(vf_load_as(type, at(type, row, i + VL)), second);
    }
    float greatest = vf_largest(vf_max(most, second));
    for (; i < columns; i++) {
        float x = load_as(type, row, i);
        greatest = x > greatest ? x : greatest;
    }
    vf g = vf_set1(greatest);
    for (i = 0; i + 2 * VL <= columns; i += 2 * VL) {
        sum = vf_add(sum, vf_exp(vf_sub(vf_load_as(type, at(type, row, i)), g)));
        other = vf_add(other, vf_exp(vf_sub(vf_load_as(type, at(type, row, i + VL)), g)));
    }
    float total = vf_sum(vf_add(sum, other));
    for (; i < columns; i++) total += expf(load_as(type, row, i) - greatest);
    return greatest + logf(total);
}

float PEG_NAME(peg_logits_norm)(int type, const void *row, int64_t columns) {
    float norm = 0;
#define SUM(type) norm = norm_of(type, row, columns)
    WITH_TYPE(type, SUM)
    return norm;
}

PEG_INLINE void slope_of(const int type, void *row, int64_t columns, int64_t target, float norm, float factor) {
    vf n = vf_set1(norm), f = vf_set1(factor);
    float at_target = target >= 0 && target < columns ? load_as(type, row, target) : 0;
    for (int64_t i = 0; i < columns; i += VL) store(type, row, i, columns, vf_mul(f, vf_exp(vf_sub(load(type, row, i, columns), n))));
    /* Rounded once, too. */
    if (target >= 0 && target < columns) store_as(type, row, target, factor * (expf(at_target - norm) - 1.0f));
}

void PEG_NAME(peg_logits_slope_row)(int type, void *row, int64_t columns, int64_t target, float norm, float factor) {
#define SLOPE(type) slope_of(type, row, columns, target, norm, factor)
    WITH_TYPE(type, SLOPE)
}
