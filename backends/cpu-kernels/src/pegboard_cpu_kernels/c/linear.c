/* Products with a matrix of weights: how the work is cut for the threads. */
#include "linear.h"

/* Outputs of one chunk: a multiple of every tile's width. */
#define STEP 24
/* Rows of x that are worked on together, at most: their prepared form stays in a core's own cache. linear_isa.c has this number too. */
#define ROWS 64
/* Bytes of prepared x that are held at once. */
#define MOST_BYTES ((int64_t)16 << 20)
/* Chunks of a thread. */
#define PIECES 12
/* With fewer multiplications a call stays on one thread. */
#define FEW ((int64_t)1 << 15)

typedef struct {
    const peg_matrix *matrix;
    const char *x;
    char *prepared, *out;
    int64_t m, x_stride, x_row, row_bytes, out_row; /* x_row, out_row: bytes */
    int64_t columns, width;                         /* chunks beside each other, and outputs of each */
    int64_t panel_bytes;
    int failed;
} peg_product;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void prepare(void *context, int64_t i, int thread) {
    const peg_product *p = context;
    int64_t row = i * ROWS;
    (void)thread;
    PEG_PICK(peg_linear_prepare)
    (p->matrix, p->x + row * p->x_row, p->x_stride, least(ROWS, p->m - row), p->prepared + row * p->row_bytes);
}

static void multiply(void *context, int64_t i, int thread) {
    peg_product *p = context;
    int64_t row = i / p->columns * ROWS, n0 = i % p->columns * p->width;
    void *panel = p->panel_bytes ? peg_scratch(PEG_SCRATCH_PANEL, (size_t)p->panel_bytes) : NULL;
    (void)thread;
    if (p->panel_bytes && panel == NULL) {
        p->failed = 1;
        return;
    }
    PEG_PICK(peg_linear_block)
    (p->matrix, p->prepared + row * p->row_bytes, p->row_bytes, least(ROWS, p->m - row), n0, least(n0 + p->width, p->matrix->n), panel,
     p->out + row * p->out_row);
}

int peg_linear(const peg_matrix *matrix, const void *x, int64_t m, int64_t x_stride, void *out) {
    int size = matrix->x_type == PEG_F32 ? 4 : 2, threads = peg_threads();
    if (matrix->x_type < PEG_F32 || matrix->x_type > PEG_F16 || matrix->type < PEG_F32 || matrix->type > PEG_I8) return -1;
    if (m < 0 || matrix->n < 0 || matrix->k < 0 || (matrix->type == PEG_I8 && matrix->scales == NULL)) return -1;
    peg_product p = {.matrix = matrix, .x_stride = x_stride, .x_row = x_stride * size, .out_row = matrix->n * size};
    p.row_bytes = PEG_PICK(peg_linear_row_bytes)(matrix);
    int direct = PEG_PICK(peg_linear_direct)(matrix);
    int64_t part = MOST_BYTES / (p.row_bytes + 1) / ROWS * ROWS;
    if (part < ROWS) part = ROWS;
    for (int64_t start = 0; start < m; start += part) {
        p.m = least(part, m - start);
        p.x = (const char *)x + start * p.x_row;
        p.out = (char *)out + start * p.out_row;
        int64_t blocks = (p.m + ROWS - 1) / ROWS, work = p.m * matrix->n * matrix->k;
        int wanted = work < FEW ? 1 : threads;
        if (direct) {
            p.prepared = (char *)(uintptr_t)p.x;
            p.row_bytes = p.x_row;
        } else {
            p.prepared = peg_scratch(PEG_SCRATCH_X, (size_t)(p.m * p.row_bytes) + 64);
            if (p.prepared == NULL) return -2;
            peg_for(blocks > 1 ? wanted : 1, blocks, prepare, &p);
        }
        /* Chunks short enough that no thread waits long for another at the end, and long enough to stream. */
        int64_t pieces = wanted * (int64_t)PIECES / blocks + 1;
        p.width = ((matrix->n + pieces - 1) / pieces + STEP - 1) / STEP * STEP;
        p.columns = (matrix->n + p.width - 1) / p.width;
        p.panel_bytes = PEG_PICK(peg_linear_panel_bytes)(matrix, least(ROWS, p.m));
        peg_for(wanted, blocks * p.columns, multiply, &p);
        if (p.failed) return -2;
    }
    return 0;
}
