/* The cosine transform of blocks of 8 x 8, eight blocks at a time: what `coded.c` does of any size, without a copy for each coefficient.

   The transform's rows are even or odd, so sums and differences of opposite places halve the products; and a frequency that has no bits is
   not worked out at all. Needs shuffles of vectors, which GCC has from 12 on. */

#ifndef MEMFIT_EIGHTS_H
#define MEMFIT_EIGHTS_H

#include "vectors.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MEMFIT_EIGHTS 1
#endif
#endif

#ifdef MEMFIT_EIGHTS

#define UNROLLED _Pragma("GCC unroll 8") /* or vectors would lie in memory */

/* Rows become columns. */
INLINE void transposed(Eight v[8]) {
    Eight a[8], b[8];
    UNROLLED for (int i = 0; i < 8; i += 2) {
        a[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        a[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    UNROLLED for (int i = 0; i < 8; i += 4)
        UNROLLED for (int k = 0; k < 2; k++) {
            b[i + k] = __builtin_shufflevector(a[i + k], a[i + 2 + k], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 + k] = __builtin_shufflevector(a[i + k], a[i + 2 + k], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    UNROLLED for (int i = 0; i < 4; i++) {
        v[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Sums of opposite places, then their differences. */
INLINE void folded(const Eight v[8], Eight halves[8]) {
    UNROLLED for (int j = 0; j < 4; j++) halves[j] = v[j] + v[7 - j], halves[4 + j] = v[j] - v[7 - j];
}

INLINE void unfolded(const Eight halves[8], Eight v[8]) {
    UNROLLED for (int j = 0; j < 4; j++) v[j] = halves[j] + halves[4 + j], v[7 - j] = halves[j] - halves[4 + j];
}

/* One frequency of folded places; `cosines` is its row. */
INLINE Eight frequency(const Eight halves[8], const float *cosines, int k) {
    const Eight *of = halves + 4 * (k & 1);
    return of[0] * cosines[0] + of[1] * cosines[1] + of[2] * cosines[2] + of[3] * cosines[3];
}

/* The way back: what one frequency adds to the folded places. */
INLINE void add_frequency(Eight halves[8], Eight value, const float *cosines, int k) {
    Eight *of = halves + 4 * (k & 1);
    UNROLLED for (int j = 0; j < 4; j++) of[j] += value * cosines[j];
}

#endif
#endif
