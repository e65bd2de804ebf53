/* Which instruction set is used. */
#include "peg.h"

#include <stdatomic.h>

#if defined(__x86_64__) && defined(PEG_HAVE_AVX2)
#include <cpuid.h>

/* The registers that the operating system saves: without its consent the instructions fault. */
static uint64_t saved_registers(void) {
    uint32_t a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

static int detect(void) {
    uint32_t a, b, c, d, ones, leaf7, vnni;
    uint64_t saved = saved_registers();
    if (!__get_cpuid(1, &a, &b, &ones, &d)) return PEG_PORTABLE;
    if (!(ones & (1u << 12)) || !(ones & (1u << 28)) || !(ones & (1u << 29))) return PEG_PORTABLE; /* FMA, AVX, F16C */
    if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &leaf7, &vnni, &d)) return PEG_PORTABLE;
    if (!(leaf7 & (1u << 5))) return PEG_PORTABLE;
#ifdef PEG_HAVE_AVX512
    uint32_t needed = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F, DQ, BW, VL */
    if ((saved & 0xe6) == 0xe6 && (leaf7 & needed) == needed) {
#ifdef PEG_HAVE_AVX512BF16
        if ((vnni & (1u << 11)) && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5))) return PEG_AVX512BF16;
#endif
        return PEG_AVX512;
    }
#endif
    return PEG_AVX2;
}
#else
static int detect(void) { return PEG_PORTABLE; }
#endif

static _Atomic int chosen = -1;

int peg_isa(void) {
    int isa = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (isa < 0) {
        isa = detect();
        atomic_store_explicit(&chosen, isa, memory_order_relaxed);
    }
    return isa;
}

/* Use a poorer instruction set than the best, for tests and comparisons; -1 is the best again. Returns the one in use from now on. */
PEG_API int peg_set_isa(int isa);
int peg_set_isa(int isa) {
    int best = detect();
    atomic_store_explicit(&chosen, isa < 0 || isa > best ? best : isa, memory_order_relaxed);
    return peg_isa();
}

PEG_API int peg_abi(void);
int peg_abi(void) { return PEG_ABI; }
