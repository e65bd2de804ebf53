/* AdamW: the inner loop. */
#include "adamw.h"
#include "vec.h"

/* 32 well mixed bits: two rounds of multiplication and shifts whose constants were searched for by Wellons ("Prospecting for hash functions",
 * 2018). */
PEG_INLINE vi mixed(vi x) {
    x = vi_mul(vi_xor(x, vi_right(x, 16)), vi_set1(0x7feb352du));
    x = vi_mul(vi_xor(x, vi_right(x, 15)), vi_set1(0x846ca68bu));
    return vi_xor(x, vi_right(x, 16));
}

typedef struct {
    const void *gradient;
    void *weight, *exp_avg, *exp_avg_sq, *master;
} places;

/* VL elements, the first of which is number `index`. Types are constants where it is called. */
PEG_INLINE void update_few(const peg_adamw *u, const int weight_type, const int gradient_type, const int moment_type, const int has_master,
                           const int at_random, int64_t index, places p) {
    vf g = vf_mul(vf_load_as(gradient_type, p.gradient), vf_set1(u->factor));
    vf m = vf_load_as(moment_type, p.exp_avg), v = vf_load_as(moment_type, p.exp_avg_sq);
    vf w = has_master ? vf_load(p.master) : vf_load_as(weight_type, p.weight);
    w = vf_mul(w, vf_set1(u->decay));
    m = vf_fma(vf_sub(g, m), vf_set1(1.0f - u->beta1), m);
    v = vf_fma(vf_mul(g, g), vf_set1(1.0f - u->beta2), vf_mul(v, vf_set1(u->beta2)));
    vf below = vf_fma(vf_sqrt(v), vf_set1(u->root), vf_set1(u->eps));
    w = vf_sub(w, vf_div(vf_mul(m, vf_set1(u->step_size)), below));
    const int rounds = at_random && !has_master && weight_type == PEG_BF16;
    vi bits = vi_set1(0), low = vi_set1(0xffffu);
    if (rounds || moment_type == PEG_BF16) bits = mixed(vi_xor(mixed(vi_add(vi_count((uint32_t)index), vi_set1(u->key))), vi_set1(u->second_key)));
    if (has_master) vf_store(p.master, w);
    if (rounds) vf_store_bf16_noise(p.weight, w, vi_and(bits, low));
    else vf_store_as(weight_type, p.weight, w);
    if (moment_type == PEG_BF16) {
        vf_store_bf16_noise(p.exp_avg, m, vi_right(bits, 16));
        vf_store_bf16_noise(p.exp_avg_sq, v, vi_and(mixed(vi_xor(bits, vi_set1(0x9e3779b9u))), low));
    } else {
        vf_store(p.exp_avg, m);
        vf_store(p.exp_avg_sq, v);
    }
}

PEG_INLINE void run(const peg_adamw *u, const int weight_type, const int gradient_type, const int moment_type, const int has_master,
                    const int at_random, int64_t first, int64_t count) {
    int64_t i = first, end = first + count;
    for (; i + VL <= end; i += VL) {
        places p = {at(gradient_type, u->gradient, i), at_out(weight_type, u->weight, i), at_out(moment_type, u->exp_avg, i),
                    at_out(moment_type, u->exp_avg_sq, i), has_master ? at_out(PEG_F32, u->master, i) : 0};
        update_few(u, weight_type, gradient_type, moment_type, has_master, at_random, i, p);
    }
    if (i < end) {
        char gradient[VL * 4] = {0}, weight[VL * 4] = {0}, exp_avg[VL * 4] = {0}, exp_avg_sq[VL * 4] = {0}, master[VL * 4] = {0};
        size_t rest = (size_t)(end - i);
        memcpy(gradient, at(gradient_type, u->gradient, i), rest * size_of(gradient_type));
        memcpy(weight, at(weight_type, u->weight, i), rest * size_of(weight_type));
        memcpy(exp_avg, at(moment_type, u->exp_avg, i), rest * size_of(moment_type));
        memcpy(exp_avg_sq, at(moment_type, u->exp_avg_sq, i), rest * size_of(moment_type));
        if (has_master) memcpy(master, at(PEG_F32, u->master, i), rest * 4);
        places p = {gradient, weight, exp_avg, exp_avg_sq, master};
        update_few(u, weight_type, gradient_type, moment_type, has_master, at_random, i, p);
        memcpy(at_out(weight_type, u->weight, i), weight, rest * size_of(weight_type));
        memcpy(at_out(moment_type, u->exp_avg, i), exp_avg, rest * size_of(moment_type));
        memcpy(at_out(moment_type, u->exp_avg_sq, i), exp_avg_sq, rest * size_of(moment_type));
        if (has_master) memcpy(at_out(PEG_F32, u->master, i), master, rest * 4);
    }
}

/* The combinations that training uses are compiled for themselves; of the others only the moments' type is. */
void PEG_NAME(peg_adamw_part)(const peg_adamw *u, int64_t first, int64_t count) {
    const int weight = u->weight_type, gradient = u->gradient_type, moment = u->moment_type, master = u->master != 0, random = u->at_random != 0;
    if (weight == PEG_BF16 && gradient == PEG_BF16 && master && moment == PEG_F32) run(u, PEG_BF16, PEG_BF16, PEG_F32, 1, 0, first, count);
    else if (weight == PEG_BF16 && gradient == PEG_BF16 && !master && random && moment == PEG_BF16)
        run(u, PEG_BF16, PEG_BF16, PEG_BF16, 0, 1, first, count);
    else if (weight == PEG_F32 && gradient == PEG_F32 && !master && moment == PEG_F32) run(u, PEG_F32, PEG_F32, PEG_F32, 0, 0, first, count);
    else if (moment == PEG_F32) run(u, weight, gradient, PEG_F32, master, random, first, count);
    else run(u, weight, gradient, PEG_BF16, master, random, first, count);
}
