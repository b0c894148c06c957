/* One bit an element: rectifiers that write their output and the bits in one pass, and gradients by bits, of `memfit.bits`; and what is
   above zero, one after the other, of `memfit.compaction`.

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

/* Bits of what is above zero or no number. */
FAST void memfit_above_zero(const float *x, int64_t count, uint8_t *bits) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const EightByte above = __builtin_convertvector(~(load(x + i) <= (Eight){0}), EightByte);
        uint64_t word;
        memcpy(&word, &above, sizeof word);
        bits[i / 8] = (uint8_t)(((word & UINT64_C(0x0101010101010101)) * GATHER) >> 56);
    }
    if (i < count) {
        unsigned byte = 0;
        for (int64_t k = i; k < count; k++) byte |= (unsigned)!(x[k] <= 0) << (k - i);
        bits[i / 8] = (uint8_t)byte;
    }
}

INLINE unsigned bit(const uint8_t *bits, int64_t at) { return bits[at / 8] >> at % 8 & 1; }

/* Eight bits from any place on, of which the last is there. */
INLINE unsigned eight_bits(const uint8_t *bits, int64_t at) {
    const unsigned low = bits[at / 8], shift = at % 8;
    return shift ? (low | (unsigned)bits[at / 8 + 1] << 8) >> shift & 255 : low;
}

/* How many of `count` bits are set, from the bit `first` on. */
FAST int64_t memfit_count(const uint8_t *bits, int64_t first, int64_t count) {
    int64_t set = 0, i = 0;
    for (; i + 8 <= count; i += 8) set += __builtin_popcount(eight_bits(bits, first + i));
    for (; i < count; i++) set += bit(bits, first + i);
    return set;
}

/* The elements whose bit is set, one after the other: `set` of `count`. While eight more are to come, each is written before it is known
   whether the next one goes to the same place. */
FAST void memfit_compact(const float *x, const uint8_t *bits, int64_t first, int64_t count, float *values, int64_t set) {
    int64_t i = 0, n = 0;
    for (; i + 8 <= count && n + 8 <= set; i += 8) {
        const unsigned byte = eight_bits(bits, first + i);
        for (int k = 0; k < 8; k++) {
            values[n] = x[i + k];
            n += byte >> k & 1;
        }
    }
    for (; i < count; i++)
        if (bit(bits, first + i)) values[n++] = x[i];
}

/* What `memfit_compact` was given, with zeros where no bit is set. */
FAST void memfit_expand(const float *values, const uint8_t *bits, int64_t first, int64_t count, float *x, int64_t set) {
    int64_t i = 0, n = 0;
    for (; i + 8 <= count && n + 8 <= set; i += 8) {
        const unsigned byte = eight_bits(bits, first + i);
        for (int k = 0; k < 8; k++) {
            const unsigned one = byte >> k & 1;
            uint32_t value;
            memcpy(&value, values + n, sizeof value);
            value &= -(uint32_t)one;
            memcpy(x + i + k, &value, sizeof value);
            n += one;
        }
    }
    for (; i < count; i++) x[i] = bit(bits, first + i) ? values[n++] : 0;
}
