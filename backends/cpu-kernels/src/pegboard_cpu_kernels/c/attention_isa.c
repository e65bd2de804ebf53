/* Attention for one instruction set: which path a piece of work takes, writing into the cache, joining of chunks. */
#include "attention_decode.h"
#include "attention_tile.h"

/* One query of a head_dim that fills vectors reads keys where they lie; others go through tiles. */
static int direct(int32_t queries, int32_t head_dim) { return queries == 1 && head_dim % NR == 0; }

int32_t PEG_NAME(peg_attention_chunk)(int32_t queries, int32_t head_dim) {
    return direct(queries, head_dim) ? DECODE_CHUNK : TILE_CHUNK;
}

int64_t PEG_NAME(peg_attention_need)(const peg_attention_call *call) {
    int64_t decode = decode_need(call), tile = tile_need(call);
    return decode > tile ? decode : tile;
}

int64_t PEG_NAME(peg_attention_part)(const peg_attention_call *call) {
    return (int64_t)round_up(call->plan->part_queries * shared_heads(call), block_rows(call)) * (padded_dim(call) + 2);
}

static int32_t all_queries(const peg_attention_call *call, const peg_attention_item *item) {
    return call->plan->starts[item->sequence + 1] - call->plan->starts[item->sequence];
}

void PEG_NAME(peg_attention_compute)(const peg_attention_call *call, const peg_attention_item *item, int32_t head, float *scratch) {
    int type = peg_key_type(call);
    if (direct(all_queries(call, item), call->layer->head_dim)) {
        switch (type) {
        case PEG_F32: decode(PEG_F32, call, item, head, scratch); break;
        case PEG_BF16: decode(PEG_BF16, call, item, head, scratch); break;
        case PEG_F16: decode(PEG_F16, call, item, head, scratch); break;
        default: decode(PEG_I8, call, item, head, scratch);
        }
        return;
    }
#if HAVE_PAIRS
    int products = products_of(call);
    if (products == PEG_PAIRS) {
        tile(PEG_BF16, PEG_PAIRS, call, item, head, scratch);
        return;
    }
    if (products == PEG_MATRIX) {
        tile(PEG_BF16, PEG_MATRIX, call, item, head, scratch);
        return;
    }
#endif
    switch (type) {
    case PEG_F32: tile(PEG_F32, 0, call, item, head, scratch); break;
    case PEG_BF16: tile(PEG_BF16, 0, call, item, head, scratch); break;
    case PEG_F16: tile(PEG_F16, 0, call, item, head, scratch); break;
    default: tile(PEG_I8, 0, call, item, head, scratch);
    }
}

void PEG_NAME(peg_attention_join)(const peg_attention_call *call, const peg_attention_item *item, int32_t head, float *scratch) {
    int32_t width = padded_dim(call), kv_heads = call->layer->num_kv_heads;
    int decoded = direct(all_queries(call, item), call->layer->head_dim);
    int32_t n = decoded ? shared_heads(call) : round_up(item->count * shared_heads(call), block_rows(call));
    float *total = scratch;
    for (int32_t chunk = 0; chunk < item->chunks; chunk++) {
        const float *part = call->parts + ((int64_t)(item->part + chunk) * kv_heads + head) * call->part_stride;
        if (chunk == 0) memcpy(total, part, sizeof(float) * (size_t)n * (size_t)(width + 2));
        else join(total, part, n, width);
    }
    finish(call, item, head, total, n, decoded ? peg_key_type(call) : PEG_F32);
}

/* One token's row of a head into the cache. */
static void store(int from, int to, const void *row, void *place, float *scale, int32_t dim) {
    if (from == to) {
        memcpy(place, row, (size_t)dim * (size_t)peg_item_size(to));
        return;
    }
    float wide[MOST_DIM];
    widen(from, row, wide, dim);
    if (to != PEG_I8) {
        narrow(to, wide, place, dim);
        return;
    }
    float most = 0;
    int finite = 1;
    for (int32_t i = 0; i < dim; i++) {
        float size = wide[i] < 0 ? -wide[i] : wide[i];
        finite &= size <= 3.4028234663852886e38f;
        most = size > most ? size : most;
    }
    /* What is not finite makes the whole row NaN, so that whoever reads it learns of it. */
    *scale = finite ? most / 127.0f : (float)NAN;
    int8_t *out = place;
    for (int32_t i = 0; i < dim; i++) {
        float steps = finite && *scale > 0 ? wide[i] / *scale : 0;
        out[i] = (int8_t)((steps + 12582912.0f) - 12582912.0f); /* rounded, ties to even */
    }
}

void PEG_NAME(peg_attention_write)(const peg_attention_call *call, int64_t first, int64_t end) {
    const peg_attention_layer *layer = call->layer;
    const int64_t *slots = call->plan->slots, page_size = call->plan->page_size, dim = layer->head_dim;
    int from = layer->type, to = layer->cache_type, in = peg_item_size(from), size = peg_item_size(to);
    for (int64_t t = first; t < end; t++) {
        int64_t row = slots[t] / page_size * call->page_stride + slots[t] % page_size * call->token_stride;
        for (int32_t h = 0; h < layer->num_kv_heads; h++, row += call->head_stride) {
            const char *k = (const char *)call->k + (t * call->k_stride + h * dim) * in;
            const char *v = (const char *)call->v + (t * call->v_stride + h * dim) * in;
            store(from, to, k, (char *)call->k_cache + row * dim * size, call->k_scale + (to == PEG_I8 ? row : 0), layer->head_dim);
            store(from, to, v, (char *)call->v_cache + row * dim * size, call->v_scale + (to == PEG_I8 ? row : 0), layer->head_dim);
        }
    }
}
