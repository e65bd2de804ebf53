/* Products with a matrix of weights: y = x W^T (+ bias), rows of W being outputs. */
#ifndef PEG_LINEAR_H
#define PEG_LINEAR_H

#include "peg.h"

/* A matrix of weights as the caller has it: [n, k], rows `stride` elements apart. Nothing is copied or kept.
 * scales: of int8 weights, float32, one a row; NULL otherwise. bias: [n] of type x_type, or NULL.
 * x_type: of inputs and outputs: float32, bfloat16 or float16. */
typedef struct {
    const void *weights;
    const float *scales;
    const void *bias;
    int64_t n, k, stride;
    int32_t type, x_type;
} peg_matrix;

/* out [m, n] = x [m, k], rows x_stride apart, times the matrix. Sums are float32, rounded once. The bits of a row depend neither on m nor on
 * the number of threads. Returns 0, or -1 for types or sizes that it does not know, -2 for a lack of memory. */
PEG_API int peg_linear(const peg_matrix *matrix, const void *x, int64_t m, int64_t x_stride, void *out);

/* Per instruction set. peg_lanes: bytes of one prepared row are a multiple of what this returns; direct: x may be used unprepared. */
PEG_DECLARE(int64_t, peg_linear_row_bytes, (const peg_matrix *matrix))
PEG_DECLARE(int, peg_linear_direct, (const peg_matrix *matrix))
PEG_DECLARE(void, peg_linear_prepare, (const peg_matrix *matrix, const void *x, int64_t x_stride, int64_t rows, void *prepared))
/* Outputs [m] x [n0, n1) from m prepared rows that lie row_bytes apart; panel: memory for peg_linear_panel_bytes. */
PEG_DECLARE(int64_t, peg_linear_panel_bytes, (const peg_matrix *matrix, int64_t m))
PEG_DECLARE(void, peg_linear_block,
            (const peg_matrix *matrix, const void *prepared, int64_t row_bytes, int64_t m, int64_t n0, int64_t n1, void *panel, void *out))

#endif
