/* What the C kernels share: vectors, the description of a batch, Philox. */

#ifndef RAPA_COMMON_H
#define RAPA_COMMON_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDTH 16
#define MOST 12
#elif defined(__AVX__)
#define WIDTH 8
#define MOST 6
#else
#define WIDTH 4
#define MOST 6
#endif

/* Patches whose gradients and input rows stay in a first-level cache while a tile's kernel matrix is gone through. */
#define CHUNK 48

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
    int64_t batch, patches, tiles;   /* images; patches of an image; kernel matrices */
    int64_t lines, run;              /* a patch's runs of adjacent numbers, and their length */
    int64_t out;                     /* output channels, a multiple of WIDTH */
    int64_t image;                   /* numbers from one padded image to the next */
    int64_t parts, part_images;      /* parts of the batch, and images of a part */
    const int64_t *line_offset;      /* of each run from a patch's base (lines) */
    const int32_t *order;            /* patch numbers b patches + i, sorted */
    const int32_t *base;             /* offset of each of these patches' base from the first image */
    const int64_t *start;            /* where in `order` each part's tile begins (parts tiles + 1) */
} Problem;

/* CALL(m) with a constant for each number of rows that a block can have. */
#define CASES(CALL)                                                                                             \
    switch (m) {                                                                                                \
        case 1: CALL(1); break; case 2: CALL(2); break; case 3: CALL(3); break; case 4: CALL(4); break;         \
        case 5: CALL(5); break; case 6: CALL(6); break; LARGE_CASES(CALL)                                       \
    }
#if MOST == 12
#define LARGE_CASES(CALL)                                                                                       \
        case 7: CALL(7); break; case 8: CALL(8); break; case 9: CALL(9); break; case 10: CALL(10); break;       \
        case 11: CALL(11); break; case 12: CALL(12); break;
#else
#define LARGE_CASES(CALL)
#endif

/* Philox4x32-10 (Salmon et al. 2011): its multipliers and the steps of its keys. */
#define PHILOX_0 0xD2511F53u
#define PHILOX_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u

#endif
