/* Backward passes of norms and gates, and losses over the vocabulary. */
#ifndef PEG_TRAINING_H
#define PEG_TRAINING_H

#include "elementwise.h"

/* All compute in float32 and round once; `type` is that of every tensor but those that are named float. They return 0, or -1 for a type or size
 * that they do not know. */

/* Of y = peg_rms_norm(x): d_x [rows, size] dense, plus `grad_total` where it is not NULL; and, unless `parts` is NULL, the gradient by the weight as
 * `count` float32 rows that are to be added up, part i being of rows i * span to (i + 1) * span - 1, span = ceil(rows / count).
 * x: row (i, j) at i * stride + j * size, j < inner; grad, grad_total: dense. */
PEG_API int peg_rms_norm_backward(const peg_norm *norm, const void *grad, const void *grad_total, const void *x, int64_t rows, int64_t inner,
                                  int64_t stride, void *d_x, float *parts, int64_t count);

/* Of y = activation(gate) * up: out [rows, 2 width], the gradients by gate and up. gate_up: rows `stride` apart; grad: dense. */
PEG_API int peg_gated_backward(int activation, int type, const void *grad, const void *gate_up, int64_t rows, int64_t width, int64_t stride, void *out);

/* Rows of logits, `stride` apart. norm [rows]: log of the sum of exp; picked [rows]: the logit of the target, 0 for one that is not in [0, columns). */
PEG_API int peg_logits_sums(int type, const void *logits, int64_t rows, int64_t columns, int64_t stride, const int64_t *targets, float *norm,
                            float *picked);

/* The same rows become (exp(logit - norm) - [column is the target]) * factor; factor NULL for 1. */
PEG_API int peg_logits_slope(int type, void *logits, int64_t rows, int64_t columns, int64_t stride, const int64_t *targets, const float *norm,
                             const float *factor);

/* Both, row by row; logps [rows]: picked - norm. */
PEG_API int peg_cross_entropy(int type, void *logits, int64_t rows, int64_t columns, int64_t stride, const int64_t *targets, float *logps);

PEG_DECLARE(void, peg_rms_backward_row,
            (const peg_norm *norm, const void *grad, const void *grad_total, const void *x, void *d_x, float *d_weight))
PEG_DECLARE(void, peg_gated_backward_row, (int activation, int type, const void *grad, const void *gate, const void *up, int64_t width, void *d_gate, void *d_up))
PEG_DECLARE(float, peg_logits_norm, (int type, const void *row, int64_t columns))
PEG_DECLARE(void, peg_logits_slope_row, (int type, void *row, int64_t columns, int64_t target, float norm, float factor))

#endif
