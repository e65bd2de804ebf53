/* What all sources share: the public symbols (PEG_API), element types, instruction sets, threads and scratch memory.
 *
 * Conventions: pointers to data and int64_t sizes; strides count elements, never bytes; a function that can be given nonsense returns 0 when
 * it computed and a negative number when it refused. No function keeps a pointer after it returned.
 */
#ifndef PEG_H
#define PEG_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PEG_API __attribute__((visibility("default")))
#define PEG_INLINE static inline __attribute__((always_inline))

/* The number of this interface; library.py names the same. */
#define PEG_ABI 4

/* Element types. */
enum { PEG_F32 = 0, PEG_BF16 = 1, PEG_F16 = 2, PEG_I8 = 3 };

/* Instruction sets, poorest first. */
enum { PEG_PORTABLE = 0, PEG_AVX2 = 1, PEG_AVX512 = 2, PEG_AVX512BF16 = 3 };

/* The one in use: the best that processor, operating system and library have, or what peg_set_isa chose. */
PEG_API int peg_isa(void);

/* Sources named *_isa.c are compiled once for each instruction set: they define PEG_NAME(f), and others call PEG_PICK(f)(...).
 * PEG_DECLARE(result, f, (arguments)) declares all of them. */
#define PEG_GLUE2(a, b) a##_##b
#define PEG_GLUE(a, b) PEG_GLUE2(a, b)
#ifdef PEG_ISA
#define PEG_NAME(f) PEG_GLUE(f, PEG_ISA)
#endif

#ifdef PEG_HAVE_AVX2
#define PEG_FOR_AVX2(x) x
#else
#define PEG_FOR_AVX2(x)
#endif
#ifdef PEG_HAVE_AVX512
#define PEG_FOR_AVX512(x) x
#else
#define PEG_FOR_AVX512(x)
#endif
#ifdef PEG_HAVE_AVX512BF16
#define PEG_FOR_AVX512BF16(x) x
#else
#define PEG_FOR_AVX512BF16(x)
#endif

#define PEG_DECLARE(result, f, arguments)          \
    result f##_portable arguments;                 \
    PEG_FOR_AVX2(result f##_avx2 arguments;)       \
    PEG_FOR_AVX512(result f##_avx512 arguments;)   \
    PEG_FOR_AVX512BF16(result f##_avx512bf16 arguments;)

#define PEG_PICK(f)                                                  \
    (PEG_FOR_AVX512BF16(peg_isa() == PEG_AVX512BF16 ? f##_avx512bf16 :) \
     PEG_FOR_AVX512(peg_isa() == PEG_AVX512 ? f##_avx512 :)          \
     PEG_FOR_AVX2(peg_isa() == PEG_AVX2 ? f##_avx2 :) f##_portable)

/* Threads. peg_for calls chunk(context, i, thread) for every i below `chunks`, each once, on up to `threads` threads, the calling one being
 * thread 0; it returns when all are done. Which thread takes which chunk differs from call to call: results must not depend on it.
 * peg_threads() is how many to use: torch's own setting of the calling thread where it is known. */
typedef void (*peg_chunk)(void *context, int64_t i, int thread);
void peg_for(int threads, int64_t chunks, peg_chunk chunk, void *context);
int peg_threads(void);
#define PEG_MOST_THREADS 256

/* `bytes` of memory, 64-byte aligned, that belongs to the calling thread until it asks for `slot` again; contents are undefined.
 * NULL when there is no memory. Slots: each source that needs some takes its own number. */
void *peg_scratch(int slot, size_t bytes);
enum { PEG_SCRATCH_X = 0, PEG_SCRATCH_PANEL = 1, PEG_SCRATCH_ATTENTION = 2, PEG_SCRATCH_ATTENTION_THREAD = 3, PEG_SCRATCH_SLOTS = 4 };

/* Scalars. */
PEG_INLINE float peg_bf16_to_f32(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* Rounds to nearest, ties to even; a NaN stays one. */
PEG_INLINE uint16_t peg_f32_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

PEG_INLINE float peg_f16_to_f32(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16, rest = value & 0x7fffu, bits;
    float out;
    if (rest >= 0x7c00u) bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13) | ((rest & 0x3ffu) ? 0x400000u : 0u);
    else if (rest >= 0x400u) bits = sign | ((rest << 13) + 0x38000000u);
    else {
        out = (float)rest * 5.9604644775390625e-8f; /* 2^-24: a subnormal counts in it */
        return sign ? -out : out;
    }
    memcpy(&out, &bits, 4);
    return out;
}

PEG_INLINE uint16_t peg_f32_to_f16(float value) {
    uint32_t bits, sign, rest;
    memcpy(&bits, &value, 4);
    sign = (bits >> 16) & 0x8000u;
    rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((rest >> 13) & 0x3ffu));
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more round to infinity */
    if (rest < 0x38800000u) { /* below 2^-14: counted in units of 2^-24, which the addition rounds to */
        float small;
        memcpy(&small, &rest, 4);
        small += 0.5f;
        memcpy(&rest, &small, 4);
        return (uint16_t)(sign | (rest - 0x3f000000u));
    }
    rest += 0xfffu + ((rest >> 13) & 1u);
    return (uint16_t)(sign | ((rest - 0x38000000u) >> 13));
}

#endif
