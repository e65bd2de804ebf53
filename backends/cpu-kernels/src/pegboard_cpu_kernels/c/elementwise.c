/* Norms, gates and rotary positions: rows to threads. */
#include "elementwise.h"

/* Elements that one chunk has at least; a call of fewer stays on its thread. */
#define CHUNK 16384

typedef struct {
    const peg_norm *norm;
    peg_activation activation;
    int type;
    const char *a, *b, *c;
    char *out, *total;
    int64_t rows, part, inner, stride, size, heads, dim, width;
} peg_rows;

static int64_t bytes(int type, int64_t elements) { return elements * (type == PEG_F32 ? 4 : 2); }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int run(peg_rows *rows, int64_t elements_of_row, peg_chunk chunk) {
    if (rows->type < PEG_F32 || rows->type > PEG_F16) return -1;
    rows->part = elements_of_row > 0 && elements_of_row < CHUNK ? CHUNK / elements_of_row : 1;
    int64_t chunks = (rows->rows + rows->part - 1) / rows->part;
    peg_for(chunks > 1 ? peg_threads() : 1, chunks, chunk, rows);
    return 0;
}

#define FOR_ROWS(r, i) for (int64_t i = chunk * r->part, end = least(r->rows, i + r->part); i < end; i++)

static void norm_rows(void *context, int64_t chunk, int thread) {
    const peg_rows *r = context;
    (void)thread;
    FOR_ROWS(r, i) {
        const char *x = r->a + bytes(r->type, i / r->inner * r->stride + i % r->inner * r->size);
        PEG_PICK(peg_rms_row)(r->norm, x, r->out + bytes(r->type, i * r->size));
    }
}

int peg_rms_norm(const peg_norm *norm, const void *x, int64_t outer, int64_t inner, int64_t stride, void *out) {
    peg_rows rows = {.norm = norm, .type = norm->type, .a = x, .out = out, .rows = outer * inner, .inner = inner, .stride = stride, .size = norm->size};
    return run(&rows, norm->size, norm_rows);
}

static void add_norm_rows(void *context, int64_t chunk, int thread) {
    const peg_rows *r = context;
    (void)thread;
    FOR_ROWS(r, i) {
        int64_t offset = bytes(r->type, i * r->size);
        PEG_PICK(peg_add_rms_row)(r->norm, r->a + offset, r->b + offset, r->out + offset, r->total + offset);
    }
}

int peg_add_rms_norm(const peg_norm *norm, const void *x, const void *residual, int64_t rows_, void *out, void *total) {
    peg_rows rows = {.norm = norm, .type = norm->type, .a = x, .b = residual, .out = out, .total = total, .rows = rows_, .size = norm->size};
    return run(&rows, norm->size, add_norm_rows);
}

static void gated_rows(void *context, int64_t chunk, int thread) {
    const peg_rows *r = context;
    (void)thread;
    FOR_ROWS(r, i) {
        const char *gate = r->a + bytes(r->type, i * r->stride);
        PEG_PICK(peg_gated_row)
        (r->activation, r->type, gate, gate + bytes(r->type, r->size), r->size, r->out + bytes(r->type, i * r->size));
    }
}

int peg_gated(peg_activation activation, int type, const void *gate_up, int64_t rows_, int64_t width, int64_t stride, void *out) {
    peg_rows rows = {.activation = activation, .type = type, .a = gate_up, .out = out, .rows = rows_, .size = width, .stride = stride};
    /* An exponential and a division: worth more elements. */
    return run(&rows, width * 4, gated_rows);
}

static void rotary_rows(void *context, int64_t chunk, int thread) {
    const peg_rows *r = context;
    (void)thread;
    FOR_ROWS(r, i) {
        int64_t angles = bytes(r->type, i * r->width);
        PEG_PICK(peg_rotary_heads)
        (r->type, r->a + bytes(r->type, i * r->stride), r->heads, r->dim, r->width, r->b + angles, r->c + angles,
         r->out + bytes(r->type, i * r->heads * r->dim));
    }
}

int peg_rotary(int type, const void *x, int64_t tokens, int64_t heads, int64_t dim, int64_t width, int64_t stride, const void *cos,
               const void *sin, void *out) {
    if (width < 0 || width % 2 || width > dim) return -1;
    peg_rows rows = {.type = type, .a = x, .b = cos, .c = sin, .out = out, .rows = tokens, .stride = stride, .heads = heads, .dim = dim, .width = width};
    return run(&rows, heads * dim, rotary_rows);
}
