/* Many queries: tiles of keys and values are widened once, laid out for a matrix product, and used by all queries of an item.
 *
 * An item's rows are its queries, for each the heads that share a kv head. A tile of TILE keys begins at a multiple of TILE in the
 * sequence, a chunk at a multiple of TILE_CHUNK, and no row's arithmetic depends on the others': what a query gets is the same
 * however its prompt was cut. Rows are taken MR at a time: products with the tile's keys, softmax, products with its values.
 *
 * With instructions for products of bfloat16 pairs (`paired`) nothing is widened: a float of queries, keys, values and weights below is
 * then a pair, two neighbours of head_dim, or for values and weights two neighbouring keys.
 */
#ifndef PEG_ATTENTION_TILE_H
#define PEG_ATTENTION_TILE_H

#include "attention_pack.h"

#define TILE_CHUNK 4096

/* How the products of a call are computed. */
static inline int products_of(const peg_attention_call *call) {
    const peg_attention_layer *layer = call->layer;
    int narrow_both = HAVE_PAIRS && layer->type == PEG_BF16 && peg_key_type(call) == PEG_BF16;
    if (!narrow_both || layer->head_dim % 2) return PEG_FLOATS;
    if (call->products == PEG_MATRIX) return HAVE_PAIRS && PEG_MATRIX_UNIT && layer->head_dim % 32 == 0 ? PEG_MATRIX : PEG_FLOATS;
    return call->products;
}

static inline int32_t block_rows(const peg_attention_call *call) { return products_of(call) == PEG_MATRIX ? 32 : MR; }

static int32_t tile_rows(const peg_attention_call *call) {
    return round_up(call->plan->most_queries * shared_heads(call), block_rows(call));
}

static int64_t tile_need(const peg_attention_call *call) {
    int64_t rows = tile_rows(call), width = padded_dim(call);
    return 4 * TILE + rows * width + 2 * TILE * width + 2 * MOST_BLOCK * TILE + 2 * TILE + 2 * rows * (width + 2) + 64;
}

static tile_room tile_rooms(const peg_attention_call *call, float *at) {
    int64_t rows = tile_rows(call), width = padded_dim(call);
    tile_room room;
    room.key_places = (int64_t *)at, at += 2 * TILE;
    room.value_places = (int64_t *)at, at += 2 * TILE;
    room.q = at, at += rows * width;
    room.keys = at, at += TILE * width;
    room.values = at, at += TILE * width;
    room.weights = at, at += MOST_BLOCK * TILE;
    room.pairs = at, at += MOST_BLOCK * TILE;
    room.key_scales = at, at += TILE;
    room.value_scales = at, at += TILE;
    room.part = at, at += rows * (width + 2);
    room.total = at;
    return room;
}

/* acc[MR][2 VL] += a[MR rows, `depth`] x b[depth][2 VL]. */
INLINE void multiply(int paired, vf acc[MR][2], const float *a, int64_t a_stride, const float *b, int32_t depth) {
    for (int32_t i = 0; i < depth; i++) {
        vf left = v_load(b + (int64_t)i * NR), right = v_load(b + (int64_t)i * NR + VL);
#pragma GCC unroll 16
        for (int r = 0; r < MR; r++) {
            vf x = v_set(a[r * a_stride + i]);
            acc[r][0] = paired ? v_dot(x, left, acc[r][0]) : v_fma(x, left, acc[r][0]);
            acc[r][1] = paired ? v_dot(x, right, acc[r][1]) : v_fma(x, right, acc[r][1]);
        }
    }
}

/* Products of `rows` rows -> weights; most and sums of the rows are updated, factors are what their values so far must be multiplied by.
 * columns: a multiple of 2 VL. Row r sees the columns first[r] ... last[r]. */
static void soften_rows(int rows, const logit_rule *rule, float *weights, int32_t columns, const int32_t *first, const int32_t *last,
                        float *most, float *sums, float factors[MOST_BLOCK]) {
    float base[MOST_BLOCK], old[MOST_BLOCK];
    for (int r = 0; r < MOST_BLOCK; r++) base[r] = old[r] = 0;
    for (int r = 0; r < rows; r++) {
        float *row = weights + r * TILE;
        vf high = v_set(-INFINITY);
        int whole = first[r] <= 0 && last[r] >= columns - 1;
        for (int32_t j = 0; j < columns; j += VL) {
            vf x = logit(rule, v_load(row + j));
            if (!whole) {
                vf column = v_load(NUMBERS) + v_set((float)j);
                x = v_select(v_less(column, v_set((float)first[r])), v_set(-INFINITY), x);
                x = v_select(v_less(v_set((float)last[r]), column), v_set(-INFINITY), x);
            }
            high = v_max(x, high);
            v_store(row + j, x);
        }
        float top = v_reduce_max(high);
        old[r] = most[r];
        most[r] = top > old[r] ? top : old[r];
        base[r] = most[r] == -INFINITY ? 0 : most[r];
    }
    for (int r = 0; r < rows; r += VL) v_store(factors + r, v_exp2(v_load(old + r) - v_load(base + r)));
    for (int r = 0; r < rows; r++) {
        float *row = weights + r * TILE;
        vf sum = v_set(0), high = v_set(base[r]);
        for (int32_t j = 0; j < columns; j += VL) {
            vf weight = v_exp2(v_load(row + j) - high);
            sum = sum + weight;
            v_store(row + j, weight);
        }
        sums[r] = sums[r] * factors[r] + v_sum(sum);
    }
}

/* How many of a tile's `count` keys, the first of which stands at `start`, any of `rows` rows from row `r` on sees; and what each row sees:
 * first ... last. */
INLINE int32_t columns_seen(int rows, const peg_attention_call *call, const peg_attention_item *item, int32_t r, int32_t start,
                            int32_t count, int32_t *first, int32_t *last) {
    int32_t shared = shared_heads(call);
    for (int i = 0; i < rows; i++) {
        int32_t query = (r + i) / shared;
        span(call, item->sequence, item->first + (query < item->count ? query : item->count - 1), first + i, last + i);
        first[i] -= start, last[i] -= start;
    }
    if (last[rows - 1] < 0 || first[0] >= count) return 0;
    int32_t used = last[rows - 1] < count ? last[rows - 1] + 1 : count;
    for (int i = 0; i < rows; i++) last[i] = last[i] < used ? last[i] : used - 1;
    return used;
}

/* MR rows from row `r` on, with `count` keys of which the first stands at `start` in the sequence. n: rows of the partial result. */
INLINE void row_block(int paired, const peg_attention_call *call, const peg_attention_item *item, const logit_rule *rule,
                      const tile_room *room, int32_t r, int32_t n, int32_t start, int32_t count, float *part) {
    int32_t width = padded_dim(call), first[MR], last[MR];
    int32_t depth = paired ? call->layer->head_dim / 2 : call->layer->head_dim, row = paired ? width / 2 : width;
    int32_t used = columns_seen(MR, call, item, r, start, count, first, last), columns = round_up(used, NR);
    if (used == 0) return;
    for (int32_t j = 0; j < columns; j += NR) {
        vf acc[MR][2];
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) acc[i][0] = acc[i][1] = v_set(0);
        multiply(paired, acc, room->q + (int64_t)r * row, row, room->keys + (int64_t)j * row, depth);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
            v_store(room->weights + i * TILE + j, acc[i][0]);
            v_store(room->weights + i * TILE + j + VL, acc[i][1]);
        }
    }
    float factors[MOST_BLOCK];
    soften_rows(MR, rule, room->weights, columns, first, last, part + r, part + n + r, factors);
    const float *weights = room->weights;
    int32_t tile_depth = paired ? TILE / 2 : TILE;
    if (paired) {
        for (int i = 0; i < MR; i++) narrow(PEG_BF16, room->weights + i * TILE, room->pairs + i * tile_depth, columns);
        weights = room->pairs;
        used = (used + 1) / 2;
    }
    for (int32_t d = 0; d < width; d += NR) {
        vf acc[MR][2];
        float *values = part + 2 * n + (int64_t)r * width + d;
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
            acc[i][0] = v_load(values + (int64_t)i * width) * v_set(factors[i]);
            acc[i][1] = v_load(values + (int64_t)i * width + VL) * v_set(factors[i]);
        }
        multiply(paired, acc, weights, tile_depth, room->values + (int64_t)d * tile_depth, used);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
            v_store(values + (int64_t)i * width, acc[i][0]);
            v_store(values + (int64_t)i * width + VL, acc[i][1]);
        }
    }
}

static void block(const peg_attention_call *call, const peg_attention_item *item, const logit_rule *rule, const tile_room *room, int32_t r,
                  int32_t n, int32_t start, int32_t count, float *part) {
    row_block(0, call, item, rule, room, r, n, start, count, part);
}

static inline void paired_block(const peg_attention_call *call, const peg_attention_item *item, const logit_rule *rule,
                                const tile_room *room, int32_t r, int32_t n, int32_t start, int32_t count, float *part) {
    row_block(1, call, item, rule, room, r, n, start, count, part);
}

INLINE void read_queries(int paired, const peg_attention_call *call, const peg_attention_item *item, int32_t head, const tile_room *room,
                         int32_t n) {
    const peg_attention_layer *layer = call->layer;
    int32_t shared = shared_heads(call), width = padded_dim(call), dim = layer->head_dim;
    memset(room->q, 0, sizeof(float) * (size_t)n * (size_t)width);
    for (int32_t r = 0; r < item->count * shared; r++) {
        int64_t token = call->plan->starts[item->sequence] + item->first + r / shared;
        int64_t at = token * call->q_stride + (int64_t)(head * shared + r % shared) * dim;
        const char *row = (const char *)call->q + at * peg_item_size(layer->type);
        if (paired) memcpy(room->q + (int64_t)r * (width / 2), row, 2 * (size_t)dim);
        else widen(layer->type, row, room->q + (int64_t)r * width, dim);
    }
}

#if HAVE_PAIRS && PEG_MATRIX_UNIT
#include "attention_matrix.h"
#else
#define matrix_block block
#define matrix_begin() ((void)0)
#define matrix_end() ((void)0)
#endif

/* `type` and `products` are constants where this is inlined. */
INLINE void tile(int type, int products, const peg_attention_call *call, const peg_attention_item *item, int32_t head, float *scratch) {
    const peg_attention_layer *layer = call->layer;
    tile_room room = tile_rooms(call, scratch);
    logit_rule rule = rule_of(layer);
    int32_t shared = shared_heads(call), dim = layer->head_dim, width = padded_dim(call), rows = products == PEG_MATRIX ? 32 : MR;
    int32_t n = round_up(item->count * shared, rows), paired = products != PEG_FLOATS;
    int32_t first, last, unused;
    span(call, item->sequence, item->first, &first, &unused);
    span(call, item->sequence, item->first + item->count - 1, &unused, &last);
    const char *keys = call->plan->table ? call->k_cache : call->k, *values = call->plan->table ? call->v_cache : call->v;
    int32_t from = item->chunk >= 0 ? item->chunk : first / TILE_CHUNK, to = item->chunk >= 0 ? item->chunk : last / TILE_CHUNK;
    float *alone = item->chunk < 0 ? NULL
                                   : call->parts + ((int64_t)(item->part + item->chunk) * layer->num_kv_heads + head) * call->part_stride;
    read_queries(paired, call, item, head, &room, n);
    if (products == PEG_MATRIX) matrix_begin();
    for (int32_t chunk = from; chunk <= to; chunk++) {
        float *part = alone ? alone : chunk == from ? room.total : room.part;
        for (int32_t r = 0; r < n; r++) part[r] = -INFINITY;
        memset(part + n, 0, sizeof(float) * (size_t)n * (size_t)(width + 1));
        int32_t end = (chunk + 1) * TILE_CHUNK;
        if (end > last + 1) end = last + 1;
        for (int32_t start = chunk * TILE_CHUNK; start < end; start += TILE) {
            int32_t skip = first > start ? first - start : 0, count = end - start < TILE ? end - start : TILE;
            if (skip >= count) continue;
            locate(call, item->sequence, head, start + skip, count - skip, room.key_places + skip, room.value_places + skip,
                   room.key_scales + skip, room.value_scales + skip);
            if (paired) { /* pairs are moved as floats are */
                pack_keys(PEG_F32, keys, &room, skip, count, dim / 2, width / 2);
                pair_values(values, &room, skip, count, dim, width);
            } else {
                pack_keys(type, keys, &room, skip, count, dim, width);
                pack_values(type, values, &room, skip, count, dim, width);
            }
            for (int32_t r = 0; r < n; r += rows)
                (products == PEG_MATRIX ? matrix_block : paired ? paired_block : block)(call, item, &rule, &room, r, n, start, count, part);
        }
        if (part == room.part) join(room.total, part, n, width);
    }
    if (products == PEG_MATRIX) matrix_end();
    if (!alone) finish(call, item, head, room.total, n, PEG_F32);
}

#endif
