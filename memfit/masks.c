/* One bit an element: rectifiers that write their output and the bits in one pass, and gradients by bits, of `memfit.bits`.

   The same numbers as the torch operations there; `memfit.native` calls it where it was built. Element i is bit i % 8 of byte i / 8. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define GATHER UINT64_C(0x0102040810204080) /* moves bit 0 of byte k of a word to bit 56 + k */

INLINE float bent(float x, float low, float high, float slope) {
    if (slope != 0) return x > 0 ? x : x * slope;
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* y = x between low and high, or with a slope: x above 0 and slope x elsewhere; bits of low < x < high. `y` may be `x`. */
FAST void memfit_rectify(const float *x, int64_t count, float low, float high, float slope, float *y, uint8_t *bits) {
    const float end = high < INFINITY ? high : NAN; /* infinity is below no bound: nothing is at or above NaN */
    const Eight lows = low - (Eight){0}, highs = high - (Eight){0}, ends = end - (Eight){0};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        Eight values = load(x + i);
        const EightByte inside = __builtin_convertvector((values > lows) & ~(values >= ends), EightByte);
        uint64_t word;
        memcpy(&word, &inside, sizeof word);
        bits[i / 8] = (uint8_t)(((word & UINT64_C(0x0101010101010101)) * GATHER) >> 56);
        if (slope != 0) values = chosen(values > (Eight){0}, values, values * slope);
        else {
            values = chosen(values < lows, lows, values);
            values = chosen(values > highs, highs, values);
        }
        memcpy(y + i, &values, sizeof values);
    }
    if (i < count) {
        unsigned byte = 0;
        for (int64_t k = i; k < count; k++) {
            byte |= (unsigned)(x[k] > low && !(x[k] >= end)) << (k - i);
            y[k] = bent(x[k], low, high, slope);
        }
        bits[i / 8] = (uint8_t)byte;
    }
}

/* grad times `set` where the bit is 1 and times `clear` where it is 0. */
FAST void memfit_scale(const float *grad, const uint8_t *bits, int64_t count, float set, float clear, float *out) {
    const EightInt places = {1, 2, 4, 8, 16, 32, 64, 128};
    const Eight sets = set - (Eight){0}, clears = clear - (Eight){0};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const EightInt one = ((int32_t)bits[i / 8] - (EightInt){0}) & places;
        const Eight scaled = load(grad + i) * chosen(one != (EightInt){0}, sets, clears);
        memcpy(out + i, &scaled, sizeof scaled);
    }
    for (int64_t k = i; k < count; k++) out[k] = grad[k] * (bits[k / 8] >> k % 8 & 1 ? set : clear);
}
