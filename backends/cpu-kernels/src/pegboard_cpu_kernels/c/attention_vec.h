/* Vectors of floats for the attention kernels: one set of names over AVX-512, AVX2 and the compiler's own four-float vectors.
 *
 * VL floats a vector. A maximum of which one operand is NaN is its second operand everywhere, as on x86: the code that uses
 * v_max relies on that to let a NaN through.
 */
#ifndef PEG_ATTENTION_VEC_H
#define PEG_ATTENTION_VEC_H

#include <stdint.h>
#include <string.h>

#include "attention.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define PEG_X86 1
#endif

#define INLINE PEG_INLINE

/* The compiler knows nothing of `pointer` from here on, so it loads again what it points to. */
#define HIDE(pointer) __asm__ volatile("" : "+r"(pointer))

#if defined(PEG_X86) && defined(__AVX512F__) && defined(__AVX512BW__)
#define VL 16
#define MR 12
typedef __m512 vf;
typedef __mmask16 vmask;
INLINE vf v_set(float x) { return _mm512_set1_ps(x); }
INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf v_round(vf a) { return _mm512_roundscale_ps(a, 8); }
INLINE vf v_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vmask v_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE vf v_select(vmask m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
INLINE vf v_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); } /* a * 2^n, n whole */
INLINE vf v_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
INLINE void v_bf16_pair(const uint16_t *p, vf *even, vf *odd) {
    __m512i x = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000u)));
}
INLINE vf v_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
INLINE void v_store_f16(uint16_t *p, vf a) { _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }
INLINE void v_store_bf16(uint16_t *p, vf a) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(a));
#else
    __m512i x = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), x, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}
INLINE vf v_i8(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p))); }
INLINE __m256 v_fold(vf a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
}
INLINE float v_reduce_max(vf a) { return _mm512_reduce_max_ps(a); }

#elif defined(PEG_X86)
#define VL 8
#define MR 6
typedef __m256 vf;
typedef __m256 vmask;
INLINE vf v_set(float x) { return _mm256_set1_ps(x); }
INLINE vf v_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE vmask v_less(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
INLINE vf v_select(vmask m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
INLINE vf v_scale2(vf a, vf n) { /* n >= -126 */
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(
                                _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
INLINE vf v_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
INLINE void v_bf16_pair(const uint16_t *p, vf *even, vf *odd) {
    __m256i x = _mm256_loadu_si256((const void *)p);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000u)));
}
INLINE vf v_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
INLINE void v_store_f16(uint16_t *p, vf a) { _mm_storeu_si128((void *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }
INLINE void v_store_bf16(uint16_t *p, vf a) {
    __m256i x = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
    rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
    rounded = _mm256_srli_epi32(rounded, 16);
    rounded = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128((void *)p, _mm256_castsi256_si128(rounded));
}
INLINE vf v_i8(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))); }
INLINE __m256 v_fold(vf a) { return a; }
INLINE float v_reduce_max(vf a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

#else
#define VL 4
#define MR 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vmask __attribute__((vector_size(16)));
INLINE vf v_set(float x) { return (vf){x, x, x, x}; }
INLINE vf v_load(const float *p) {
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE void v_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vmask v_less(vf a, vf b) { return a < b; }
INLINE vf v_select(vmask m, vf a, vf b) { return (vf)(((vmask)a & m) | ((vmask)b & ~m)); }
INLINE vf v_max(vf a, vf b) { return v_select(a > b, a, b); }
INLINE vf v_round(vf a) { return (a + 12582912.0f) - 12582912.0f; } /* |a| < 2^22 */
INLINE vf v_abs(vf a) { return (vf)((vmask)a & 0x7fffffff); }
INLINE vf v_scale2(vf a, vf n) { /* n >= -126; the low bits of n + 1.5 * 2^23 are the number n */
    return a * (vf)((((vmask)(n + 12582912.0f) & 0x3fff) + 127) << 23);
}
INLINE vf v_bf16(const uint16_t *p) {
    return (vf){peg_bf16_to_f32(p[0]), peg_bf16_to_f32(p[1]), peg_bf16_to_f32(p[2]), peg_bf16_to_f32(p[3])};
}
INLINE void v_bf16_pair(const uint16_t *p, vf *even, vf *odd) {
    vf low = v_bf16(p), high = v_bf16(p + 4);
    *even = (vf){low[0], low[2], high[0], high[2]};
    *odd = (vf){low[1], low[3], high[1], high[3]};
}
INLINE vf v_f16(const uint16_t *p) {
    return (vf){peg_f16_to_f32(p[0]), peg_f16_to_f32(p[1]), peg_f16_to_f32(p[2]), peg_f16_to_f32(p[3])};
}
INLINE void v_store_f16(uint16_t *p, vf a) {
    for (int i = 0; i < VL; i++) p[i] = peg_f32_to_f16(a[i]);
}
INLINE void v_store_bf16(uint16_t *p, vf a) {
    for (int i = 0; i < VL; i++) p[i] = peg_f32_to_bf16(a[i]);
}
INLINE vf v_i8(const int8_t *p) { return (vf){p[0], p[1], p[2], p[3]}; }
INLINE float v_reduce_max(vf a) {
    float m = a[0];
    for (int i = 1; i < VL; i++) m = a[i] > m ? a[i] : m;
    return m;
}
#endif

#define MOST_BLOCK 32 /* rows of an attention tile that are computed together, at most */

static const float NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* sums + products of pairs: a, b hold two bfloat16 in each place. */
#ifdef __AVX512BF16__
#define HAVE_PAIRS 1
INLINE vf v_dot(vf a, vf b, vf c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
#else
#define HAVE_PAIRS 0
INLINE vf v_dot(vf a, vf b, vf c) {
    (void)a, (void)b;
    return c; /* never called */
}
#endif

#define NR (2 * VL) /* width of a micro-kernel: two vectors */

/* Sums of four vectors. The order of the additions is the same for each of them. */
INLINE void v_sum4(vf a, vf b, vf c, vf d, float out[4]) {
#ifdef PEG_X86
    __m256 ab = _mm256_hadd_ps(v_fold(a), v_fold(b)), cd = _mm256_hadd_ps(v_fold(c), v_fold(d));
    __m256 all = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
    vf all = {0, 0, 0, 0};
    for (int i = 0; i < VL; i++) all += (vf){a[i], b[i], c[i], d[i]};
    v_store(out, all);
#endif
}

INLINE float v_sum(vf a) {
    float out[4];
    v_sum4(a, a, a, a, out);
    return out[0];
}

/* VL values in order, of element type `type`, a constant where this is inlined. */
INLINE vf v_load_as(int type, const void *p) {
    switch (type) {
    case PEG_BF16: return v_bf16(p);
    case PEG_F16: return v_f16(p);
    case PEG_I8: return v_i8(p);
    default: return v_load(p);
    }
}

/* 2 VL values as two vectors: bfloat16 as those of even and of odd index, which is cheapest; others as first and second half. */
INLINE void v_load_two(int type, const void *p, vf *a, vf *b) {
    if (type == PEG_BF16) {
        v_bf16_pair(p, a, b);
    } else {
        *a = v_load_as(type, p);
        *b = v_load_as(type, (const char *)p + VL * peg_item_size(type));
    }
}

/* Where element i of 2 VL values comes to lie by v_load_two. */
INLINE int v_place(int type, int i) {
    int in = i % (2 * VL);
    return type == PEG_BF16 ? i - in + in / 2 + (in % 2) * VL : i;
}

/* 2^x for x <= 0 (exactly 1 at 0), 0 below -126, NaN for NaN. Relative error under 4e-9 before rounding (minimax on [-1/2, 1/2]). */
INLINE vf v_exp2(vf x) {
    vf low = v_set(-126.0f), clipped = v_max(low, x), whole = v_round(clipped), f = clipped - whole;
    vf p = v_set(1.5353361852825376e-4f);
    p = v_fma(p, f, v_set(1.339887531029399e-3f));
    p = v_fma(p, f, v_set(9.618437365216274e-3f));
    p = v_fma(p, f, v_set(5.550332468788172e-2f));
    p = v_fma(p, f, v_set(2.402264791349613e-1f));
    p = v_fma(p, f, v_set(6.931472028562224e-1f));
    p = v_fma(p, f, v_set(1.0f));
    return v_select(v_less(x, low), v_set(0.0f), v_scale2(p, whole));
}

/* tanh x, to a few units in the last place: an odd polynomial near 0, 1 - 2 / (1 + e^2x) elsewhere. */
INLINE vf v_tanh(vf x) {
    vf size = v_abs(x), square = x * x;
    vf p = v_set(-5.660772797067857e-3f);
    p = v_fma(p, square, v_set(2.060199251284705e-2f));
    p = v_fma(p, square, v_set(-5.372922509368178e-2f));
    p = v_fma(p, square, v_set(1.3331328896580896e-1f));
    p = v_fma(p, square, v_set(-3.3333278312766335e-1f));
    vf near = v_fma(x * square, p, x);
    vf t = v_exp2(size * v_set(-2.8853900817779268f)); /* e^-2|x| */
    vf far = (v_set(1.0f) - t) / (v_set(1.0f) + t);
    far = v_select(v_less(x, v_set(0.0f)), v_set(0.0f) - far, far);
    return v_select(v_less(size, v_set(0.6f)), near, far);
}

#endif
