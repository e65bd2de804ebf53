/* Norms, gates and rotary positions: row by row. */
#ifndef PEG_ELEMENTWISE_H
#define PEG_ELEMENTWISE_H

#include "peg.h"

/* All compute in float32 and round once. `type`: of every tensor of a call: float32, bfloat16 or float16. They return 0, or -1 for another. */

/* Rows of `size` elements, the last dimension dense. Row (i, j), i < outer, j < inner, of an input lies at i * stride + j * size; outputs
 * are dense. */
typedef struct {
    const void *weight; /* [size] */
    int64_t size;
    float eps, offset;
    int32_t type;
} peg_norm;

/* out = x / sqrt(mean(x^2) + eps) * (offset + weight). */
PEG_API int peg_rms_norm(const peg_norm *norm, const void *x, int64_t outer, int64_t inner, int64_t stride, void *out);

/* total = x + residual, rounded; out = the norm of that. All dense. */
PEG_API int peg_add_rms_norm(const peg_norm *norm, const void *x, const void *residual, int64_t rows, void *out, void *total);

/* Of a gate: x / (1 + exp(-x)), and GELU's approximation x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))). */
typedef enum { PEG_SILU, PEG_GELU_TANH } peg_activation;

/* out [rows, width] = activation(gate) * up, of rows [gate, up] that lie `stride` elements apart. */
PEG_API int peg_gated(peg_activation activation, int type, const void *gate_up, int64_t rows, int64_t width, int64_t stride, void *out);

/* The first `width` elements (even) of each head turned, the rest as they are: with h = width / 2, out[i] = x[i] cos[i] + x[i + h] sin[i] and
 * out[i + h] = x[i + h] cos[i + h] + x[i] sin[i + h]; the signs are in sin. x: tokens `stride` elements apart, heads dense;
 * cos, sin: [tokens, width], out: [tokens, heads, dim], dense. */
PEG_API int peg_rotary(int type, const void *x, int64_t tokens, int64_t heads, int64_t dim, int64_t width, int64_t stride, const void *cos,
                       const void *sin, void *out);

PEG_DECLARE(void, peg_rms_row, (const peg_norm *norm, const void *x, void *out))
PEG_DECLARE(void, peg_add_rms_row, (const peg_norm *norm, const void *x, const void *residual, void *out, void *total))
PEG_DECLARE(void, peg_gated_row, (peg_activation activation, int type, const void *gate, const void *up, int64_t width, void *out))
PEG_DECLARE(void, peg_rotary_heads,
            (int type, const void *x, int64_t heads, int64_t dim, int64_t width, const void *cos, const void *sin, void *out))

#endif
