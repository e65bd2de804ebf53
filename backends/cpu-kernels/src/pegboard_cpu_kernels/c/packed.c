/* The entries that Python calls: all arguments in one block of int64_t, since making one such block takes a caller less time than converting
 * several arguments. Pointers are integers. Each returns what its function returns. */
#include "elementwise.h"
#include "linear.h"

#define POINTER(i) ((void *)(uintptr_t)a[i])

PEG_API int peg_packed_linear(const int64_t *a);
PEG_API int peg_packed_rms_norm(const int64_t *a);
PEG_API int peg_packed_add_rms_norm(const int64_t *a);
PEG_API int peg_packed_silu_mul(const int64_t *a);
PEG_API int peg_packed_gelu_tanh_mul(const int64_t *a);
PEG_API int peg_packed_rotary(const int64_t *a);

/* weights, scales, n, k, stride, type; bias, x_type, x, m, x_stride, out */
int peg_packed_linear(const int64_t *a) {
    peg_matrix matrix = {.weights = POINTER(0), .scales = POINTER(1), .bias = POINTER(6), .n = a[2], .k = a[3], .stride = a[4],
                         .type = (int32_t)a[5], .x_type = (int32_t)a[7]};
    return peg_linear(&matrix, POINTER(8), a[9], a[10], POINTER(11));
}

/* The block of a norm begins with it. */
static peg_norm norm_of(const int64_t *a) {
    peg_norm norm;
    _Static_assert(sizeof norm == 4 * sizeof *a, "a norm takes the room of four");
    memcpy(&norm, a, sizeof norm);
    return norm;
}

/* norm; x, outer, inner, stride, out */
int peg_packed_rms_norm(const int64_t *a) {
    peg_norm norm = norm_of(a);
    return peg_rms_norm(&norm, POINTER(4), a[5], a[6], a[7], POINTER(8));
}

/* norm; x, residual, rows, out, total */
int peg_packed_add_rms_norm(const int64_t *a) {
    peg_norm norm = norm_of(a);
    return peg_add_rms_norm(&norm, POINTER(4), POINTER(5), a[6], POINTER(7), POINTER(8));
}

/* type, gate_up, rows, width, stride, out */
int peg_packed_silu_mul(const int64_t *a) { return peg_gated(PEG_SILU, (int)a[0], POINTER(1), a[2], a[3], a[4], POINTER(5)); }

int peg_packed_gelu_tanh_mul(const int64_t *a) { return peg_gated(PEG_GELU_TANH, (int)a[0], POINTER(1), a[2], a[3], a[4], POINTER(5)); }

/* type, x, tokens, heads, dim, width, stride, cos, sin, out */
int peg_packed_rotary(const int64_t *a) {
    return peg_rotary((int)a[0], POINTER(1), a[2], a[3], a[4], a[5], a[6], POINTER(7), POINTER(8), POINTER(9));
}
