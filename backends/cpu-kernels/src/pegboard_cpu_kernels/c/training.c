/* Backward passes and losses: rows to threads. */
#include "training.h"

#include <math.h>

/* Elements that one chunk has at least. */
#define CHUNK 16384

typedef struct {
    const peg_norm *norm;
    int activation, type;
    const char *grad, *grad_total, *x;
    char *out;
    float *parts, *sums, *picked;
    const float *factor;
    const int64_t *targets;
    int64_t rows, span, inner, stride, size;
} work;

static int64_t bytes(int type, int64_t elements) { return elements * (type == PEG_F32 ? 4 : 2); }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int known(int type) { return type >= PEG_F32 && type <= PEG_F16; }

static int run(work *w, int64_t elements_of_row, peg_chunk chunk) {
    if (!w->span) w->span = elements_of_row > 0 && elements_of_row < CHUNK ? CHUNK / elements_of_row : 1;
    int64_t chunks = (w->rows + w->span - 1) / w->span;
    peg_for(chunks > 1 ? peg_threads() : 1, chunks, chunk, w);
    return 0;
}

#define FOR_ROWS(w, i) for (int64_t i = chunk * w->span, end = least(w->rows, i + w->span); i < end; i++)

static void norm_rows(void *context, int64_t chunk, int thread) {
    const work *w = context;
    int type = w->type;
    float *part = w->parts ? w->parts + chunk * w->size : 0;
    (void)thread;
    if (part) memset(part, 0, (size_t)w->size * sizeof *part);
    FOR_ROWS(w, i) {
        int64_t dense = bytes(type, i * w->size);
        const char *x = w->x + bytes(type, i / w->inner * w->stride + i % w->inner * w->size);
        PEG_PICK(peg_rms_backward_row)(w->norm, w->grad + dense, w->grad_total ? w->grad_total + dense : 0, x, w->out + dense, part);
    }
}

int peg_rms_norm_backward(const peg_norm *norm, const void *grad, const void *grad_total, const void *x, int64_t rows, int64_t inner, int64_t stride,
                          void *d_x, float *parts, int64_t count) {
    if (!known(norm->type) || inner < 1 || count < 1) return -1;
    work w = {.norm = norm, .type = norm->type, .grad = grad, .grad_total = grad_total, .x = x, .out = d_x, .parts = parts, .rows = rows,
              .span = (rows + count - 1) / count, .inner = inner, .stride = stride, .size = norm->size};
    /* A part without rows is nobody's. */
    if (parts) memset(parts, 0, (size_t)(count * norm->size) * sizeof *parts);
    return run(&w, norm->size, norm_rows);
}

static void gated_rows(void *context, int64_t chunk, int thread) {
    const work *w = context;
    int type = w->type;
    (void)thread;
    FOR_ROWS(w, i) {
        const char *gate = w->x + bytes(type, i * w->stride);
        char *out = w->out + bytes(type, 2 * i * w->size);
        PEG_PICK(peg_gated_backward_row)
        (w->activation, type, w->grad + bytes(type, i * w->size), gate, gate + bytes(type, w->size), w->size, out, out + bytes(type, w->size));
    }
}

int peg_gated_backward(int activation, int type, const void *grad, const void *gate_up, int64_t rows, int64_t width, int64_t stride, void *out) {
    if (!known(type)) return -1;
    work w = {.activation = activation, .type = type, .grad = grad, .x = gate_up, .out = out, .rows = rows, .stride = stride, .size = width};
    return run(&w, width * 4, gated_rows);
}

static void sums_rows(void *context, int64_t chunk, int thread) {
    const work *w = context;
    (void)thread;
    FOR_ROWS(w, i) {
        const char *row = w->x + bytes(w->type, i * w->stride);
        int64_t target = w->targets[i];
        w->sums[i] = PEG_PICK(peg_logits_norm)(w->type, row, w->size);
        w->picked[i] = 0;
        if (target < 0 || target >= w->size) continue;
        if (w->type == PEG_F32) w->picked[i] = ((const float *)row)[target];
        else {
            uint16_t value = ((const uint16_t *)row)[target];
            w->picked[i] = w->type == PEG_BF16 ? peg_bf16_to_f32(value) : peg_f16_to_f32(value);
        }
    }
}

int peg_logits_sums(int type, const void *logits, int64_t rows, int64_t columns, int64_t stride, const int64_t *targets, float *norm, float *picked) {
    if (!known(type) || columns < 1) return -1;
    work w = {.type = type, .x = logits, .targets = targets, .sums = norm, .picked = picked, .rows = rows, .stride = stride, .size = columns};
    return run(&w, columns, sums_rows);
}

static void slope_rows(void *context, int64_t chunk, int thread) {
    const work *w = context;
    (void)thread;
    FOR_ROWS(w, i)
    PEG_PICK(peg_logits_slope_row)
    (w->type, w->out + bytes(w->type, i * w->stride), w->size, w->targets[i], w->sums[i], w->factor ? w->factor[i] : 1.0f);
}

int peg_logits_slope(int type, void *logits, int64_t rows, int64_t columns, int64_t stride, const int64_t *targets, const float *norm,
                     const float *factor) {
    if (!known(type) || columns < 1) return -1;
    work w = {.type = type, .out = logits, .targets = targets, .sums = (float *)norm, .factor = factor, .rows = rows, .stride = stride, .size = columns};
    return run(&w, columns, slope_rows);
}

static void entropy_rows(void *context, int64_t chunk, int thread) {
    const work *w = context;
    FOR_ROWS(w, i) {
        /* While the row is in the cache. */
        work one = *w;
        float norm, picked;
        one.x = one.out = w->out + bytes(w->type, i * w->stride);
        one.targets = w->targets + i;
        one.sums = &norm;
        one.picked = &picked;
        one.rows = one.span = 1;
        sums_rows(&one, 0, thread);
        slope_rows(&one, 0, thread);
        w->sums[i] = picked - norm;
    }
}

int peg_cross_entropy(int type, void *logits, int64_t rows, int64_t columns, int64_t stride, const int64_t *targets, float *logps) {
    if (!known(type) || columns < 1) return -1;
    work w = {.type = type, .out = logits, .targets = targets, .sums = logps, .rows = rows, .stride = stride, .size = columns};
    return run(&w, columns, entropy_rows);
}
