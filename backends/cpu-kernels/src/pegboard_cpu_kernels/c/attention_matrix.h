/* Blocks of 32 rows by the processor's matrix unit (AMX): sixteen rows of sixteen pairs, times sixteen rows of sixteen pairs.
 *
 * The layout is that of paired products. Written as assembly, so that it takes no compiler flag; only processors that have the unit, and a
 * process that was allowed to use it (attention_products.c), come here. Sums are 2 x 2 tiles, 0 to 3; 4 and 5 are rows, 6 and 7 columns.
 */
#ifndef PEG_ATTENTION_MATRIX_H
#define PEG_ATTENTION_MATRIX_H

#define MATRIX_ROWS 32

#define TILE_LOAD(tile, from, floats) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(floats) * 4) : "memory")
#define TILE_STORE(tile, to, floats) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(floats) * 4) : "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define TILE_DOT(sum, rows, columns) __asm__ volatile("tdpbf16ps %%tmm" #columns ", %%tmm" #rows ", %%tmm" #sum ::: "memory")

static inline void matrix_begin(void) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(shape) : "memory");
}

static inline void matrix_end(void) { __asm__ volatile("tilerelease" ::: "memory"); }

/* Tiles 0 to 3 += a[32 rows, depth pairs] x b[depth][2 VL]. depth: a multiple of 16. */
INLINE void matrix_multiply(const float *a, int64_t a_stride, const float *b, int32_t depth) {
    for (int32_t i = 0; i < depth; i += 16) {
        TILE_LOAD(4, a + i, a_stride);
        TILE_LOAD(6, b + (int64_t)i * NR, NR);
        TILE_LOAD(7, b + (int64_t)i * NR + 16, NR);
        TILE_LOAD(5, a + 16 * a_stride + i, a_stride);
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
}

INLINE void matrix_store(float *out, int64_t stride) {
    TILE_STORE(0, out, stride);
    TILE_STORE(1, out + 16, stride);
    TILE_STORE(2, out + 16 * stride, stride);
    TILE_STORE(3, out + 16 * stride + 16, stride);
}

/* As row_block, for 32 rows. */
static inline void matrix_block(const peg_attention_call *call, const peg_attention_item *item, const logit_rule *rule,
                                const tile_room *room, int32_t r, int32_t n, int32_t start, int32_t count, float *part) {
    int32_t width = padded_dim(call), depth = call->layer->head_dim / 2, row = width / 2, first[MATRIX_ROWS], last[MATRIX_ROWS];
    int32_t used = columns_seen(MATRIX_ROWS, call, item, r, start, count, first, last), columns = round_up(used, NR);
    if (used == 0) return;
    for (int32_t j = 0; j < columns; j += NR) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
        matrix_multiply(room->q + (int64_t)r * row, row, room->keys + (int64_t)j * row, depth);
        matrix_store(room->weights + j, TILE);
    }
    float factors[MOST_BLOCK];
    soften_rows(MATRIX_ROWS, rule, room->weights, columns, first, last, part + r, part + n + r, factors);
    float *values = part + 2 * n + (int64_t)r * width;
    for (int i = 0; i < MATRIX_ROWS; i++) {
        narrow(PEG_BF16, room->weights + i * TILE, room->pairs + i * (TILE / 2), columns);
        if (factors[i] == 1.0f) continue;
        for (int32_t d = 0; d < width; d += VL) v_store(values + i * width + d, v_load(values + i * width + d) * v_set(factors[i]));
    }
    for (int32_t d = 0; d < width; d += NR) {
        TILE_LOAD(0, values + d, width);
        TILE_LOAD(1, values + d + 16, width);
        TILE_LOAD(2, values + 16 * (int64_t)width + d, width);
        TILE_LOAD(3, values + 16 * (int64_t)width + d + 16, width);
        matrix_multiply(room->pairs, TILE / 2, room->values + (int64_t)d * (TILE / 2), columns / 2);
        matrix_store(values + d, width);
    }
}

#endif
