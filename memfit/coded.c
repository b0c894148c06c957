/* Cosine transform, quantising and packing of `memfit.forms.coded` in one pass over each sample, and the way back.

   The same numbers as the torch operations there, but for rounding; `memfit.native` calls it where it was built. No Python and no
   torch in here: arrays come as addresses, sizes are the caller's to check.

   A plane is one direction of the features: a map of height x width in blocks. A position is a direction and a frequency. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "eights.h"
#include "vectors.h"

typedef struct {
    int64_t planes, height, width, block_height, block_width; /* of a sample */
    const float *cosines_height, *cosines_width;               /* (block, block), the constant row first */
    const float *means;                                        /* of each plane */
    const uint8_t *widths;                                     /* bits of each position */
    const float *deviations;                                   /* of each position, relative to the gain */
    const int32_t *places;                                     /* of each position's first code among the unpacked, in bytes */
    int64_t groups;
    const int64_t *group_widths, *group_counts, *group_places; /* the last as `places` */
    int64_t row_bytes, code_bytes;                             /* of a packed sample, and of its codes unpacked */
    const float *steps, *bends;                                /* of the quantiser of each width from 0 to 16 */
    const float *levels;                                       /* what codes of up to 8 bits stand for, in deviations */
    const int64_t *level_places;                               /* of the first code of each width */
    float shift;                                               /* of what a wider one stands for: 0.5 the middle of its step, 0 its start */
    float low, high;                                           /* bounds of what is restored */
} Plan;

/* The planes of a number of so many bits, from the lowest: as in `memfit.packing`. */
INLINE int planes_of(int bits, int *width, int *shift) {
    int count = 0, at = 0;
    for (; bits - at >= 8; at += 8) width[count] = 8, shift[count++] = at;
    for (int w = 4; w; w /= 2)
        if (((bits - at) & w) && bits - at < 2 * w) width[count] = w, shift[count++] = at, at += w;
    return count;
}

/* Eight codes of a byte each, of which `width` bits count, next to one another in the lowest bits. */
INLINE uint64_t together(uint64_t word, int width) {
    if (width == 4) {
        word &= UINT64_C(0x0f0f0f0f0f0f0f0f);
        word = (word | word >> 4) & UINT64_C(0x00ff00ff00ff00ff);
        word = (word | word >> 8) & UINT64_C(0x0000ffff0000ffff);
        return word | word >> 16;
    }
    if (width == 2) {
        word &= UINT64_C(0x0303030303030303);
        word = (word | word >> 6) & UINT64_C(0x000f000f000f000f);
        word = (word | word >> 12) & UINT64_C(0x000000ff000000ff);
        return word | word >> 24;
    }
    word &= UINT64_C(0x0101010101010101);
    word = (word | word >> 7) & UINT64_C(0x0003000300030003);
    word = (word | word >> 14) & UINT64_C(0x0000000f0000000f);
    return word | word >> 28;
}

/* The way back: the lowest bits as eight codes. */
INLINE uint64_t apart(uint64_t word, int width) {
    if (width == 4) {
        word = (word | word << 16) & UINT64_C(0x0000ffff0000ffff);
        word = (word | word << 8) & UINT64_C(0x00ff00ff00ff00ff);
        return (word | word << 4) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    }
    if (width == 2) {
        word = (word | word << 24) & UINT64_C(0x000000ff000000ff);
        word = (word | word << 12) & UINT64_C(0x000f000f000f000f);
        return (word | word << 6) & UINT64_C(0x0303030303030303);
    }
    word = (word | word << 28) & UINT64_C(0x0000000f0000000f);
    word = (word | word << 14) & UINT64_C(0x0003000300030003);
    return (word | word << 7) & UINT64_C(0x0101010101010101);
}

/* As many codes of a byte as go in groups of eight. `width` is to be a constant. */
INLINE void pack_eights(const uint8_t *codes, int64_t groups, int width, int shift, uint8_t *out) {
    for (int64_t i = 0; i < groups; i++) {
        uint64_t word;
        memcpy(&word, codes + 8 * i, sizeof word);
        word = together(word >> shift, width);
        memcpy(out + width * i, &word, (size_t)width);
    }
}

INLINE void unpack_eights(const uint8_t *in, int64_t groups, int width, int shift, uint8_t *codes) {
    for (int64_t i = 0; i < groups; i++) {
        uint64_t word = 0, other;
        memcpy(&word, in + width * i, (size_t)width);
        memcpy(&other, codes + 8 * i, sizeof other);
        other |= apart(word, width) << shift;
        memcpy(codes + 8 * i, &other, sizeof other);
    }
}

INLINE uint8_t *pack_plane(const void *codes, int wide, int64_t count, int width, int shift, uint8_t *out) {
    const uint8_t *c8 = codes;
    const uint16_t *c16 = codes;
#define CODE(i) ((wide ? c16[i] : c8[i]) >> shift)
    int64_t share = 8 / width, whole = count / share, i = 0;
    if (!wide && width < 8) {
        if (width == 4) pack_eights(c8, count / 8, 4, shift, out);
        else if (width == 2) pack_eights(c8, count / 8, 2, shift, out);
        else pack_eights(c8, count / 8, 1, shift, out);
        i = count / 8 * width;
    }
    if (width == 8) for (; i < whole; i++) out[i] = (uint8_t)CODE(i);
    if (width == 4) for (; i < whole; i++) out[i] = (uint8_t)((CODE(2 * i) & 15) | (CODE(2 * i + 1) & 15) << 4);
    if (width == 2)
        for (; i < whole; i++)
            out[i] = (uint8_t)((CODE(4 * i) & 3) | (CODE(4 * i + 1) & 3) << 2 | (CODE(4 * i + 2) & 3) << 4 | (CODE(4 * i + 3) & 3) << 6);
    if (width == 1)
        for (; i < whole; i++) {
            unsigned byte = 0;
            for (int k = 0; k < 8; k++) byte |= (CODE(8 * i + k) & 1u) << k;
            out[i] = (uint8_t)byte;
        }
    if (whole * share < count) {
        unsigned byte = 0;
        for (int64_t k = whole * share; k < count; k++) byte |= (CODE(k) & ((1u << width) - 1)) << (width * (k - whole * share));
        out[whole++] = (uint8_t)byte;
    }
#undef CODE
    return out + whole;
}

INLINE const uint8_t *unpack_plane(const uint8_t *in, int wide, int64_t count, int width, int shift, void *codes) {
    uint8_t *c8 = codes;
    uint16_t *c16 = codes;
    int64_t share = 8 / width, whole = count / share, i = 0;
    unsigned mask = (1u << width) - 1;
    if (!wide && width < 8) {
        if (width == 4) unpack_eights(in, count / 8, 4, shift, c8);
        else if (width == 2) unpack_eights(in, count / 8, 2, shift, c8);
        else unpack_eights(in, count / 8, 1, shift, c8);
        i = count / 8 * width;
    }
#define PUT(i, value) do { if (wide) c16[i] = (uint16_t)(c16[i] | (value) << shift); else c8[i] = (uint8_t)(c8[i] | (value) << shift); } while (0)
    if (width == 8) for (; i < whole; i++) PUT(i, in[i]);
    if (width == 4) for (; i < whole; i++) for (int k = 0; k < 2; k++) PUT(2 * i + k, in[i] >> 4 * k & 15u);
    if (width == 2) for (; i < whole; i++) for (int k = 0; k < 4; k++) PUT(4 * i + k, in[i] >> 2 * k & 3u);
    if (width == 1) for (; i < whole; i++) for (int k = 0; k < 8; k++) PUT(8 * i + k, in[i] >> k & 1u);
    for (int64_t k = whole * share; k < count; k++) PUT(k, in[whole] >> (width * (k - whole * share)) & mask);
#undef PUT
    return in + (count + share - 1) / share;
}

/* Whether any position from `first` on has bits. */
INLINE int any_bits(const uint8_t *widths, int64_t count) {
    for (int64_t p = 0; p < count; p++)
        if (widths[p]) return 1;
    return 0;
}

/* The way along one axis of blocks of at most 64: matrices are padded to lanes of 8, so that loops over them have a fixed length. */
INLINE int64_t lanes_of(int64_t block) { return (block + 7) / 8 * 8; }

INLINE void padded(const float *matrix, int64_t block, int transpose, float *out) {
    int64_t lanes = lanes_of(block);
    memset(out, 0, (size_t)(block * lanes) * sizeof(float));
    for (int64_t k = 0; k < block; k++)
        for (int64_t j = 0; j < block; j++) out[(transpose ? j : k) * lanes + (transpose ? k : j)] = matrix[k * block + j];
}

/* Codes of coefficients relative to their steps. What is no number becomes 0. */
INLINE EightInt codes_of(Eight v, Eight bend, Eight half, Eight most) {
    const EightInt size = 0x7fffffff - (EightInt){0};
    v = v / (1 + bend * (Eight)((EightInt)v & size)) + half;
    v = chosen(v > 0, v, (Eight){0});
    return __builtin_convertvector(chosen(v < most, v, most), EightInt);
}

/* Copy eight codes, or what there is of them. */
INLINE void copy_some(void *to, const void *from, size_t bytes, int64_t some) {
    if (some >= 8) memcpy(to, from, 8 * bytes);
    else memcpy(to, from, (size_t)some * bytes);
}

/* Eight codes, or `some` of them, as bytes, or as two bytes each where they are `wide`. */
INLINE void put_codes(EightInt codes, int wide, int64_t some, uint8_t *to) {
    const EightShort shorts = __builtin_convertvector(codes, EightShort);
    if (wide) copy_some(to, &shorts, 2, some);
    else {
        const EightByte bytes = __builtin_convertvector(shorts, EightByte); /* in two steps, which machines have */
        copy_some(to, &bytes, 1, some);
    }
}

/* One row of a plane's blocks of `height` rows: out[w] = Σ matrix[i] · (rows[i][w] − mean). `height` is to be a constant. */
INLINE void down(const float *rows, int64_t height, int64_t width, const float *matrix, float mean, float *out) {
    float constant = 0;
    for (int64_t i = 0; i < height; i++) constant -= matrix[i] * mean;
    int64_t w = 0;
    for (; w + 8 <= width; w += 8) {
        Eight sum = constant - (Eight){0};
        for (int64_t i = 0; i < height; i++) sum += load(rows + i * width + w) * matrix[i];
        memcpy(out + w, &sum, sizeof sum);
    }
    for (; w < width; w++) {
        float sum = constant;
        for (int64_t i = 0; i < height; i++) sum += matrix[i] * rows[i * width + w];
        out[w] = sum;
    }
}

/* Codes of all frequencies of `blocks` blocks along the width, lanes of them a block. `block` is to be a constant where that is known. */
INLINE void across(const float *row, int64_t blocks, int64_t block, const float *matrix, const float *scale, const float *bend, const float *half,
                   const float *most, uint16_t *out) {
    const int64_t lanes = lanes_of(block);
    for (int64_t lane = 0; lane < lanes; lane += 8) {
        const Eight scales = load(scale + lane), bends = load(bend + lane), halves = load(half + lane), mosts = load(most + lane);
        for (int64_t b = 0; b < blocks; b++) {
            Eight sum = {0};
            for (int64_t j = 0; j < block; j++) sum += load(matrix + j * lanes + lane) * row[b * block + j];
            put_codes(codes_of(sum * scales, bends, halves, mosts), 1, 8, (uint8_t *)(out + b * lanes + lane));
        }
    }
}

/* The same for small blocks, a frequency at a time: the places of all blocks, one after the other, and a frequency of them. */
INLINE void places_of(const float *row, int64_t blocks, int64_t block, float *out) {
    for (int64_t j = 0; j < block; j++)
        for (int64_t b = 0; b < blocks; b++) out[j * blocks + b] = row[b * block + j];
}

INLINE void one_across(const float *places, int64_t blocks, int64_t block, const float *cosines, float *out) {
    for (int64_t b = 0; b < blocks; b++) {
        float sum = 0;
        for (int64_t j = 0; j < block; j++) sum += places[j * blocks + b] * cosines[j];
        out[b] = sum;
    }
}

/* The way back: `blocks` blocks of `block` values, each from its lanes of coefficients; some beyond the last are written too. */
INLINE void back_across(const float *lanes_of_blocks, int64_t blocks, int64_t block, const float *matrix, float *out) {
    const int64_t lanes = lanes_of(block);
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t lane = 0; lane < lanes; lane += 8) {
            Eight sum = {0};
            for (int64_t k = 0; k < block; k++) sum += load(matrix + k * lanes + lane) * lanes_of_blocks[b * lanes + k];
            memcpy(out + b * block + lane, &sum, sizeof sum);
        }
}

/* out[i][w] = mean + Σ matrix[f][i] · rows[f][w], inside the bounds; rows are `apart` floats from each other. `height` is to be a constant. */
INLINE void back_down(const float *rows, int64_t apart, int64_t height, int64_t width, const float *matrix, const Plan *p, float mean, float *out) {
    const float low = p->low, high = p->high;
    const Eight lows = low - (Eight){0}, highs = high - (Eight){0};
    for (int64_t i = 0; i < height; i++) {
        int64_t w = 0;
        for (; w + 8 <= width; w += 8) {
            Eight sum = mean - (Eight){0};
            for (int64_t f = 0; f < height; f++) sum += load(rows + f * apart + w) * matrix[f * height + i];
            sum = chosen(sum < lows, lows, sum);
            sum = chosen(sum > highs, highs, sum);
            memcpy(out + i * width + w, &sum, sizeof sum);
        }
        for (; w < width; w++) {
            float sum = mean;
            for (int64_t f = 0; f < height; f++) sum += matrix[f * height + i] * rows[f * apart + w];
            sum = sum < low ? low : sum;
            out[i * width + w] = sum > high ? high : sum;
        }
    }
}

#define WITH_CONSTANT(variable, call) \
    switch (variable) { \
    case 1: { enum { N = 1 }; call; break; } \
    case 2: { enum { N = 2 }; call; break; } \
    case 4: { enum { N = 4 }; call; break; } \
    case 7: { enum { N = 7 }; call; break; } \
    case 8: { enum { N = 8 }; call; break; } \
    default: { const int64_t N = variable; call; } \
    }

#define WITH_SMALL(variable, call) \
    if (variable == 2) { enum { N = 2 }; call; } \
    else { enum { N = 4 }; call; }

/* Finite where the gain is: 0 is 0 steps whatever the step. */
INLINE float scale_of(float inverse, float step) {
    const float scale = inverse / step;
    return scale > FLT_MAX ? FLT_MAX : scale;
}

/* Code of one coefficient relative to its step. What is no number becomes 0. */
INLINE float in_range(float v, float bend, float half, float most) {
    v = v / (1 + bend * fabsf(v)) + half;
    v = v > 0 ? v : 0;
    return v < most ? v : most;
}

INLINE void code_one(const float *row, int64_t count, float mean, float scale, float bend, int bits, uint8_t *codes) {
    float half = (float)(1 << (bits - 1)), most = (float)((1 << bits) - 1);
    uint16_t *wide = (uint16_t *)codes;
    if (bits <= 8) for (int64_t b = 0; b < count; b++) codes[b] = (uint8_t)(int32_t)in_range((row[b] - mean) * scale, bend, half, most);
    else for (int64_t b = 0; b < count; b++) wide[b] = (uint16_t)(int32_t)in_range((row[b] - mean) * scale, bend, half, most);
}

/* What codes of many bits stand for. */
INLINE void unbend(const uint16_t *codes, int64_t count, float first, float bend, float step, float *out, int64_t stride) {
    for (int64_t b = 0; b < count; b++) {
        const float centred = (float)codes[b] + first;
        out[b * stride] = centred * step / (1 - bend * fabsf(centred));
    }
}

/* The energy of a sample less its means: in float for a while and in double for the whole, or all in double where squares leave float's range. */
INLINE double energy_of(const Plan *p, const float *x) {
    const int64_t size = p->height * p->width;
    double energy = 0;
    for (int64_t plane = 0; plane < p->planes; plane++) {
        const float mean = p->means[plane], *at = x + plane * size;
        int64_t i = 0;
        while (i + 8 <= size) {
            const int64_t end = i + 256 < size ? i + 256 : size;
            Eight part = {0};
            for (; i + 8 <= end; i += 8) {
                const Eight d = load(at + i) - mean;
                part += d * d;
            }
            for (int k = 0; k < 8; k++) energy += (double)part[k];
        }
        for (; i < size; i++) energy += (double)(at[i] - mean) * (double)(at[i] - mean);
    }
    if (energy > 1e-20 && energy < 1e30) return energy;
    energy = 0;
    for (int64_t plane = 0; plane < p->planes; plane++)
        for (int64_t i = 0; i < size; i++) {
            const double d = (double)(x[plane * size + i] - p->means[plane]);
            energy += d * d;
        }
    return energy;
}

#ifdef MEMFIT_EIGHTS
#define MEMFIT_ROWS 512 /* floats of each of eight rows of frequencies that are worked on at once */

/* Codes of one plane in blocks of 8 x 8. floats: room for 9 * (MEMFIT_ROWS or the width, if that is more) + 64 of them. */
FAST static void encode_eights(const Plan *p, const float *x, int64_t plane, float inverse, uint8_t *codes, float *floats) {
    const uint8_t *widths = p->widths + plane * 64;
    const float *deviations = p->deviations + plane * 64, mean = p->means[plane] * 8 * p->cosines_height[0];
    const int64_t block_rows = p->height / 8, columns = p->width / 8, width = p->width;
    const int64_t run = width < MEMFIT_ROWS ? MEMFIT_ROWS / width : 1, apart = run * width;
    float *rows = floats, *folds = rows + 8 * apart;
    int used[8];
    for (int f = 0; f < 8; f++) used[f] = any_bits(widths + 8 * f, 8);
    for (int64_t first = 0; first < block_rows; first += run) {
        const int64_t count = block_rows - first < run ? block_rows - first : run, blocks = count * columns;
        for (int64_t r = 0; r < count; r++) {
            const float *block = x + (first + r) * 8 * width;
            for (int64_t w = 0; w < width; w += 8) {
                Eight v[8], halves[8];
                UNROLLED for (int i = 0; i < 8; i++) v[i] = load(block + i * width + w);
                folded(v, halves);
                UNROLLED for (int f = 0; f < 8; f++) {
                    if (!used[f]) continue;
                    Eight sum = frequency(halves, p->cosines_height + 8 * f, f);
                    if (!f) sum -= mean;
                    memcpy(rows + f * apart + r * width + w, &sum, sizeof sum);
                }
            }
        }
        for (int f = 0; f < 8; f++) {
            if (!used[f]) continue;
            for (int64_t b = 0; b < blocks; b += 8) {
                const float *from = rows + f * apart + b * 8; /* beyond the last block lie numbers that nobody reads */
                Eight v[8], halves[8];
                UNROLLED for (int i = 0; i < 8; i++) v[i] = load(from + 8 * i);
                transposed(v);
                folded(v, halves);
                memcpy(folds + b * 8, halves, sizeof halves);
            }
            for (int k = 0; k < 8; k++) {
                const int n = 8 * f + k, bits = widths[n], wide = bits > 8;
                if (!bits) continue;
                const Eight halves = (float)(1 << (bits - 1)) - (Eight){0}, mosts = (float)((1 << bits) - 1) - (Eight){0},
                            bends = p->bends[bits] - (Eight){0};
                const float scale = scale_of(inverse, deviations[n] * p->steps[bits]), *cosines = p->cosines_width + 8 * k;
                const Eight c0 = cosines[0] - (Eight){0}, c1 = cosines[1] - (Eight){0}, c2 = cosines[2] - (Eight){0},
                            c3 = cosines[3] - (Eight){0};
                uint8_t *to = codes + p->places[plane * 64 + n] + first * columns * (wide ? 2 : 1);
                for (int64_t b = 0; b < blocks; b += 8) {
                    const float *of = folds + b * 8 + 32 * (k & 1);
                    const Eight sum = (load(of) * c0 + load(of + 8) * c1 + load(of + 16) * c2 + load(of + 24) * c3) * scale;
                    put_codes(codes_of(sum, bends, halves, mosts), wide, blocks - b, to + (wide ? 2 : 1) * b);
                }
            }
        }
    }
}

/* The way back. */
FAST static void decode_eights(const Plan *p, const uint8_t *codes, int64_t plane, float gain, float *x, float *floats) {
    const uint8_t *widths = p->widths + plane * 64;
    const float *deviations = p->deviations + plane * 64, mean = p->means[plane];
    const int64_t block_rows = p->height / 8, columns = p->width / 8, width = p->width;
    const int64_t run = width < MEMFIT_ROWS ? MEMFIT_ROWS / width : 1, apart = run * width, apart_k = (run * columns + 7) / 8 * 8;
    const Eight lows = p->low - (Eight){0}, highs = p->high - (Eight){0};
    float *rows = floats, *values = rows + 8 * apart + 64;
    int used[8];
    for (int f = 0; f < 8; f++) used[f] = any_bits(widths + 8 * f, 8);
    for (int64_t first = 0; first < block_rows; first += run) {
        const int64_t count = block_rows - first < run ? block_rows - first : run, blocks = count * columns;
        for (int f = 0; f < 8; f++) {
            if (!used[f]) continue;
            for (int k = 0; k < 8; k++) {
                const int n = 8 * f + k, bits = widths[n];
                if (!bits) continue;
                const float *levels = p->levels + p->level_places[bits], unit = deviations[n] * gain;
                const uint8_t *c8 = codes + p->places[plane * 64 + n] + first * columns * (bits > 8 ? 2 : 1);
                const uint16_t *c16 = (const uint16_t *)c8;
                float *to = values + k * apart_k;
                if (bits > 8) unbend(c16, blocks, p->shift - (float)(1 << (bits - 1)), p->bends[bits], p->steps[bits] * unit, to, 1);
                else for (int64_t b = 0; b < blocks; b++) to[b] = levels[c8[b]] * unit;
            }
            for (int64_t b = 0; b < blocks; b += 8) {
                Eight v[8], halves[8] = {{0}};
                UNROLLED for (int k = 0; k < 8; k++)
                    if (widths[8 * f + k]) add_frequency(halves, load(values + k * apart_k + b), p->cosines_width + 8 * k, k);
                unfolded(halves, v);
                transposed(v);
                memcpy(rows + f * apart + b * 8, v, sizeof v); /* beyond the last block, what the next frequency writes over */
            }
        }
        for (int64_t r = 0; r < count; r++) {
            float *block = x + (first + r) * 8 * width;
            for (int64_t w = 0; w < width; w += 8) {
                Eight v[8], halves[8] = {{0}};
                UNROLLED for (int f = 0; f < 8; f++)
                    if (used[f]) add_frequency(halves, load(rows + f * apart + r * width + w), p->cosines_height + 8 * f, f);
                unfolded(halves, v);
                UNROLLED for (int i = 0; i < 8; i++) {
                    Eight sum = v[i] + mean;
                    sum = chosen(sum < lows, lows, sum);
                    sum = chosen(sum > highs, highs, sum);
                    memcpy(block + i * width + w, &sum, sizeof sum);
                }
            }
        }
    }
}
#endif

/* Rows of blocks that are worked on at once: MEMFIT_RUN blocks or so, whose coefficients stay in the nearest cache. */
#define MEMFIT_RUN 512

/* Samples of `x` (samples, planes, height, width) to rows of bytes, and their gains.

   codes: room for a sample's codes unpacked; floats: room as `memfit.native` works it out. */
FAST void memfit_encode(const Plan *plan, const float *x, int64_t samples, uint8_t *out, float *gains, uint8_t *codes, float *floats) {
    const Plan p = *plan;
    const int64_t size = p.height * p.width, block_rows = p.height / p.block_height, columns = p.width / p.block_width;
    const int64_t frequencies = p.block_height * p.block_width, lanes = lanes_of(p.block_width);
    const int64_t run = columns < MEMFIT_RUN ? MEMFIT_RUN / columns : 1;
    const int small = p.block_width == 2 || p.block_width == 4;
    float *matrix = floats, *scale = matrix + p.block_width * lanes, *bend = scale + lanes, *half = bend + lanes, *most = half + lanes;
    float *row = most + lanes;
    uint16_t *coded = (uint16_t *)(row + run * p.width + 8);
    padded(p.cosines_width, p.block_width, 1, matrix);
    for (int64_t sample = 0; sample < samples; sample++, x += p.planes * size, out += p.row_bytes) {
        const double energy = energy_of(&p, x);
        float gain = isfinite(energy) ? (float)sqrt(energy / (double)(p.planes * size)) : NAN;
        gains[sample] = gain;
        const float inverse = isnan(gain) ? NAN : 1.0f / (gain > FLT_MIN ? gain : FLT_MIN);
        for (int64_t plane = 0; plane < p.planes; plane++) {
            const uint8_t *widths = p.widths + plane * frequencies;
            const float mean = p.means[plane], *deviations = p.deviations + plane * frequencies;
            const int32_t *places = p.places + plane * frequencies;
            if (!any_bits(widths, frequencies)) continue;
            if (frequencies == 1) {
                const float step = deviations[0] * p.steps[widths[0]];
                code_one(x + plane * size, size, mean, scale_of(inverse, step), p.bends[widths[0]], widths[0], codes + places[0]);
                continue;
            }
#ifdef MEMFIT_EIGHTS
            if (p.block_height == 8 && p.block_width == 8) {
                encode_eights(&p, x + plane * size, plane, inverse, codes, row);
                continue;
            }
#endif
            for (int64_t f = 0; f < p.block_height; f++, widths += p.block_width, deviations += p.block_width, places += p.block_width) {
                if (!any_bits(widths, p.block_width)) continue;
                for (int64_t k = 0; k < lanes; k++) {
                    int bits = k < p.block_width ? widths[k] : 0;
                    scale[k] = bits ? scale_of(inverse, deviations[k] * p.steps[bits]) : 0, bend[k] = p.bends[bits];
                    half[k] = bits ? (float)(1 << (bits - 1)) : 0, most[k] = bits ? (float)((1 << bits) - 1) : 0;
                }
                for (int64_t first = 0; first < block_rows; first += run) {
                    const int64_t rows = block_rows - first < run ? block_rows - first : run, blocks = rows * columns;
                    for (int64_t r = 0; r < rows; r++) {
                        const float *block = x + plane * size + (first + r) * p.block_height * p.width;
                        const float *cosines = p.cosines_height + f * p.block_height;
                        WITH_CONSTANT(p.block_height, down(block, N, p.width, cosines, mean, row + r * p.width))
                    }
                    if (p.block_width == 1) {
                        code_one(row, blocks, 0, scale[0], bend[0], widths[0], codes + places[0] + first * columns * (widths[0] > 8 ? 2 : 1));
                        continue;
                    }
                    if (small) {
                        float *split = (float *)coded, *one = split + rows * p.width;
                        WITH_SMALL(p.block_width, places_of(row, blocks, N, split))
                        for (int64_t k = 0; k < p.block_width; k++) {
                            if (!widths[k]) continue;
                            uint8_t *to = codes + places[k] + first * columns * (widths[k] > 8 ? 2 : 1);
                            WITH_SMALL(p.block_width, one_across(split, blocks, N, p.cosines_width + k * N, one))
                            code_one(one, blocks, 0, scale[k], bend[k], widths[k], to);
                        }
                        continue;
                    }
                    WITH_CONSTANT(p.block_width, across(row, blocks, N, matrix, scale, bend, half, most, coded))
                    for (int64_t k = 0; k < p.block_width; k++) {
                        uint8_t *to = codes + places[k] + first * columns * (widths[k] > 8 ? 2 : 1);
                        uint16_t *wide = (uint16_t *)to;
                        if (widths[k] > 8) for (int64_t b = 0; b < blocks; b++) wide[b] = coded[b * lanes + k];
                        else if (widths[k]) for (int64_t b = 0; b < blocks; b++) to[b] = (uint8_t)coded[b * lanes + k];
                    }
                }
            }
        }
        uint8_t *to = out;
        for (int64_t group = 0; group < p.groups; group++) {
            int bits = (int)p.group_widths[group], width[8], shift[8], count = planes_of(bits, width, shift);
            for (int n = 0; n < count; n++) {
                const uint8_t *from = codes + p.group_places[group];
                if (bits <= 8) to = pack_plane(from, 0, p.group_counts[group], width[n], shift[n], to);
                else to = pack_plane(from, 1, p.group_counts[group], width[n], shift[n], to);
            }
        }
    }
}

/* The way back: a sample's row of bytes to its codes. */
INLINE void unpacked(const Plan *p, const uint8_t *from, uint8_t *codes) {
    memset(codes, 0, (size_t)p->code_bytes);
    for (int64_t group = 0; group < p->groups; group++) {
        int bits = (int)p->group_widths[group], width[8], shift[8], count = planes_of(bits, width, shift);
        for (int n = 0; n < count; n++) {
            uint8_t *to = codes + p->group_places[group];
            if (bits <= 8) from = unpack_plane(from, 0, p->group_counts[group], width[n], shift[n], to);
            else from = unpack_plane(from, 1, p->group_counts[group], width[n], shift[n], to);
        }
    }
}

/* Codes and the gain of a sample to some planes of it. */
INLINE void decoded(const Plan *p, const uint8_t *codes, float gain, int64_t first_plane, int64_t end, float *x, float *floats) {
    const int64_t size = p->height * p->width, block_rows = p->height / p->block_height, columns = p->width / p->block_width;
    const int64_t frequencies = p->block_height * p->block_width, lanes = lanes_of(p->block_width);
    const int64_t run = columns < MEMFIT_RUN ? MEMFIT_RUN / columns : 1, apart = run * p->width + lanes;
    float *matrix = floats, *rows_of = matrix + p->block_width * lanes, *coefficients = rows_of + p->block_height * apart;
    if (isnan(gain)) {
        for (int64_t i = first_plane * size; i < end * size; i++) x[i] = NAN;
        return;
    }
    padded(p->cosines_width, p->block_width, 0, matrix);
    for (int64_t plane = first_plane; plane < end; plane++) {
        const uint8_t *widths = p->widths + plane * frequencies;
        const float mean = p->means[plane], *deviations = p->deviations + plane * frequencies;
        const int32_t *places = p->places + plane * frequencies;
        float *to = x + plane * size;
        if (!any_bits(widths, frequencies)) {
            const float value = mean < p->low ? p->low : mean > p->high ? p->high : mean;
            for (int64_t i = 0; i < size; i++) to[i] = value;
            continue;
        }
#ifdef MEMFIT_EIGHTS
        if (p->block_height == 8 && p->block_width == 8) {
            decode_eights(p, codes, plane, gain, to, rows_of);
            continue;
        }
#endif
        for (int64_t first = 0; first < block_rows; first += run) {
            const int64_t rows = block_rows - first < run ? block_rows - first : run, blocks = rows * columns;
            for (int64_t f = 0; f < p->block_height; f++) {
                float *row = rows_of + f * apart;
                if (!any_bits(widths + f * p->block_width, p->block_width)) {
                    memset(row, 0, (size_t)(rows * p->width) * sizeof(float));
                    continue;
                }
                float *into = p->block_width == 1 ? row : coefficients;
                for (int64_t k = 0; k < p->block_width; k++) {
                    const int64_t position = f * p->block_width + k, stride = p->block_width == 1 ? 1 : lanes;
                    const int bits = widths[position];
                    const uint8_t *c8 = codes + (bits ? places[position] + first * columns * (bits > 8 ? 2 : 1) : 0);
                    const uint16_t *c16 = (const uint16_t *)c8;
                    const float unit = bits ? deviations[position] * gain : 0, *levels = p->levels + p->level_places[bits];
                    float *at = into + k;
                    if (!bits) for (int64_t b = 0; b < blocks; b++) at[b * stride] = 0;
                    else if (stride == 1 && bits <= 8) for (int64_t b = 0; b < blocks; b++) at[b] = levels[c8[b]] * unit;
                    else if (bits <= 8) for (int64_t b = 0; b < blocks; b++) at[b * stride] = levels[c8[b]] * unit;
                    else unbend(c16, blocks, p->shift - (float)(1 << (bits - 1)), p->bends[bits], p->steps[bits] * unit, at, stride);
                }
                if (p->block_width > 1) WITH_CONSTANT(p->block_width, back_across(coefficients, blocks, N, matrix, row))
            }
            for (int64_t r = 0; r < rows; r++) {
                float *block = to + (first + r) * p->block_height * p->width;
                WITH_CONSTANT(p->block_height, back_down(rows_of + r * p->width, apart, N, p->width, p->cosines_height, p, mean, block))
            }
        }
    }
}

/* Rows of bytes and gains to samples of `x`. */
FAST void memfit_decode(const Plan *plan, const uint8_t *in, const float *gains, int64_t samples, float *x, uint8_t *codes, float *floats) {
    const Plan p = *plan;
    for (int64_t sample = 0; sample < samples; sample++, x += p.planes * p.height * p.width, in += p.row_bytes) {
        unpacked(&p, in, codes);
        decoded(&p, codes, gains[sample], 0, p.planes, x, floats);
    }
}

/* The same in two steps, for threads that share a sample. */
FAST void memfit_unpack(const Plan *plan, const uint8_t *in, uint8_t *codes) {
    const Plan p = *plan;
    unpacked(&p, in, codes);
}

FAST void memfit_decode_planes(const Plan *plan, const uint8_t *codes, float gain, int64_t first, int64_t end, float *x, float *floats) {
    const Plan p = *plan;
    decoded(&p, codes, gain, first, end, x, floats);
}
