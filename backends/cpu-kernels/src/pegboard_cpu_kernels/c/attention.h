/* What the parts of attention share: the layer and the plan that Python makes, one call, and the work that threads take. */
#ifndef PEG_ATTENTION_H
#define PEG_ATTENTION_H

#include "peg.h"

/* A layer's constants; Python fills it, plan.py has the same fields. window, softcap: 0 for none. type: of q, k, v and the result;
 * cache_type: of the paged cache, PEG_I8 with a float32 scale for each token and key head. */
typedef struct {
    int32_t num_heads, num_kv_heads, head_dim, window, causal, type, cache_type;
    float scale, softcap;
} peg_attention_layer;

/* A piece of work: `count` queries of a sequence from its query `first` on, over all keys (chunk -1) or over one chunk of them, whose
 * partial result goes to part `part + chunk`. group: which counter tells that all chunks are there. */
typedef struct {
    int32_t sequence, first, count, chunk, chunks, part, group;
} peg_attention_item;

/* A batch. `count` sequences; sequence i has the rows starts[i] … starts[i + 1] of q and lens[i] tokens, the last of which are its rows'.
 * table[rows[i] * table_stride + j] is the page of its tokens j * page_size …; slots: [starts[count]] where new tokens are written.
 * table NULL: no cache, keys are those of the rows. order 1: heads outside tokens in a page. table and slots belong to the caller. */
typedef struct {
    int32_t count, page_size, order;
    int32_t *starts, *lens, *rows;
    const int32_t *table;
    int64_t table_stride;
    const int64_t *slots;
    int32_t most_page;
    int64_t most_slot;
    /* The work, for the layer shape and number of threads in `key`. */
    int32_t key[5];
    peg_attention_item *items;
    int64_t num_items, room, num_parts, num_groups;
    int32_t most_queries; /* of an item */
    int32_t part_queries; /* of an item that is a chunk */
} peg_attention_plan;

typedef struct {
    const peg_attention_plan *plan;
    const peg_attention_layer *layer;
    const void *q, *k, *v;
    void *out;
    int64_t q_stride, k_stride, v_stride; /* of a token */
    void *k_cache, *v_cache;
    float *k_scale, *v_scale;
    int64_t page_stride, token_stride, head_stride; /* of the cache, head_dim excluded: times head_dim in its tensors */
    float *parts;
    int64_t part_stride;
    _Atomic int32_t *pending; /* [group, kv head] */
    _Atomic int failed;
    int products;
} peg_attention_call;

/* How products of bfloat16 with bfloat16 are computed where many queries are: widened, by pairs, or by a matrix unit. */
enum { PEG_FLOATS = 0, PEG_PAIRS = 1, PEG_MATRIX = 2 };
int peg_attention_products(void);

/* Whether assemblers that come with this compiler know the matrix unit. */
#if defined(__clang__)
#define PEG_MATRIX_UNIT (__clang_major__ >= 12)
#else
#define PEG_MATRIX_UNIT (__GNUC__ >= 11)
#endif

PEG_INLINE int peg_item_size(int type) { return type == PEG_F32 ? 4 : type == PEG_I8 ? 1 : 2; }

/* Element type of the keys that are read. */
PEG_INLINE int peg_key_type(const peg_attention_call *call) {
    return call->plan->table ? call->layer->cache_type : call->layer->type;
}

/* Keys of a chunk: results are those of chunks, joined in order, so that they do not depend on who computes a chunk. */
PEG_DECLARE(int32_t, peg_attention_chunk, (int32_t queries, int32_t head_dim))
/* Floats of scratch memory that a thread needs, and of a part. */
PEG_DECLARE(int64_t, peg_attention_need, (const peg_attention_call *call))
PEG_DECLARE(int64_t, peg_attention_part, (const peg_attention_call *call))
/* Write keys and values of rows first … end - 1 into the cache. */
PEG_DECLARE(void, peg_attention_write, (const peg_attention_call *call, int64_t first, int64_t end))
/* Compute an item for one kv head. */
PEG_DECLARE(void, peg_attention_compute,
            (const peg_attention_call *call, const peg_attention_item *item, int32_t head, float *scratch))
/* Join the parts of an item's chunks and write the result. */
PEG_DECLARE(void, peg_attention_join,
            (const peg_attention_call *call, const peg_attention_item *item, int32_t head, float *scratch))

#endif
