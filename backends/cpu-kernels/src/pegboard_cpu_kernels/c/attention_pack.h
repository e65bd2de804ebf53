/* Tiles of keys and values, laid out for products: strips of NR columns. `type` is a constant where these are inlined. */
#ifndef PEG_ATTENTION_PACK_H
#define PEG_ATTENTION_PACK_H

#include "attention_common.h"

#ifndef TILE
#define TILE 64
#endif

typedef struct {
    float *q, *keys, *values, *weights, *pairs, *part, *total, *key_scales, *value_scales;
    int64_t *key_places, *value_places;
} tile_room;

INLINE float one(int type, const char *p) {
    switch (type) {
    case PEG_BF16: return peg_bf16_to_f32(*(const uint16_t *)(const void *)p);
    case PEG_F16: return peg_f16_to_f32(*(const uint16_t *)(const void *)p);
    case PEG_I8: return (float)*(const int8_t *)p;
    default: return *(const float *)(const void *)p;
    }
}

#ifdef PEG_X86
INLINE __m256 eight(int type, const char *p) {
    switch (type) {
    case PEG_BF16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
    case PEG_F16: return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
    case PEG_I8: return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
    default: return _mm256_loadu_ps((const float *)(const void *)p);
    }
}

/* Eight rows of eight -> columns, `stride` floats apart. */
INLINE void transpose_eight(__m256 r[8], float *out, int64_t stride) {
    __m256 pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            quad[i + 2 * j] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0x44);
            quad[i + 2 * j + 1] = _mm256_shuffle_ps(pair[i + j], pair[i + j + 2], 0xee);
        }
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
    }
}
#endif

/* Keys at `places` -> strips of NR keys, in each head_dim rows of NR floats. Keys below `skip` and behind `count` become 0. */
INLINE void pack_keys(int type, const char *base, const tile_room *room, int32_t skip, int32_t count, int32_t dim, int32_t width) {
    int size = peg_item_size(type);
    for (int32_t start = 0; start < round_up(count, NR); start += NR) {
        float *strip = room->keys + (int64_t)start * width;
        int32_t j = 0;
#ifdef PEG_X86
        for (; j + 8 <= NR && start + j >= skip && start + j + 8 <= count; j += 8) {
            const int64_t *places = room->key_places + start + j;
            int32_t d = 0;
            for (; d + 8 <= dim; d += 8) {
                __m256 rows[8];
                for (int i = 0; i < 8; i++) {
                    rows[i] = eight(type, base + places[i] + d * size);
                    if (type == PEG_I8) rows[i] = _mm256_mul_ps(rows[i], _mm256_set1_ps(room->key_scales[start + j + i]));
                }
                transpose_eight(rows, strip + (int64_t)d * NR + j, NR);
            }
            for (; d < dim; d++)
                for (int i = 0; i < 8; i++)
                    strip[(int64_t)d * NR + j + i] =
                        one(type, base + places[i] + d * size) * (type == PEG_I8 ? room->key_scales[start + j + i] : 1.0f);
        }
#endif
        for (; j < NR; j++) {
            int there = start + j >= skip && start + j < count;
            float scale = type == PEG_I8 && there ? room->key_scales[start + j] : 1.0f;
            for (int32_t d = 0; d < dim; d++)
                strip[(int64_t)d * NR + j] = there ? one(type, base + room->key_places[start + j] + d * size) * scale : 0.0f;
        }
    }
}

/* Values at `places` -> strips of NR elements, in each TILE rows of NR floats. */
INLINE void pack_values(int type, const char *base, const tile_room *room, int32_t skip, int32_t count, int32_t dim, int32_t width) {
    int size = peg_item_size(type);
    for (int32_t j = 0; j < count; j++) {
        const char *row = base + room->value_places[j];
        float scale = type == PEG_I8 && j >= skip ? room->value_scales[j] : 1.0f;
        for (int32_t d = 0; d < width; d += VL) {
            float *out = room->values + (int64_t)(d / NR) * TILE * NR + j * NR + d % NR;
            if (j < skip || d >= dim) {
                v_store(out, v_set(0));
            } else if (d + VL <= dim) {
                vf x = v_load_as(type, row + d * size);
                if (type == PEG_I8) x = x * v_set(scale);
                v_store(out, x);
            } else {
                for (int32_t i = 0; i < VL; i++) out[i] = d + i < dim ? one(type, row + (d + i) * size) * scale : 0.0f;
            }
        }
    }
}

/* Values of bfloat16 -> strips of NR elements, in each TILE / 2 rows of NR pairs; keys below `skip` and behind `count` become 0. */
static inline void pair_values(const char *base, const tile_room *room, int32_t skip, int32_t count, int32_t dim, int32_t width) {
    uint32_t *out = (uint32_t *)(void *)room->values;
    for (int32_t j = 0; j < round_up(count, NR); j += 2) {
        uint32_t low_mask = j >= skip && j < count ? 0xffffu : 0, high_mask = j + 1 >= skip && j + 1 < count ? 0xffff0000u : 0;
        const uint16_t *low = (const uint16_t *)(const void *)(base + room->value_places[low_mask ? j : skip]);
        const uint16_t *high = (const uint16_t *)(const void *)(base + room->value_places[high_mask ? j + 1 : skip]);
        for (int32_t d = 0; d < width; d += NR) {
            uint32_t *strip = out + (int64_t)d * (TILE / 2) + j / 2 * NR;
            int32_t here = dim - d < NR ? dim - d : NR;
            for (int32_t i = 0; i < here; i++) strip[i] = (low[d + i] & low_mask) | (((uint32_t)high[d + i] << 16) & high_mask);
            for (int32_t i = here; i < NR; i++) strip[i] = 0;
        }
    }
}

#endif
