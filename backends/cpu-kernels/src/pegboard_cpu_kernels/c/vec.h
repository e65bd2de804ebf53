/* Vectors of VL float32 numbers for the instruction set that a source is compiled for. Included by *_isa.c alone. */
#ifndef PEG_VEC_H
#define PEG_VEC_H

#include "peg.h"

#if defined(PEG_ISA_AVX512) || defined(PEG_ISA_AVX512BF16)
#include <immintrin.h>
#define VL 16
typedef __m512 vf;
typedef __m512i vi;
PEG_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
PEG_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
PEG_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
PEG_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
PEG_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
PEG_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
PEG_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
PEG_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
/* Of a NaN and a number, b. */
PEG_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
PEG_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
PEG_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
PEG_INLINE vf vf_round(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
PEG_INLINE vi vf_to_vi(vf x) { return _mm512_cvtps_epi32(x); }
PEG_INLINE vf vf_pow2(vi n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)); }
PEG_INLINE vf vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
/* Elements 0, 2, 4 … and 1, 3, 5 … of 2 VL. */
PEG_INLINE void vf_pair_bf16(const uint16_t *p, vf *even, vf *odd) {
    vi both = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000u)));
}
PEG_INLINE void vf_store_bf16(uint16_t *p, vf x) {
    vi bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
    vi carry = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
    vi rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, carry), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_or_si512(high, _mm512_set1_epi32(0x40)));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(rounded));
}
PEG_INLINE vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
PEG_INLINE void vf_store_f16(uint16_t *p, vf x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PEG_INLINE vf vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
PEG_INLINE vf vf_sqrt(vf x) { return _mm512_sqrt_ps(x); }
PEG_INLINE vi vi_set1(uint32_t x) { return _mm512_set1_epi32((int)x); }
PEG_INLINE vi vi_count(uint32_t first) {
    return _mm512_add_epi32(vi_set1(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
PEG_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
PEG_INLINE vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
PEG_INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
PEG_INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
#define vi_right(a, bits) _mm512_srli_epi32(a, bits)
/* The upper halves of bits + noise; of a NaN its own. */
PEG_INLINE void vf_store_bf16_noise(uint16_t *p, vf x, vi noise) {
    vi bits = _mm512_castps_si512(x), rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, noise), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40)));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(rounded));
}

#elif defined(PEG_ISA_AVX2)
#include <immintrin.h>
#define VL 8
typedef __m256 vf;
typedef __m256i vi;
PEG_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
PEG_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
PEG_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
PEG_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
PEG_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
PEG_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
PEG_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
PEG_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
PEG_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
PEG_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
PEG_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
PEG_INLINE vf vf_round(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
PEG_INLINE vi vf_to_vi(vf x) { return _mm256_cvtps_epi32(x); }
PEG_INLINE vf vf_pow2(vi n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
PEG_INLINE vf vf_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
PEG_INLINE void vf_pair_bf16(const uint16_t *p, vf *even, vf *odd) {
    vi both = _mm256_loadu_si256((const __m256i *)p);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000u)));
}
PEG_INLINE __m128i narrow(vi x) {
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 0x08));
}
PEG_INLINE void vf_store_bf16(uint16_t *p, vf x) {
    vi bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    vi carry = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
    vi rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, carry), 16);
    vi nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    _mm_storeu_si128((__m128i *)p, narrow(rounded));
}
PEG_INLINE vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
PEG_INLINE void vf_store_f16(uint16_t *p, vf x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
PEG_INLINE vf vf_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
PEG_INLINE vf vf_sqrt(vf x) { return _mm256_sqrt_ps(x); }
PEG_INLINE vi vi_set1(uint32_t x) { return _mm256_set1_epi32((int)x); }
PEG_INLINE vi vi_count(uint32_t first) { return _mm256_add_epi32(vi_set1(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
PEG_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
PEG_INLINE vi vi_mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
PEG_INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
PEG_INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
#define vi_right(a, bits) _mm256_srli_epi32(a, bits)
/* The upper halves of bits + noise; of a NaN its own. */
PEG_INLINE void vf_store_bf16_noise(uint16_t *p, vf x, vi noise) {
    vi bits = _mm256_castps_si256(x), rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, noise), 16);
    vi nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    vi quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    _mm_storeu_si128((__m128i *)p, narrow(_mm256_blendv_epi8(rounded, quiet, nan)));
}

#else /* vectors of the compiler's own, which it puts on whatever the processor has */
#define VL 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
PEG_INLINE vf vf_zero(void) { return (vf){0, 0, 0, 0}; }
PEG_INLINE vf vf_set1(float x) { return (vf){x, x, x, x}; }
PEG_INLINE vf vf_load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
PEG_INLINE void vf_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
PEG_INLINE vf vf_add(vf a, vf b) { return a + b; }
PEG_INLINE vf vf_sub(vf a, vf b) { return a - b; }
PEG_INLINE vf vf_mul(vf a, vf b) { return a * b; }
PEG_INLINE vf vf_div(vf a, vf b) { return a / b; }
PEG_INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
PEG_INLINE vf vf_max(vf a, vf b) { return vf_select((vi)(a > b), a, b); }
PEG_INLINE vf vf_min(vf a, vf b) { return vf_select((vi)(a < b), a, b); }
PEG_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
/* For |x| below 2^22, where adding and taking away 1.5 * 2^23 leaves the nearest integer. */
PEG_INLINE vf vf_round(vf x) { return (x + vf_set1(12582912.0f)) - vf_set1(12582912.0f); }
PEG_INLINE vi vf_to_vi(vf x) { return (vi){(int32_t)x[0], (int32_t)x[1], (int32_t)x[2], (int32_t)x[3]}; }
PEG_INLINE vf vf_pow2(vi n) { return (vf)((n + 127) << 23); }
PEG_INLINE vf vf_load_bf16(const uint16_t *p) {
    return (vf){peg_bf16_to_f32(p[0]), peg_bf16_to_f32(p[1]), peg_bf16_to_f32(p[2]), peg_bf16_to_f32(p[3])};
}
PEG_INLINE void vf_pair_bf16(const uint16_t *p, vf *even, vf *odd) {
    *even = (vf){peg_bf16_to_f32(p[0]), peg_bf16_to_f32(p[2]), peg_bf16_to_f32(p[4]), peg_bf16_to_f32(p[6])};
    *odd = (vf){peg_bf16_to_f32(p[1]), peg_bf16_to_f32(p[3]), peg_bf16_to_f32(p[5]), peg_bf16_to_f32(p[7])};
}
PEG_INLINE void vf_store_bf16(uint16_t *p, vf x) {
    for (int i = 0; i < VL; i++) p[i] = peg_f32_to_bf16(x[i]);
}
PEG_INLINE vf vf_load_f16(const uint16_t *p) {
    return (vf){peg_f16_to_f32(p[0]), peg_f16_to_f32(p[1]), peg_f16_to_f32(p[2]), peg_f16_to_f32(p[3])};
}
PEG_INLINE void vf_store_f16(uint16_t *p, vf x) {
    for (int i = 0; i < VL; i++) p[i] = peg_f32_to_f16(x[i]);
}
PEG_INLINE vf vf_load_i8(const int8_t *p) { return (vf){(float)p[0], (float)p[1], (float)p[2], (float)p[3]}; }
PEG_INLINE vf vf_sqrt(vf x) { return (vf){__builtin_sqrtf(x[0]), __builtin_sqrtf(x[1]), __builtin_sqrtf(x[2]), __builtin_sqrtf(x[3])}; }
/* Unsigned arithmetic: it wraps. */
typedef uint32_t vu __attribute__((vector_size(16)));
PEG_INLINE vi vi_set1(uint32_t x) { return (vi)(vu){x, x, x, x}; }
PEG_INLINE vi vi_count(uint32_t first) { return (vi)(vu){first, first + 1, first + 2, first + 3}; }
PEG_INLINE vi vi_add(vi a, vi b) { return (vi)((vu)a + (vu)b); }
PEG_INLINE vi vi_mul(vi a, vi b) { return (vi)((vu)a * (vu)b); }
PEG_INLINE vi vi_and(vi a, vi b) { return a & b; }
PEG_INLINE vi vi_xor(vi a, vi b) { return a ^ b; }
#define vi_right(a, bits) ((vi)((vu)(a) >> (bits)))
/* The upper halves of bits + noise; of a NaN its own. */
PEG_INLINE void vf_store_bf16_noise(uint16_t *p, vf x, vi noise) {
    vu bits = (vu)x, rounded = (bits + (vu)noise) >> 16, quiet = (bits >> 16) | 0x40u, nan = (vu)(x != x);
    vu out = (quiet & nan) | (rounded & ~nan);
    for (int i = 0; i < VL; i++) p[i] = (uint16_t)out[i];
}
#endif

/* The sums of all lanes of four vectors, in an order that is always the same and is that of vf_sum too. */
#if VL > 4
PEG_INLINE __m256 half_of(vf x) {
#if VL == 16
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    return x;
#endif
}
PEG_INLINE void vf_sums(vf a, vf b, vf c, vf d, float *sums) {
    __m256 ab = _mm256_hadd_ps(half_of(a), half_of(b)), cd = _mm256_hadd_ps(half_of(c), half_of(d));
    __m256 all = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
PEG_INLINE float vf_sum(vf x) {
    __m256 half = half_of(x);
    half = _mm256_hadd_ps(half, half);
    half = _mm256_hadd_ps(half, half);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
#else
PEG_INLINE float vf_sum(vf x) { return (x[0] + x[1]) + (x[2] + x[3]); }
PEG_INLINE void vf_sums(vf a, vf b, vf c, vf d, float *sums) {
    sums[0] = vf_sum(a);
    sums[1] = vf_sum(b);
    sums[2] = vf_sum(c);
    sums[3] = vf_sum(d);
}
#endif

PEG_INLINE float vf_largest(vf x) {
    float lanes[VL], largest;
    vf_store(lanes, x);
    largest = lanes[0];
    for (int i = 1; i < VL; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

/* e^x within 2 units in the last place; what would be below 2^-126 or above the largest float32 is cut to there; NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor series to the 7th power, whose error there is below 5e-9. */
PEG_INLINE vf vf_exp(vf x) {
    x = vf_min(vf_set1(88.3762626647949f), vf_max(vf_set1(-87.3365447505531f), x));
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set1(-0.693145751953125f), x);
    r = vf_fma(n, vf_set1(-1.42860682030941723e-6f), r);
    vf p = vf_set1(1.0f / 5040);
    p = vf_fma(p, r, vf_set1(1.0f / 720));
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_mul(p, vf_pow2(vf_to_vi(n)));
}

/* VL elements of a type that is known when this is compiled, and fewer of them, the rest being 0. */
PEG_INLINE size_t size_of(int type) { return type == PEG_F32 ? 4 : type == PEG_I8 ? 1 : 2; }
PEG_INLINE const void *at(int type, const void *p, int64_t i) { return (const char *)p + i * (int64_t)size_of(type); }
PEG_INLINE void *at_out(int type, void *p, int64_t i) { return (char *)p + i * (int64_t)size_of(type); }

PEG_INLINE vf vf_load_as(int type, const void *p) {
    switch (type) {
    case PEG_F32: return vf_load(p);
    case PEG_BF16: return vf_load_bf16(p);
    case PEG_F16: return vf_load_f16(p);
    default: return vf_load_i8(p);
    }
}

PEG_INLINE void vf_store_as(int type, void *p, vf x) {
    switch (type) {
    case PEG_F32: vf_store(p, x); break;
    case PEG_BF16: vf_store_bf16(p, x); break;
    default: vf_store_f16(p, x); break;
    }
}

PEG_INLINE vf vf_load_part(int type, const void *p, int count) {
    char part[VL * 4] = {0};
    memcpy(part, p, (size_t)count * size_of(type));
    return vf_load_as(type, part);
}

PEG_INLINE void vf_store_part(int type, void *p, vf x, int count) {
    char part[VL * 4];
    vf_store_as(type, part, x);
    memcpy(p, part, (size_t)count * size_of(type));
}

PEG_INLINE float load_as(int type, const void *p, int64_t i) {
    switch (type) {
    case PEG_F32: return ((const float *)p)[i];
    case PEG_BF16: return peg_bf16_to_f32(((const uint16_t *)p)[i]);
    case PEG_F16: return peg_f16_to_f32(((const uint16_t *)p)[i]);
    default: return ((const int8_t *)p)[i];
    }
}

PEG_INLINE void store_as(int type, void *p, int64_t i, float x) {
    switch (type) {
    case PEG_F32: ((float *)p)[i] = x; break;
    case PEG_BF16: ((uint16_t *)p)[i] = peg_f32_to_bf16(x); break;
    default: ((uint16_t *)p)[i] = peg_f32_to_f16(x); break;
    }
}

/* `body(TYPE)` with the type as a constant. */
#define WITH_TYPE(type, body)                     \
    switch (type) {                               \
    case PEG_F32: body(PEG_F32); break;           \
    case PEG_BF16: body(PEG_BF16); break;         \
    default: body(PEG_F16); break;                \
    }

#endif
