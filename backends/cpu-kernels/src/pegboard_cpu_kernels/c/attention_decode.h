/* One query a sequence: keys and values are read where they lie, each once for all query heads that share them.
 *
 * A chunk of keys is attended in two passes, logits then values, with the softmax between them; the time is that of reading.
 */
#ifndef PEG_ATTENTION_DECODE_H
#define PEG_ATTENTION_DECODE_H

#include "attention_common.h"

#define DECODE_CHUNK 512
#ifndef AHEAD
#define AHEAD 32
#endif

typedef struct {
    float *q, *logits, *part, *total, *key_scales, *value_scales;
    int64_t *keys, *values;
} decode_room;

static int64_t decode_need(const peg_attention_call *call) {
    int64_t shared = shared_heads(call), width = padded_dim(call);
    return shared * width + shared * DECODE_CHUNK + 2 * shared * (width + 2) + 2 * DECODE_CHUNK + 4 * (DECODE_CHUNK + AHEAD) + 64;
}

static decode_room decode_rooms(const peg_attention_call *call, float *at) {
    int64_t shared = shared_heads(call), width = padded_dim(call);
    decode_room room;
    room.keys = (int64_t *)at, at += 2 * (DECODE_CHUNK + AHEAD);
    room.values = (int64_t *)at, at += 2 * (DECODE_CHUNK + AHEAD);
    room.q = at, at += shared * width;
    room.logits = at, at += shared * DECODE_CHUNK;
    room.key_scales = at, at += DECODE_CHUNK;
    room.value_scales = at, at += DECODE_CHUNK;
    room.part = at, at += shared * (width + 2);
    room.total = at;
    return room;
}

/* Products of `heads` queries with four keys -> out[head * DECODE_CHUNK + 0 … 3]. */
INLINE void four_keys(int type, int heads, const float *q, int32_t dim, const char *k0, const char *k1, const char *k2, const char *k3,
                      float *out) {
    const char *key[4] = {k0, k1, k2, k3};
    vf sum[4][4];
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < 4; j++) sum[h][j] = v_set(0);
    for (int32_t d = 0; d < dim; d += NR) {
        for (int j = 0; j < 4; j++) {
            vf a, b;
            v_load_two(type, key[j] + d * peg_item_size(type), &a, &b);
            for (int h = 0; h < heads; h++) {
                sum[h][j] = v_fma(v_load(q + h * dim + d), a, sum[h][j]);
                sum[h][j] = v_fma(v_load(q + h * dim + d + VL), b, sum[h][j]);
            }
        }
    }
    for (int h = 0; h < heads; h++) v_sum4(sum[h][0], sum[h][1], sum[h][2], sum[h][3], out + h * DECODE_CHUNK);
}

INLINE void some_keys(int type, int heads, const float *q, int32_t dim, const char *k0, const char *k1, const char *k2, const char *k3,
                      float *out) {
    switch (heads) {
    case 1: four_keys(type, 1, q, dim, k0, k1, k2, k3, out); break;
    case 2: four_keys(type, 2, q, dim, k0, k1, k2, k3, out); break;
    case 3: four_keys(type, 3, q, dim, k0, k1, k2, k3, out); break;
    default: four_keys(type, 4, q, dim, k0, k1, k2, k3, out);
    }
}

/* Weighted sums of `pairs` x 2 VL elements of all values -> out[head * dim + …]. */
INLINE void weigh(int type, int heads, int pairs, const float *weights, const char *base, const int64_t *values, int32_t count,
                  int32_t dim, float *out) {
    vf sum[4][8];
    for (int h = 0; h < heads; h++)
        for (int p = 0; p < 2 * pairs; p++) sum[h][p] = v_set(0);
    for (int32_t j = 0; j < count; j++) {
        const char *row = base + values[j], *ahead = base + values[j + AHEAD];
        for (int line = 0; line < pairs * NR * peg_item_size(type); line += 64) __builtin_prefetch(ahead + line);
        for (int p = 0; p < pairs; p++) {
            vf a, b;
            v_load_two(type, row + p * NR * peg_item_size(type), &a, &b);
            const float *own = weights + j;
            for (int h = 0; h < heads; h++) {
                HIDE(own); /* weights kept in registers over all pairs would push sums out of them */
                vf weight = v_set(own[h * DECODE_CHUNK]);
                sum[h][2 * p] = v_fma(weight, a, sum[h][2 * p]);
                sum[h][2 * p + 1] = v_fma(weight, b, sum[h][2 * p + 1]);
            }
        }
    }
    for (int h = 0; h < heads; h++)
        for (int p = 0; p < 2 * pairs; p++) v_store(out + h * dim + p * VL, sum[h][p]);
}

INLINE void weigh_all(int type, int heads, int pairs, const float *weights, const char *base, const int64_t *values, int32_t count,
                      int32_t dim, float *out) {
    int32_t d = 0;
    for (; d + pairs * NR <= dim; d += pairs * NR)
        weigh(type, heads, pairs, weights, base + d * peg_item_size(type), values, count, dim, out + d);
    for (; d < dim; d += NR) weigh(type, heads, 1, weights, base + d * peg_item_size(type), values, count, dim, out + d);
}

/* Logits of one head -> weights; returns maximum and sum. Places up to the next whole vector are overwritten. */
static void soften(const peg_attention_layer *layer, float *logits, const float *scales, const float *value_scales, int32_t count,
                   float *most, float *total) {
    logit_rule rule = rule_of(layer);
    int32_t whole = round_up(count, VL);
    vf high = v_set(-INFINITY), sum = v_set(0);
    for (int32_t j = count; j < whole; j++) logits[j] = 0;
    for (int32_t j = 0; j < whole; j += VL) {
        vf x = v_load(logits + j);
        if (scales) x = x * v_load(scales + j);
        v_store(logits + j, logit(&rule, x));
    }
    for (int32_t j = count; j < whole; j++) logits[j] = -INFINITY;
    for (int32_t j = 0; j < whole; j += VL) high = v_max(v_load(logits + j), high);
    *most = v_reduce_max(high);
    vf base = v_set(*most == -INFINITY ? 0 : *most);
    for (int32_t j = 0; j < whole; j += VL) {
        vf weight = v_exp2(v_load(logits + j) - base);
        sum = sum + weight;
        if (value_scales) weight = weight * v_load(value_scales + j);
        v_store(logits + j, weight);
    }
    *total = v_sum(sum);
}

/* Chunk begin … end - 1 -> part. */
INLINE void decode_chunk(int type, const peg_attention_call *call, int32_t sequence, int32_t head, int32_t begin, int32_t end,
                         decode_room *room, float *part) {
    int32_t shared = shared_heads(call), dim = call->layer->head_dim, count = end - begin;
    const char *keys = call->plan->table ? call->k_cache : call->k, *values = call->plan->table ? call->v_cache : call->v;
    float *logits = room->logits, *out = part + 2 * shared;
    locate(call, sequence, head, begin, count, room->keys, room->values, room->key_scales, room->value_scales);
    for (int32_t j = count; j < count + AHEAD; j++) { /* what is read ahead at the end is what is there */
        room->keys[j] = room->keys[count - 1];
        room->values[j] = room->values[count - 1];
    }
    for (int32_t j = 0; j < count; j += 4) {
        const char *key[4];
        for (int i = 0; i < 4; i++) {
            key[i] = keys + room->keys[j + i];
            const char *ahead = keys + room->keys[j + i + AHEAD];
            for (int32_t line = 0; line < dim * peg_item_size(type); line += 64) __builtin_prefetch(ahead + line);
        }
        for (int32_t h = 0, left = shared; left > 0;) {
            int heads = left > 4 ? (left + (left + 3) / 4 - 1) / ((left + 3) / 4) : left;
            some_keys(type, heads, room->q + h * dim, dim, key[0], key[1], key[2], key[3], logits + h * DECODE_CHUNK + j);
            h += heads, left -= heads;
        }
    }
    const float *scales = type == PEG_I8 ? room->key_scales : NULL, *value_scales = type == PEG_I8 ? room->value_scales : NULL;
    for (int32_t j = count; type == PEG_I8 && j < round_up(count, VL); j++) room->key_scales[j] = room->value_scales[j] = 0;
    for (int32_t h = 0; h < shared; h++)
        soften(call->layer, logits + h * DECODE_CHUNK, scales, value_scales, count, part + h, part + shared + h);
    for (int32_t h = 0, left = shared; left > 0;) {
        int heads = left > 4 ? (left + (left + 3) / 4 - 1) / ((left + 3) / 4) : left;
        const float *weights = logits + h * DECODE_CHUNK;
        switch (heads) {
        case 1: weigh_all(type, 1, 4, weights, values, room->values, count, dim, out + h * dim); break;
        case 2: weigh_all(type, 2, 2, weights, values, room->values, count, dim, out + h * dim); break;
        case 3: weigh_all(type, 3, 2, weights, values, room->values, count, dim, out + h * dim); break;
        default: weigh_all(type, 4, VL == 16 ? 2 : 1, weights, values, room->values, count, dim, out + h * dim);
        }
        h += heads, left -= heads;
    }
}

/* `type` is a constant where this is inlined. head_dim is a multiple of 2 VL. */
INLINE void decode(int type, const peg_attention_call *call, const peg_attention_item *item, int32_t head, float *scratch) {
    const peg_attention_layer *layer = call->layer;
    decode_room room = decode_rooms(call, scratch);
    int32_t shared = shared_heads(call), dim = layer->head_dim, first, last;
    int64_t token = call->plan->starts[item->sequence];
    for (int32_t h = 0; h < shared; h++) {
        float row[MOST_DIM];
        int64_t at = token * call->q_stride + (int64_t)(head * shared + h) * dim;
        widen(layer->type, (const char *)call->q + at * peg_item_size(layer->type), row, dim);
        for (int32_t d = 0; d < dim; d++) room.q[h * dim + v_place(type, d)] = row[d];
    }
    span(call, item->sequence, 0, &first, &last);
    int32_t from = item->chunk >= 0 ? item->chunk : first / DECODE_CHUNK, to = item->chunk >= 0 ? item->chunk : last / DECODE_CHUNK;
    float *alone = item->chunk < 0 ? NULL
                                   : call->parts + ((int64_t)(item->part + item->chunk) * layer->num_kv_heads + head) * call->part_stride;
    for (int32_t chunk = from; chunk <= to; chunk++) {
        int32_t begin = chunk * DECODE_CHUNK, end = begin + DECODE_CHUNK;
        if (begin < first) begin = first;
        if (end > last + 1) end = last + 1;
        float *part = alone ? alone : chunk == from ? room.total : room.part;
        if (begin >= end) { /* before the window */
            for (int32_t h = 0; h < shared; h++) part[h] = -INFINITY;
            memset(part + shared, 0, sizeof(float) * (size_t)(shared * (dim + 1)));
            continue;
        }
        decode_chunk(type, call, item->sequence, head, begin, end, &room, part);
        if (part == room.part) join(room.total, part, shared, dim);
    }
    if (!alone) finish(call, item, head, room.total, shared, type);
}

#endif
