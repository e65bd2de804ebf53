/* Products with a matrix of weights: the inner loops.
 *
 * Every output is a dot product along k in lanes: lane l adds elements l, l + VL, l + 2 VL … in this order; after every KBLOCK elements the
 * lanes are added, in one order, to the output's sum. Whatever tile computes it, a row of x gives the same bits alone and among others.
 *
 * x is prepared once a call: float32, padded with zeros; for bfloat16 weights in pairs of vectors of even and odd elements, as these are cut
 * out of their memory with one instruction each. Few rows of x read the weights as they lie. With many, the weights of a tile's rows are
 * widened into a panel first, which all rows of x then share. With AVX-512 BF16, bfloat16 x and weights are multiplied as they are.
 */
#include "linear.h"
#include "vec.h"

#define PANEL 24    /* rows of weights that are widened at once */
#define KBLOCK 1024 /* so many elements of a tile's rows fit the first cache, and of a panel and its rows of x the second */
#define MOST_ROWS 64

#if VL == 16
#define MR 6
#define NR 4
#define FEW 12 /* rows of x up to which weights are not widened: twice a tile's, the second finding them in the first cache */
#elif VL == 8
#define MR 4
#define NR 3
#define FEW 8
#else
#define MR 2
#define NR 3
#define FEW 4
#endif

#ifdef PEG_ISA_AVX512BF16
#define DOTS(matrix) ((matrix)->type == PEG_BF16 && (matrix)->x_type == PEG_BF16)
#else
#define DOTS(matrix) 0
#endif

static int64_t padded(int64_t k) { return (k + 2 * VL - 1) / (2 * VL) * (2 * VL); }

int64_t PEG_NAME(peg_linear_row_bytes)(const peg_matrix *matrix) { return padded(matrix->k) * (DOTS(matrix) ? 2 : 4); }

int PEG_NAME(peg_linear_direct)(const peg_matrix *matrix) {
    if (matrix->k % (2 * VL) != 0) return 0;
    return DOTS(matrix) || (matrix->x_type == PEG_F32 && matrix->type != PEG_BF16);
}

int64_t PEG_NAME(peg_linear_panel_bytes)(const peg_matrix *matrix, int64_t m) {
    return DOTS(matrix) || m <= FEW || matrix->type == PEG_F32 ? 0 : PANEL * KBLOCK * 4;
}

/* Asks for memory that is needed soon, in the order of its addresses. Several rows that are read side by side lie in one page: processors
 * guess where reading goes on by page, and guess nothing there. Into the second cache, which takes more requests at a time than the first. */
PEG_INLINE void fetch(const int bytes, const char *p) {
#pragma GCC unroll 8
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* One row to float32, `count` elements and zeros up to the padded length; in pairs or in order. */
PEG_INLINE void widen(int type, int pairs, const void *row, int64_t count, float *out) {
    int64_t k = 0;
    for (; k + 2 * VL <= count; k += 2 * VL) {
        vf a, b;
        if (type != PEG_F32) fetch(2 * VL * (int)size_of(type), (const char *)at(type, row, k) + 2048);
        if (pairs && type == PEG_BF16) {
            vf_pair_bf16(at(type, row, k), &a, &b);
        } else if (pairs) {
            float part[2 * VL];
            for (int i = 0; i < VL; i++) {
                part[i] = load_as(type, row, k + 2 * i);
                part[VL + i] = load_as(type, row, k + 2 * i + 1);
            }
            a = vf_load(part);
            b = vf_load(part + VL);
        } else {
            a = vf_load_as(type, at(type, row, k));
            b = vf_load_as(type, at(type, row, k + VL));
        }
        vf_store(out + k, a);
        vf_store(out + k + VL, b);
    }
    if (k < count) {
        float *part = out + k;
        for (int i = 0; i < 2 * VL; i++) part[i] = 0;
        for (int i = 0; i < count - k; i++) part[pairs ? (i & 1) * VL + i / 2 : i] = load_as(type, row, k + i);
    }
}

void PEG_NAME(peg_linear_prepare)(const peg_matrix *matrix, const void *x, int64_t x_stride, int64_t rows, void *prepared) {
    int64_t k = matrix->k, length = padded(k);
    int pairs = matrix->type == PEG_BF16;
    for (int64_t i = 0; i < rows; i++) {
        const void *row = at(matrix->x_type, x, i * x_stride);
        if (DOTS(matrix)) {
            uint16_t *out = (uint16_t *)prepared + i * length;
            memcpy(out, row, (size_t)k * 2);
            memset(out + k, 0, (size_t)(length - k) * 2);
            continue;
        }
        float *out = (float *)prepared + i * length;
        if (matrix->x_type == PEG_F32) widen(PEG_F32, pairs, row, k, out);
        else if (matrix->x_type == PEG_BF16) widen(PEG_BF16, pairs, row, k, out);
        else widen(PEG_F16, pairs, row, k, out);
    }
}

/* Adds the lanes of total[i][j] to sums[i][j]. */
PEG_INLINE void gather(const int mr, const int nr, vf total[8][8], float sums[][PANEL]) {
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < nr; j += 4) {
            float part[4];
            vf none = vf_zero();
            vf_sums(total[i][j], j + 1 < nr ? total[i][j + 1] : none, j + 2 < nr ? total[i][j + 2] : none, j + 3 < nr ? total[i][j + 3] : none, part);
            for (int c = 0; c < 4 && j + c < nr; c++) sums[i][j + c] += part[c];
        }
    }
}

/* Adds to sums[i][j] the products of rows i < mr of x and rows j < nr of float32 weights. */
PEG_INLINE void tile_f32(const int mr, const int nr, const float *x, int64_t x_row, const float *w, int64_t w_row, int64_t k, float sums[][PANEL]) {
    vf total[8][8];
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nr; j++) total[i][j] = vf_zero();
    for (int64_t p = 0; p < k; p += VL) {
        vf b[8];
#pragma GCC unroll 8
        for (int j = 0; j < nr; j++) b[j] = vf_load(w + j * w_row + p);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            vf a = vf_load(x + i * x_row + p);
#pragma GCC unroll 8
            for (int j = 0; j < nr; j++) total[i][j] = vf_fma(a, b[j], total[i][j]);
        }
    }
    gather(mr, nr, total, sums);
}

/* The same from weights as they lie: their first k elements, which are whole pairs of vectors; then a last pair from `tail`, where the end of
 * each row lies with zeros behind it, unless that is NULL. */
PEG_INLINE void tile_as(const int type, const int mr, const int nr, const float *x, int64_t x_row, const void *w, int64_t stride, int64_t k,
                        const void *tail, float sums[][PANEL]) {
    vf total[8][8];
    for (int64_t start = 0, end; start < k || tail; start = end) {
        const void *base = at(type, w, start);
        end = k - start < KBLOCK ? k : start + KBLOCK;
        for (int i = 0; i < mr; i++)
            for (int j = 0; j < nr; j++) total[i][j] = vf_zero();
        for (int64_t step = stride, count = end - start;;) {
            for (int64_t p = 0; p < count; p += 2 * VL) {
                fetch(nr * 2 * VL * (int)size_of(type), (const char *)w + nr * (int64_t)size_of(type) * (stride + start + p));
#pragma GCC unroll 8
                for (int j = 0; j < nr; j++) {
                    const void *row = at(type, base, j * step + p);
                    vf a, b;
                    if (type == PEG_BF16) {
                        vf_pair_bf16(row, &a, &b);
                    } else {
                        a = vf_load_as(type, row);
                        b = vf_load_as(type, at(type, row, VL));
                    }
#pragma GCC unroll 8
                    for (int i = 0; i < mr; i++) {
                        total[i][j] = vf_fma(a, vf_load(x + i * x_row + p), total[i][j]);
                        total[i][j] = vf_fma(b, vf_load(x + i * x_row + p + VL), total[i][j]);
                    }
                }
            }
            x += count;
            /* The tail belongs to the last block, which is not a whole one. */
            if (tail == NULL || end - start == KBLOCK || base == tail) break;
            base = tail;
            step = count = 2 * VL;
        }
        if (base == tail) tail = NULL;
        gather(mr, nr, total, sums);
    }
}

#ifdef PEG_ISA_AVX512BF16
/* The same by products of bfloat16 pairs. */
PEG_INLINE void tile_dots(const int mr, const int nr, const uint16_t *x, int64_t x_row, const uint16_t *w, int64_t stride, int64_t k,
                          const uint16_t *tail, float sums[][PANEL]) {
    vf total[8][8];
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nr; j++) total[i][j] = vf_zero();
    for (int64_t end = k;; end = k + 32, w = tail, stride = 32, x += k) {
        for (int64_t p = 0; p < (end == k ? k : 32); p += 32) {
            __m512bh b[8];
            fetch(nr * 64, (const char *)w + nr * 2 * (stride + p));
#pragma GCC unroll 8
            for (int j = 0; j < nr; j++) b[j] = (__m512bh)_mm512_loadu_si512(w + j * stride + p);
#pragma GCC unroll 8
            for (int i = 0; i < mr; i++) {
                __m512bh a = (__m512bh)_mm512_loadu_si512(x + i * x_row + p);
#pragma GCC unroll 8
                for (int j = 0; j < nr; j++) total[i][j] = _mm512_dpbf16_ps(total[i][j], a, b[j]);
            }
        }
        if (end != k || tail == NULL) break;
    }
    gather(mr, nr, total, sums);
}
#endif

/* Scale, bias, rounding: sums [m][count] to columns n … of out. */
PEG_INLINE void finish_as(const int type, const peg_matrix *matrix, float sums[][PANEL], int64_t m, int64_t count, int64_t n, void *out) {
    const float *scales = matrix->scales ? matrix->scales + n : NULL;
    const void *bias = matrix->bias ? at(type, matrix->bias, n) : NULL;
    for (int64_t i = 0; i < m; i++) {
        void *row = at_out(type, out, i * matrix->n + n);
        int64_t j = 0;
        for (; j + VL <= count; j += VL) {
            vf y = vf_load(sums[i] + j);
            if (scales) y = vf_mul(y, vf_load(scales + j));
            if (bias) y = vf_add(y, vf_load_as(type, at(type, bias, j)));
            vf_store_as(type, at_out(type, row, j), y);
        }
        for (; j < count; j++) {
            float y = sums[i][j];
            if (scales) y *= scales[j];
            if (bias) y += load_as(type, bias, j);
            store_as(type, row, j, y);
        }
    }
}

static void finish(const peg_matrix *matrix, float sums[][PANEL], int64_t m, int64_t count, int64_t n, void *out) {
    switch (matrix->x_type) {
    case PEG_F32: finish_as(PEG_F32, matrix, sums, m, count, n, out); break;
    case PEG_BF16: finish_as(PEG_BF16, matrix, sums, m, count, n, out); break;
    default: finish_as(PEG_F16, matrix, sums, m, count, n, out); break;
    }
}

/* The last, incomplete pair of vectors of `n` rows of weights, each filled up with zeros; NULL when there is none. */
static const void *tails(const peg_matrix *matrix, const void *w, int64_t n, char *memory) {
    int64_t whole = matrix->k / (2 * VL) * (2 * VL);
    size_t size = size_of(matrix->type), row = 2 * VL * size;
    if (whole == matrix->k) return NULL;
    memset(memory, 0, (size_t)n * row);
    for (int64_t j = 0; j < n; j++)
        memcpy(memory + (size_t)j * row, (const char *)w + (size_t)(j * matrix->stride + whole) * size, (size_t)(matrix->k - whole) * size);
    return memory;
}

/* Tiles of every size that comes up, each a function of its own: one that held them all would keep the compiler busy for minutes. */
typedef void (*peg_tile)(const void *x, int64_t x_row, const void *w, int64_t stride, int64_t k, const void *tail, float (*sums)[PANEL]);

#define TILE(name, type, mr, nr)                                                                                           \
    static void name##_##mr##_##nr(const void *x, int64_t x_row, const void *w, int64_t stride, int64_t k, const void *tail,      \
                                   float (*sums)[PANEL]) {                                                                       \
        tile_as(type, mr, nr, x, x_row, w, stride, k, tail, sums);                                                         \
    }
#define DOT(name, type, mr, nr)                                                                                            \
    static void name##_##mr##_##nr(const void *x, int64_t x_row, const void *w, int64_t stride, int64_t k, const void *tail,      \
                                   float (*sums)[PANEL]) {                                                                       \
        tile_dots(mr, nr, x, x_row, w, stride, k, tail, sums);                                                             \
    }
#define WIDE(name, type, mr, nr)                                                                                           \
    static void name##_##mr##_##nr(const void *x, int64_t x_row, const void *w, int64_t stride, int64_t k, const void *tail,      \
                                   float (*sums)[PANEL]) {                                                                       \
        (void)tail;                                                                                                               \
        tile_f32(mr, nr, x, x_row, w, stride, k, sums);                                                                           \
    }

#if MR == 6
#define ROWS_OF(make, name, type, nr) \
    make(name, type, 1, nr) make(name, type, 2, nr) make(name, type, 3, nr) make(name, type, 4, nr) make(name, type, 5, nr) make(name, type, 6, nr)
#define NAMES_OF(name, nr) {name##_1_##nr, name##_2_##nr, name##_3_##nr, name##_4_##nr, name##_5_##nr, name##_6_##nr}
#elif MR == 4
#define ROWS_OF(make, name, type, nr) make(name, type, 1, nr) make(name, type, 2, nr) make(name, type, 3, nr) make(name, type, 4, nr)
#define NAMES_OF(name, nr) {name##_1_##nr, name##_2_##nr, name##_3_##nr, name##_4_##nr}
#else
#define ROWS_OF(make, name, type, nr) make(name, type, 1, nr) make(name, type, 2, nr)
#define NAMES_OF(name, nr) {name##_1_##nr, name##_2_##nr}
#endif
#if NR == 4
#define COLUMNS_OF(make, name, type) ROWS_OF(make, name, type, 4) ROWS_OF(make, name, type, 1)
#define BOTH_OF(name) {NAMES_OF(name, 4), NAMES_OF(name, 1)}
#else
#define COLUMNS_OF(make, name, type) ROWS_OF(make, name, type, 3) ROWS_OF(make, name, type, 1)
#define BOTH_OF(name) {NAMES_OF(name, 3), NAMES_OF(name, 1)}
#endif

COLUMNS_OF(TILE, f32, PEG_F32)
COLUMNS_OF(TILE, bf16, PEG_BF16)
COLUMNS_OF(TILE, f16, PEG_F16)
COLUMNS_OF(TILE, i8, PEG_I8)
COLUMNS_OF(WIDE, wide, PEG_F32)
TILE(f32, PEG_F32, 1, 8)
TILE(bf16, PEG_BF16, 1, 8)
TILE(f16, PEG_F16, 1, 8)
TILE(i8, PEG_I8, 1, 8)

/* By type, in order of their numbers; then width NR or 1; then rows. */
static const peg_tile tiles[4][2][MR] = {BOTH_OF(f32), BOTH_OF(bf16), BOTH_OF(f16), BOTH_OF(i8)};
static const peg_tile single[4] = {f32_1_8, bf16_1_8, f16_1_8, i8_1_8};
static const peg_tile wide[2][MR] = BOTH_OF(wide);
#ifdef PEG_ISA_AVX512BF16
COLUMNS_OF(DOT, dot, PEG_BF16)
DOT(dot, PEG_BF16, 1, 8)
static const peg_tile dots[2][MR] = BOTH_OF(dot);
#endif

/* From weights as they lie: the rows of a tile of weights stay in the first cache while all rows of x pass. */
static void block(const peg_matrix *matrix, const char *x, int64_t row_bytes, int64_t m, int64_t n0, int64_t n1, void *out) {
    int64_t whole = matrix->k / (2 * VL) * (2 * VL), x_row = row_bytes / (DOTS(matrix) ? 2 : 4);
    const peg_tile(*table)[MR] = tiles[matrix->type];
    peg_tile one = single[matrix->type];
    char memory[8 * 2 * VL * 4];
    float sums[MOST_ROWS + MR][PANEL];
#ifdef PEG_ISA_AVX512BF16
    if (DOTS(matrix)) {
        table = dots;
        one = dot_1_8;
    }
#endif
    for (int64_t n = n0; n < n1; n += PANEL) {
        int64_t count = n1 - n < PANEL ? n1 - n : PANEL;
        memset(sums, 0, (size_t)m * sizeof sums[0]);
        for (int64_t j = 0; j < count;) {
            int width = m == 1 ? 8 : NR;
            if (count - j < width) width = 1;
            const void *w = at(matrix->type, matrix->weights, (n + j) * matrix->stride);
            const void *tail = tails(matrix, w, width, memory);
            for (int64_t i = 0; i < m; i += MR) {
                int64_t rows = m - i < MR ? m - i : MR;
                peg_tile tile = width == 8 ? one : table[width == 1][rows - 1];
                tile(x + i * row_bytes, x_row, w, matrix->stride, whole, tail, (float(*)[PANEL])(&sums[i][j]));
            }
            j += width;
        }
        finish(matrix, sums, m, count, n, out);
    }
}

static void widen_part(const peg_matrix *matrix, int64_t n, int64_t start, int64_t count, float *out) {
    const void *row = at(matrix->type, matrix->weights, n * matrix->stride + start);
    switch (matrix->type) {
    case PEG_BF16: widen(PEG_BF16, 1, row, count, out); break;
    case PEG_F16: widen(PEG_F16, 0, row, count, out); break;
    default: widen(PEG_I8, 0, row, count, out); break;
    }
}

/* Widened first. */
static void block_panel(const peg_matrix *matrix, const char *x, int64_t row_bytes, int64_t m, int64_t n0, int64_t n1, float *panel, void *out) {
    int64_t x_row = row_bytes / 4;
    float sums[MOST_ROWS + MR][PANEL];
    for (int64_t n = n0; n < n1; n += PANEL) {
        int64_t count = n1 - n < PANEL ? n1 - n : PANEL;
        memset(sums, 0, (size_t)m * sizeof sums[0]);
        for (int64_t start = 0; start < matrix->k; start += KBLOCK) {
            int64_t part = matrix->k - start < KBLOCK ? matrix->k - start : KBLOCK, length = padded(part);
            for (int64_t j = 0; j < count; j++) widen_part(matrix, n + j, start, part, panel + j * length);
            for (int64_t i = 0; i < m; i += MR) {
                int64_t rows = m - i < MR ? m - i : MR;
                const float *first = (const float *)(x + i * row_bytes) + start;
                for (int64_t j = 0; j < count;) {
                    int width = count - j < NR ? 1 : NR;
                    wide[width == 1][rows - 1](first, x_row, panel + j * length, length, length, NULL, (float(*)[PANEL])(&sums[i][j]));
                    j += width;
                }
            }
        }
        finish(matrix, sums, m, count, n, out);
    }
}

void PEG_NAME(peg_linear_block)(const peg_matrix *matrix, const void *prepared, int64_t row_bytes, int64_t m, int64_t n0, int64_t n1, void *panel,
                                void *out) {
    if (panel) {
        block_panel(matrix, prepared, row_bytes, m, n0, n1, panel, out);
        return;
    }
    block(matrix, prepared, row_bytes, m, n0, n1, out);
}
