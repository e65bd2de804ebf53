/* Threads: a small pool of our own, and scratch memory of each thread.
 *
 * A call publishes a job; workers that are awake join it and take chunks from a counter, as the calling thread does. The caller waits for
 * those alone that joined: a worker that the operating system has not scheduled costs nothing, so a machine that is busy with other work
 * slows a call by what it takes, not by its time slices. An idle worker looks for jobs for a short while, then sleeps.
 */
#define _DEFAULT_SOURCE /* clock_gettime, madvise */
#include "peg.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* How long an idle worker looks before it sleeps: longer than the gap between two operations of a model, far shorter than what anyone
 * notices of a processor that is busy for nothing. */
static _Atomic int64_t spin_nanoseconds = 200000;

typedef struct {
    peg_chunk chunk;
    void *context;
    int64_t chunks;
    int threads;
} peg_job;

static struct {
    pthread_mutex_t owner; /* held by the caller whose job it is */
    pthread_mutex_t mutex; /* guards sleeping */
    pthread_cond_t wake;
    peg_job job;
    /* Low half: workers inside the job. High half: number of the job, odd while it may be joined. */
    _Alignas(64) _Atomic uint64_t gate;
    _Alignas(64) _Atomic int64_t next;
    _Alignas(64) _Atomic int sleepers;
    int workers;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static _Atomic int default_threads = 1;
typedef int (*peg_count)(void);
static _Atomic(peg_count) thread_count = NULL;

/* Inside a chunk a further peg_for runs alone. */
static _Thread_local int busy = 0;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void take(const peg_job *job, int thread) {
    int64_t i;
    busy = 1;
    while ((i = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed)) < job->chunks) job->chunk(job->context, i, thread);
    busy = 0;
}

/* Enter the open job, if there is one and a place in it. */
static int join(uint64_t seen, int thread) {
    uint64_t gate = seen;
    while ((gate >> 32) & 1) {
        if (atomic_compare_exchange_weak_explicit(&pool.gate, &gate, gate + 1, memory_order_acquire, memory_order_acquire)) {
            /* The job stays as it is until we have left. */
            if (thread < pool.job.threads) take(&pool.job, thread);
            atomic_fetch_sub_explicit(&pool.gate, 1, memory_order_release);
            return 1;
        }
    }
    return 0;
}

static void *work(void *number) {
    int thread = (int)(intptr_t)number;
    uint64_t last = 0;
    int64_t idle = now();
    for (;;) {
        int64_t turns = 0;
        uint64_t gate;
        for (;;) {
            gate = atomic_load_explicit(&pool.gate, memory_order_acquire);
            if (((gate >> 32) & 1) && (gate >> 32) != last) break;
            RELAX();
            if ((++turns & 63) == 0 && now() - idle > atomic_load_explicit(&spin_nanoseconds, memory_order_relaxed)) {
                pthread_mutex_lock(&pool.mutex);
                atomic_fetch_add(&pool.sleepers, 1);
                for (;;) {
                    gate = atomic_load(&pool.gate);
                    if (((gate >> 32) & 1) && (gate >> 32) != last) break;
                    pthread_cond_wait(&pool.wake, &pool.mutex);
                }
                atomic_fetch_sub(&pool.sleepers, 1);
                pthread_mutex_unlock(&pool.mutex);
                break;
            }
        }
        last = gate >> 32;
        join(gate, thread);
        idle = now();
    }
    return NULL;
}

/* Called by the pool's owner. Workers that cannot be started are done without. */
static void grow(int workers) {
    pthread_attr_t attributes;
    if (pool.workers >= workers || pthread_attr_init(&attributes) != 0) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.workers < workers) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)(pool.workers + 1)) != 0) break;
        pool.workers++;
    }
    pthread_attr_destroy(&attributes);
}

/* A child has no workers, and nobody who would unlock what others held. */
static void forked(void) {
    static const pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    memcpy(&pool.owner, &mutex, sizeof mutex);
    memcpy(&pool.mutex, &mutex, sizeof mutex);
    memcpy(&pool.wake, &cond, sizeof cond);
    atomic_store(&pool.gate, 0);
    atomic_store(&pool.sleepers, 0);
    pool.workers = 0;
    busy = 0;
}

__attribute__((constructor)) static void prepare(void) { pthread_atfork(NULL, NULL, forked); }

void peg_for(int threads, int64_t chunks, peg_chunk chunk, void *context) {
    if (threads > PEG_MOST_THREADS) threads = PEG_MOST_THREADS;
    if (chunks < threads) threads = (int)chunks;
    /* Another thread's job, or our own: the pool is not waited for. */
    if (threads <= 1 || busy || pthread_mutex_trylock(&pool.owner) != 0) {
        for (int64_t i = 0; i < chunks; i++) chunk(context, i, 0);
        return;
    }
    grow(threads - 1);
    pool.job = (peg_job){chunk, context, chunks, threads};
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    uint64_t number = (atomic_load_explicit(&pool.gate, memory_order_relaxed) >> 32) + 1;
    atomic_store(&pool.gate, number << 32);
    if (atomic_load(&pool.sleepers) > 0) {
        pthread_mutex_lock(&pool.mutex);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.mutex);
    }
    take(&pool.job, 0);
    /* Close the gate, then wait for those inside. */
    atomic_fetch_add_explicit(&pool.gate, (uint64_t)1 << 32, memory_order_acq_rel);
    for (int turns = 0; (uint32_t)atomic_load_explicit(&pool.gate, memory_order_acquire) != 0;) {
        if (++turns < 4096) RELAX();
        else sched_yield(); /* a worker lost its processor in the middle of a chunk */
    }
    pthread_mutex_unlock(&pool.owner);
}

int peg_threads(void) {
    peg_count count = atomic_load_explicit(&thread_count, memory_order_relaxed);
    int threads = count ? count() : atomic_load_explicit(&default_threads, memory_order_relaxed);
    return threads < 1 ? 1 : threads;
}

/* `count` is asked at every call for how many threads to use (OpenMP's omp_get_max_threads, which torch sets); without it, `threads`. */
PEG_API void peg_set_threads(int threads, int (*count)(void));
void peg_set_threads(int threads, int (*count)(void)) {
    atomic_store(&default_threads, threads);
    atomic_store(&thread_count, count);
}

/* peg_threads() for those outside. */
PEG_API int peg_threads_now(void);
int peg_threads_now(void) { return peg_threads(); }

/* Set for how long an idle worker looks for work before it sleeps; returns what it was. */
PEG_API int64_t peg_set_spin(int64_t nanoseconds);
int64_t peg_set_spin(int64_t nanoseconds) { return atomic_exchange(&spin_nanoseconds, nanoseconds); }

typedef struct {
    void *memory[PEG_SCRATCH_SLOTS];
    size_t bytes[PEG_SCRATCH_SLOTS];
} peg_scratch_of_thread;

static _Thread_local peg_scratch_of_thread *own = NULL;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void release(void *value) {
    peg_scratch_of_thread *scratch = value;
    for (int i = 0; i < PEG_SCRATCH_SLOTS; i++) free(scratch->memory[i]);
    free(scratch);
}

static void make_key(void) { pthread_key_create(&scratch_key, release); }

void *peg_scratch(int slot, size_t bytes) {
    if (own == NULL) {
        pthread_once(&scratch_once, make_key);
        own = calloc(1, sizeof *own);
        if (own == NULL) return NULL;
        pthread_setspecific(scratch_key, own);
    }
    if (own->bytes[slot] < bytes) {
        size_t rounded = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
        free(own->memory[slot]);
        own->memory[slot] = aligned_alloc(64, rounded);
        own->bytes[slot] = own->memory[slot] ? rounded : 0;
    }
    return own->memory[slot];
}

/* Asks the system to put the memory of [p, p + bytes) on huge pages, what shares such a page with it included: weights are read from end to
 * end, and looking up small pages takes as long as reading them. Contents stay; where the system cannot, nothing happens. */
PEG_API void peg_huge_pages(const void *p, int64_t bytes);
void peg_huge_pages(const void *p, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t page = (uintptr_t)2 << 20, first = (uintptr_t)p & ~(page - 1), end = ((uintptr_t)p + (uintptr_t)bytes + page - 1) & ~(page - 1);
    for (uintptr_t at = first; at < end; at += page) madvise((void *)at, page, 25 /* MADV_COLLAPSE, since Linux 6.1 */);
#else
    (void)p;
    (void)bytes;
#endif
}
