/* Attention: plans, the work of a call, and its threads. */
#include "attention.h"

#include <stdatomic.h>
#include <stdlib.h>

#define TILE_QUERIES 64
#define MOST_ROWS 512
#define MOST_SIZE 1024

PEG_API peg_attention_plan *peg_attention_plan_new(void);
PEG_API void peg_attention_plan_free(peg_attention_plan *plan);
PEG_API int peg_attention_plan_set(peg_attention_plan *plan, int32_t count, const int32_t *queries, const int32_t *lens, int64_t rows,
                                   const int32_t *table, int64_t table_rows, int64_t table_width, const int32_t *table_row,
                                   const int64_t *slots, int32_t page_size, int32_t order, int64_t *at);
PEG_API int peg_attention(peg_attention_plan *plan, const peg_attention_layer *layer, const void *q, int64_t q_stride, const void *k,
                          int64_t k_stride, const void *v, int64_t v_stride, void *out, void *k_cache, void *v_cache, float *k_scale,
                          float *v_scale, int64_t num_pages);

/* What peg_attention_plan_set finds wrong; `at` is where. plan.py has the words. */
enum { BAD_MEMORY = -1, BAD_QUERIES = -2, BAD_LENGTH = -3, BAD_ROWS = -4, BAD_TABLE_ROW = -5, BAD_WIDTH = -6, BAD_PAGE = -7, BAD_SLOT = -8,
       BAD_CACHE = -9 };

peg_attention_plan *peg_attention_plan_new(void) { return calloc(1, sizeof(peg_attention_plan)); }

static void forget(peg_attention_plan *plan) {
    free(plan->starts);
    free(plan->lens);
    free(plan->rows);
    plan->starts = plan->lens = plan->rows = NULL;
    plan->count = 0;
    plan->key[0] = 0;
}

void peg_attention_plan_free(peg_attention_plan *plan) {
    if (plan == NULL) return;
    forget(plan);
    free(plan->items);
    free(plan);
}

static int check_pages(peg_attention_plan *plan, int64_t table_rows, int64_t table_width, int64_t *at) {
    for (int32_t i = 0; i < plan->count; i++) {
        int64_t pages = ((int64_t)plan->lens[i] + plan->page_size - 1) / plan->page_size;
        *at = i;
        if (plan->rows[i] < 0 || plan->rows[i] >= table_rows) return BAD_TABLE_ROW;
        if (pages > table_width) return BAD_WIDTH;
        const int32_t *row = plan->table + plan->rows[i] * table_width;
        for (int64_t j = 0; j < pages; j++) {
            if (row[j] < 0) return BAD_PAGE;
            if (row[j] > plan->most_page) plan->most_page = row[j];
        }
    }
    for (int64_t t = 0; t < plan->starts[plan->count]; t++) {
        *at = t;
        if (plan->slots[t] < 0) return BAD_SLOT;
        if (plan->slots[t] > plan->most_slot) plan->most_slot = plan->slots[t];
    }
    return 0;
}

/* Make `plan` one for another batch. queries: [count] new tokens of each sequence. rows: of q. table: [table_rows, table_width], or NULL.
 * table_row: [count] row of each sequence, NULL for 0 … count - 1. Lengths are copied; table and slots must live as long as the plan. */
int peg_attention_plan_set(peg_attention_plan *plan, int32_t count, const int32_t *queries, const int32_t *lens, int64_t rows,
                           const int32_t *table, int64_t table_rows, int64_t table_width, const int32_t *table_row, const int64_t *slots,
                           int32_t page_size, int32_t order, int64_t *at) {
    forget(plan);
    plan->starts = malloc(sizeof(int32_t) * ((size_t)count + 1));
    plan->lens = malloc(sizeof(int32_t) * ((size_t)count + 1));
    plan->rows = malloc(sizeof(int32_t) * ((size_t)count + 1));
    if (!plan->starts || !plan->lens || !plan->rows) return BAD_MEMORY;
    int64_t total = 0;
    for (int32_t i = 0; i < count; i++) {
        *at = i;
        if (queries[i] < 0) return BAD_QUERIES;
        if (lens[i] < queries[i] || lens[i] > INT32_MAX / 4 || (table == NULL && lens[i] != queries[i])) return BAD_LENGTH;
        plan->starts[i] = (int32_t)total;
        plan->lens[i] = lens[i];
        plan->rows[i] = table_row ? table_row[i] : i;
        total += queries[i];
        if (total > INT32_MAX / 4) return BAD_ROWS;
    }
    *at = total;
    if (rows >= 0 && rows != total) return BAD_ROWS;
    plan->starts[count] = (int32_t)total;
    plan->count = count;
    plan->page_size = page_size;
    plan->order = order;
    plan->table = table;
    plan->table_stride = table_width;
    plan->slots = slots;
    plan->most_page = 0;
    plan->most_slot = 0;
    int wrong = table ? check_pages(plan, table_rows, table_width, at) : 0;
    if (wrong) plan->count = 0;
    return wrong;
}

static int add(peg_attention_plan *plan, peg_attention_item item) {
    if (plan->num_items == plan->room) {
        int64_t room = plan->room ? 2 * plan->room : 64;
        peg_attention_item *items = realloc(plan->items, sizeof *items * (size_t)room);
        if (items == NULL) return BAD_MEMORY;
        plan->items = items;
        plan->room = room;
    }
    plan->items[plan->num_items++] = item;
    if (item.count > plan->most_queries) plan->most_queries = item.count;
    return 0;
}

/* Keys times queries: what an item costs. */
static double cost(const peg_attention_plan *plan, int32_t i, int32_t count) { return (double)plan->lens[i] * count; }

/* Cut the batch into items: small enough that all threads get about the same, and no smaller. Results do not depend on the cut. */
static int divide(peg_attention_plan *plan, const peg_attention_layer *layer, int threads) {
    int32_t shared = layer->num_heads / layer->num_kv_heads;
    int32_t key[5] = {1 + layer->causal, shared, layer->num_kv_heads, layer->head_dim, threads * 8 + peg_isa()};
    if (memcmp(key, plan->key, sizeof key) == 0) return 0;
    memcpy(plan->key, key, sizeof key);
    plan->num_items = plan->num_parts = plan->num_groups = plan->part_queries = 0;
    plan->most_queries = 1;
    int32_t most = MOST_ROWS / shared < TILE_QUERIES ? MOST_ROWS / shared : TILE_QUERIES;
    if (most < 1) most = 1;
    double all = 0;
    for (int32_t i = 0; i < plan->count; i++) all += cost(plan, i, plan->starts[i + 1] - plan->starts[i]);
    double fair = all / (threads > 1 ? 3.0 * threads : 1) * layer->num_kv_heads;
    for (int32_t i = plan->count - 1; i >= 0; i--) { /* prompts, which cost most, stand behind decodes */
        int32_t queries = plan->starts[i + 1] - plan->starts[i], size = most;
        if (queries == 0) continue;
        while (size > 16 && cost(plan, i, size < queries ? size : queries) > fair) size /= 2;
        int32_t chunk = PEG_PICK(peg_attention_chunk)(queries, layer->head_dim), chunks = (plan->lens[i] + chunk - 1) / chunk;
        int split = chunks > 1 && cost(plan, i, size < queries ? size : queries) > fair;
        for (int32_t first = (queries - 1) / size * size; first >= 0; first -= size) {
            peg_attention_item item = {i, first, queries - first < size ? queries - first : size, -1, 0, 0, 0};
            if (!split) {
                if (add(plan, item)) return BAD_MEMORY;
                continue;
            }
            /* A causal item's last query sees no key behind it. */
            int32_t last = layer->causal ? plan->lens[i] - queries + first + item.count - 1 : plan->lens[i] - 1;
            item.chunks = last / chunk + 1;
            item.part = (int32_t)plan->num_parts;
            item.group = (int32_t)plan->num_groups++;
            plan->num_parts += item.chunks;
            if (item.count > plan->part_queries) plan->part_queries = item.count;
            for (item.chunk = 0; item.chunk < item.chunks; item.chunk++)
                if (add(plan, item)) return BAD_MEMORY;
        }
    }
    return 0;
}

static void compute(void *context, int64_t i, int thread) {
    peg_attention_call *call = context;
    const peg_attention_plan *plan = call->plan;
    int32_t kv_heads = call->layer->num_kv_heads, head = (int32_t)(i % kv_heads);
    const peg_attention_item *item = plan->items + i / kv_heads;
    (void)thread;
    int64_t need = PEG_PICK(peg_attention_need)(call), part = PEG_PICK(peg_attention_part)(call);
    float *scratch = peg_scratch(PEG_SCRATCH_ATTENTION_THREAD, sizeof(float) * (size_t)(need > part ? need : part));
    if (scratch == NULL) {
        atomic_store(&call->failed, 1);
        return;
    }
    PEG_PICK(peg_attention_compute)(call, item, head, scratch);
    if (item->chunk < 0) return;
    /* Whoever computes the last chunk joins them all. */
    if (atomic_fetch_sub_explicit(&call->pending[item->group * kv_heads + head], 1, memory_order_acq_rel) == 1)
        PEG_PICK(peg_attention_join)(call, item, head, scratch);
}

#define WRITE_ROWS 32

static void write_rows(void *context, int64_t i, int thread) {
    const peg_attention_call *call = context;
    int64_t rows = call->plan->starts[call->plan->count], end = (i + 1) * WRITE_ROWS;
    (void)thread;
    PEG_PICK(peg_attention_write)(call, i * WRITE_ROWS, end < rows ? end : rows);
}

/* Write k and v of the plan's rows into the cache, if it has one, then attend. q, out: [T, num_heads, head_dim], out contiguous; k, v:
 * [T, num_kv_heads, head_dim]; strides are those of a token. Scales only with an int8 cache. Returns 0, BAD_MEMORY, or BAD_CACHE when
 * pages or slots of the plan lie outside the cache. */
int peg_attention(peg_attention_plan *plan, const peg_attention_layer *layer, const void *q, int64_t q_stride, const void *k,
                  int64_t k_stride, const void *v, int64_t v_stride, void *out, void *k_cache, void *v_cache, float *k_scale,
                  float *v_scale, int64_t num_pages) {
    int threads = peg_threads();
    peg_attention_call call = {.plan = plan, .layer = layer, .q = q, .k = k, .v = v, .out = out, .q_stride = q_stride, .k_stride = k_stride,
                               .v_stride = v_stride, .k_cache = k_cache, .v_cache = v_cache, .k_scale = k_scale, .v_scale = v_scale,
                               .products = peg_attention_products()};
    int64_t rows = plan->starts ? plan->starts[plan->count] : 0, kv_heads = layer->num_kv_heads;
    if (rows == 0) return 0;
    if (divide(plan, layer, threads)) return BAD_MEMORY;
    if (plan->table) {
        if (plan->most_page >= num_pages || plan->most_slot / plan->page_size >= num_pages) return BAD_CACHE;
        call.page_stride = kv_heads * plan->page_size;
        call.token_stride = plan->order ? 1 : kv_heads;
        call.head_stride = plan->order ? plan->page_size : 1;
        peg_for(rows <= 2 * WRITE_ROWS ? 1 : threads, (rows + WRITE_ROWS - 1) / WRITE_ROWS, write_rows, &call);
    }
    if (plan->num_groups) {
        call.part_stride = PEG_PICK(peg_attention_part)(&call);
        size_t counters = (size_t)(plan->num_groups * kv_heads) * sizeof(int32_t), before = (counters + 63) & ~(size_t)63;
        char *shared = peg_scratch(PEG_SCRATCH_ATTENTION, before + sizeof(float) * (size_t)(plan->num_parts * kv_heads * call.part_stride));
        if (shared == NULL) return BAD_MEMORY;
        call.pending = (_Atomic int32_t *)(void *)shared;
        call.parts = (float *)(void *)(shared + before);
        for (const peg_attention_item *item = plan->items; item < plan->items + plan->num_items; item++)
            if (item->chunk == 0)
                for (int64_t h = 0; h < kv_heads; h++) atomic_init(&call.pending[item->group * kv_heads + h], item->chunks);
    }
    peg_for(threads, plan->num_items * kv_heads, compute, &call);
    return atomic_load(&call.failed) ? BAD_MEMORY : 0;
}
