/* AdamW (arXiv:1711.05101) on the part of one parameter that is here. */
#ifndef PEG_ADAMW_H
#define PEG_ADAMW_H

#include "peg.h"

/* Everything is computed in float32. Weights and gradient: float32, bfloat16 or float16; moments: float32 or bfloat16.
 * master: float32 weights that the update is taken on, of which `weight` is then a rounded copy; NULL where `weight` itself is updated.
 * factor: of the gradient. decay: 1 - lr * weight decay. step_size: lr / (1 - beta1^t). root: 1 / sqrt(1 - beta2^t).
 * at_random: whether a bfloat16 weight without a master is rounded up or down in proportion. Moments of bfloat16 always are.
 * The random bits of element i are a hash of i and both keys. */
typedef struct {
    void *weight, *exp_avg, *exp_avg_sq, *master;
    const void *gradient;
    int64_t count;
    float factor, decay, beta1, beta2, step_size, root, eps;
    uint32_t key, second_key;
    int32_t weight_type, gradient_type, moment_type, at_random;
} peg_adamw;

/* Returns 0, or -1 for a type that it does not know. */
PEG_API int peg_adamw_step(const peg_adamw *update);

PEG_DECLARE(void, peg_adamw_part, (const peg_adamw *update, int64_t first, int64_t count))

#endif
