/* AdamW: parts of a parameter to threads. */
#include "adamw.h"

#define CHUNK 32768

static void part(void *context, int64_t chunk, int thread) {
    const peg_adamw *update = context;
    int64_t first = chunk * CHUNK, left = update->count - first;
    (void)thread;
    PEG_PICK(peg_adamw_part)(update, first, left < CHUNK ? left : CHUNK);
}

int peg_adamw_step(const peg_adamw *update) {
    if (update->weight_type < PEG_F32 || update->weight_type > PEG_F16 || update->gradient_type < PEG_F32 || update->gradient_type > PEG_F16) return -1;
    if (update->moment_type != PEG_F32 && update->moment_type != PEG_BF16) return -1;
    int64_t chunks = (update->count + CHUNK - 1) / CHUNK;
    peg_for(chunks > 1 ? peg_threads() : 1, chunks, part, (void *)update);
    return 0;
}
