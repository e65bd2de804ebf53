/* What both paths of attention need: where keys lie, logits, joining of partial results, the result's rows.
 *
 * A partial result of n rows is n maxima of logits (base 2), n sums of weights, then n rows of weighted values, padded_dim floats each.
 */
#ifndef PEG_ATTENTION_COMMON_H
#define PEG_ATTENTION_COMMON_H

#include <math.h>

#include "attention_vec.h"

#define MOST_DIM 1024
#define LOG2_E 1.4426950408889634f

static inline int32_t round_up(int32_t n, int32_t unit) { return (n + unit - 1) / unit * unit; }
static inline int32_t shared_heads(const peg_attention_call *call) { return call->layer->num_heads / call->layer->num_kv_heads; }
static inline int32_t padded_dim(const peg_attention_call *call) { return round_up(call->layer->head_dim, NR); }

/* The keys that query `index` of a sequence sees: first … last. */
static inline void span(const peg_attention_call *call, int32_t sequence, int32_t index, int32_t *first, int32_t *last) {
    const peg_attention_plan *plan = call->plan;
    int32_t length = plan->lens[sequence], queries = plan->starts[sequence + 1] - plan->starts[sequence];
    int32_t position = length - queries + index, window = call->layer->window;
    *first = window > 0 && position >= window ? position - window + 1 : 0;
    *last = call->layer->causal ? position : length - 1;
}

/* Where tokens begin … begin + count - 1 of a sequence lie: offsets in bytes from the first key and value, and scales, of a head. */
static void locate(const peg_attention_call *call, int32_t sequence, int32_t head, int32_t begin, int32_t count, int64_t *keys,
                   int64_t *values, float *key_scales, float *value_scales) {
    const peg_attention_plan *plan = call->plan;
    int64_t dim = call->layer->head_dim, size = peg_item_size(peg_key_type(call));
    if (plan->table == NULL) {
        for (int32_t i = 0; i < count; i++) {
            int64_t token = plan->starts[sequence] + begin + i;
            keys[i] = (token * call->k_stride + head * dim) * size;
            values[i] = (token * call->v_stride + head * dim) * size;
        }
        return;
    }
    const int32_t *pages = plan->table + plan->rows[sequence] * plan->table_stride;
    int32_t page = begin / plan->page_size, offset = begin % plan->page_size;
    for (int32_t i = 0; i < count; page++, offset = 0) {
        int32_t end = plan->page_size - offset;
        if (end > count - i) end = count - i;
        int64_t row = pages[page] * call->page_stride + offset * call->token_stride + head * call->head_stride;
        for (int32_t j = 0; j < end; j++, i++, row += call->token_stride) {
            keys[i] = values[i] = row * dim * size;
            if (call->k_scale) key_scales[i] = call->k_scale[row], value_scales[i] = call->v_scale[row];
        }
    }
}

typedef struct {
    vf scale, cap;
    int capped;
} logit_rule;

static inline logit_rule rule_of(const peg_attention_layer *layer) {
    logit_rule rule = {v_set(layer->scale * LOG2_E), v_set(0), layer->softcap > 0};
    if (rule.capped) rule.scale = v_set(layer->scale / layer->softcap), rule.cap = v_set(layer->softcap * LOG2_E);
    return rule;
}

/* q·k -> logit in units of log 2. */
INLINE vf logit(const logit_rule *rule, vf product) {
    vf x = product * rule->scale;
    if (rule->capped) x = v_tanh(x) * rule->cap;
    return x;
}

static void widen(int type, const void *row, float *out, int32_t count) {
    int32_t i = 0;
    if (type == PEG_F32) memcpy(out, row, sizeof(float) * (size_t)count);
    else if (type == PEG_BF16)
        for (const uint16_t *half = row; i < count; i++) out[i] = peg_bf16_to_f32(half[i]);
    else {
        const uint16_t *half = row;
        for (; i + VL <= count; i += VL) v_store(out + i, v_f16(half + i));
        for (; i < count; i++) out[i] = peg_f16_to_f32(half[i]);
    }
}

static void narrow(int type, const float *row, void *out, int32_t count) {
    uint16_t *half = out;
    int32_t i = 0;
    if (type == PEG_F32) memcpy(out, row, sizeof(float) * (size_t)count);
    else if (type == PEG_BF16) {
        for (; i + VL <= count; i += VL) v_store_bf16(half + i, v_load(row + i));
        for (; i < count; i++) half[i] = peg_f32_to_bf16(row[i]);
    } else {
        for (; i + VL <= count; i += VL) v_store_f16(half + i, v_load(row + i));
        for (; i < count; i++) half[i] = peg_f32_to_f16(row[i]);
    }
}

/* Add the partial result `part` of n rows to `total`. A row that saw no key yet has maximum -inf, sum 0 and values 0. */
static __attribute__((noinline)) void join(float *total, const float *part, int32_t n, int32_t width) {
    for (int32_t r = 0; r < n; r++) {
        float *most = total + r, *sum = total + n + r, *values = total + 2 * n + (int64_t)r * width;
        const float *other = part + 2 * n + (int64_t)r * width;
        float both = *most > part[r] ? *most : part[r], base = both == -INFINITY ? 0 : both;
        vf mine = v_exp2(v_set(*most - base)), theirs = v_exp2(v_set(part[r] - base));
        float factors[2 * VL];
        v_store(factors, mine);
        v_store(factors + VL, theirs);
        for (int32_t d = 0; d < width; d += VL) v_store(values + d, v_fma(v_load(values + d), mine, v_load(other + d) * theirs));
        *sum = *sum * factors[0] + part[n + r] * factors[VL];
        *most = both;
    }
}

/* Write the result's rows. n: rows of the partial result, which may be more. type: in whose order (v_place) the values lie. */
static void finish(const peg_attention_call *call, const peg_attention_item *item, int32_t head, const float *total, int32_t n,
                   int type) {
    const peg_attention_layer *layer = call->layer;
    int32_t shared = shared_heads(call), width = padded_dim(call), dim = layer->head_dim;
    float row[MOST_DIM];
    for (int32_t r = 0; r < item->count * shared; r++) {
        const float *values = total + 2 * n + (int64_t)r * width;
        float whole = 1.0f / total[n + r];
        if (type == PEG_BF16)
            for (int32_t d = 0; d < dim; d++) row[d] = values[v_place(type, d)] * whole;
        else
            for (int32_t d = 0; d < dim; d++) row[d] = values[d] * whole;
        int64_t token = call->plan->starts[item->sequence] + item->first + r / shared;
        int64_t place = (token * layer->num_heads + head * shared + r % shared) * dim;
        narrow(layer->type, row, (char *)call->out + place * peg_item_size(layer->type), dim);
    }
}

#endif
