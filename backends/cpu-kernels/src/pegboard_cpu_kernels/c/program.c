/* Programs: calls that were recorded once and run again as they are, so that a step of a model is one call for Python. */
#include "attention.h"

#define POINTER(i) ((void *)(uintptr_t)a[i])

PEG_API int peg_attention(peg_attention_plan *plan, const peg_attention_layer *layer, const void *q, int64_t q_stride, const void *k,
                          int64_t k_stride, const void *v, int64_t v_stride, void *out, void *k_cache, void *v_cache, float *k_scale,
                          float *v_scale, int64_t num_pages);

PEG_API int peg_packed_attention(const int64_t *a);
PEG_API int peg_packed_add(const int64_t *a);
PEG_API int peg_packed_gather(const int64_t *a);
PEG_API int peg_program_run(const int64_t *entries, int64_t count, int64_t *at);

/* plan, layer, q, q_stride, k, k_stride, v, v_stride, out, k_cache, v_cache, k_scale, v_scale, pages */
int peg_packed_attention(const int64_t *a) {
    return peg_attention(POINTER(0), POINTER(1), POINTER(2), a[3], POINTER(4), a[5], POINTER(6), a[7], POINTER(8), POINTER(9), POINTER(10),
                         POINTER(11), POINTER(12), a[13]);
}

/* type, x, y, count, out: out = x + y, rounded once. */
int peg_packed_add(const int64_t *a) {
    int64_t count = a[3];
    if (a[0] == PEG_F32) {
        const float *x = POINTER(1), *y = POINTER(2);
        float *out = POINTER(4);
        for (int64_t i = 0; i < count; i++) out[i] = x[i] + y[i];
        return 0;
    }
    const uint16_t *x = POINTER(1), *y = POINTER(2);
    uint16_t *out = POINTER(4);
    if (a[0] == PEG_BF16)
        for (int64_t i = 0; i < count; i++) out[i] = peg_f32_to_bf16(peg_bf16_to_f32(x[i]) + peg_bf16_to_f32(y[i]));
    else if (a[0] == PEG_F16)
        for (int64_t i = 0; i < count; i++) out[i] = peg_f32_to_f16(peg_f16_to_f32(x[i]) + peg_f16_to_f32(y[i]));
    else return -1;
    return 0;
}

/* table, rows of it, bytes of a row, ids (int64), count, out: the rows that ids name; -1 when one is not there. */
int peg_packed_gather(const int64_t *a) {
    const char *table = POINTER(0);
    const int64_t *ids = POINTER(3);
    char *out = POINTER(5);
    for (int64_t i = 0; i < a[4]; i++) {
        if (ids[i] < 0 || ids[i] >= a[1]) return -1;
        memcpy(out + i * a[2], table + ids[i] * a[2], (size_t)a[2]);
    }
    return 0;
}

/* entries: pairs of a peg_packed function and its block. The first that refuses ends the run; at: which one. */
int peg_program_run(const int64_t *entries, int64_t count, int64_t *at) {
    for (int64_t i = 0; i < count; i++) {
        int (*run)(const int64_t *) = (int (*)(const int64_t *))(uintptr_t)entries[2 * i];
        int code = run((const int64_t *)(uintptr_t)entries[2 * i + 1]);
        if (code) {
            *at = i;
            return code;
        }
    }
    return 0;
}
