/* How products of bfloat16 are computed: which the processor has, and which is fastest. */
#define _GNU_SOURCE
#include "attention.h"

#include <stdatomic.h>

#if defined(__x86_64__) && defined(PEG_HAVE_AVX512BF16)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

static int matrix_unit(void) {
#if PEG_MATRIX_UNIT && defined(__linux__) && defined(SYS_arch_prctl)
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 22)) || !(d & (1u << 24))) return 0; /* AMX-BF16, AMX-TILE */
    return syscall(SYS_arch_prctl, 0x1023, 18L) == 0; /* ARCH_REQ_XCOMP_PERM: the process may use its registers */
#else
    return 0;
#endif
}

/* Pairs take AMD's processors half the time of floats, Intel's twice; Intel's that have them mostly have the matrix unit as well. */
static int pairs_are_fast(void) {
    uint32_t a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == 0x68747541u; /* "Auth", of AuthenticAMD */
}
#else
static int matrix_unit(void) { return 0; }
static int pairs_are_fast(void) { return 0; }
#endif

static _Atomic int chosen = -1;

static int best(void) { return matrix_unit() ? PEG_MATRIX : pairs_are_fast() ? PEG_PAIRS : PEG_FLOATS; }

int peg_attention_products(void) {
    if (peg_isa() != PEG_AVX512BF16) return PEG_FLOATS;
    int products = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (products < 0) {
        products = best();
        atomic_store_explicit(&chosen, products, memory_order_relaxed);
    }
    return products;
}

/* Choose how, for tests and comparisons; -1 is the best again. Returns what is used from now on. */
PEG_API int peg_attention_set_products(int products);
int peg_attention_set_products(int products) {
    if (products == PEG_MATRIX && !matrix_unit()) products = -1;
    atomic_store_explicit(&chosen, products < 0 || products > PEG_MATRIX ? best() : products, memory_order_relaxed);
    return peg_attention_products();
}
