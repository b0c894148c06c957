/* Vectors of eight numbers, and which machines functions are built for. */

#ifndef MEMFIT_VECTORS_H
#define MEMFIT_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInt __attribute__((vector_size(32)));
typedef uint16_t EightShort __attribute__((vector_size(16)));
typedef int8_t EightByte __attribute__((vector_size(8)));

INLINE Eight load(const float *from) {
    Eight values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE Eight chosen(EightInt where, Eight values, Eight others) { return (Eight)(((EightInt)values & where) | ((EightInt)others & ~where)); }

#endif
