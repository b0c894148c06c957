/* Cosine transform, quantising and packing of `memfit.forms.coded` in one pass over each sample, and the way back.

   The same numbers as the torch operations there, but for rounding; `memfit.native` calls it where it was built. No Python and no
   torch in here: arrays come as addresses, sizes are the caller's to check.

   A plane is one direction of the features: a map of height x width in blocks. A position is a direction and a frequency. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

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

INLINE uint8_t *pack_plane(const void *codes, int wide, int64_t count, int width, int shift, uint8_t *out) {
    const uint8_t *c8 = codes;
    const uint16_t *c16 = codes;
#define CODE(i) ((wide ? c16[i] : c8[i]) >> shift)
    int64_t share = 8 / width, whole = count / share, i = 0;
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
    int64_t share = 8 / width, whole = count / share;
    unsigned mask = (1u << width) - 1;
#define PUT(i, value) do { if (wide) c16[i] = (uint16_t)(c16[i] | (value) << shift); else c8[i] = (uint8_t)(c8[i] | (value) << shift); } while (0)
    if (width == 8) for (int64_t i = 0; i < whole; i++) PUT(i, in[i]);
    if (width == 4) for (int64_t i = 0; i < whole; i++) for (int k = 0; k < 2; k++) PUT(2 * i + k, in[i] >> 4 * k & 15u);
    if (width == 2) for (int64_t i = 0; i < whole; i++) for (int k = 0; k < 4; k++) PUT(4 * i + k, in[i] >> 2 * k & 3u);
    if (width == 1) for (int64_t i = 0; i < whole; i++) for (int k = 0; k < 8; k++) PUT(8 * i + k, in[i] >> k & 1u);
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

/* Code of a coefficient relative to its step. What is no number becomes 0. */
INLINE float in_range(float v, float bend, float half, float most) {
    v = v / (1 + bend * fabsf(v)) + half;
    v = v > 0 ? v : 0;
    return v < most ? v : most;
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
        const EightInt size = 0x7fffffff - (EightInt){0};
        for (int64_t b = 0; b < blocks; b++) {
            Eight sum = {0};
            for (int64_t j = 0; j < block; j++) sum += load(matrix + j * lanes + lane) * row[b * block + j];
            sum *= scales;
            sum = sum / (1 + bends * (Eight)((EightInt)sum & size)) + halves;
            sum = chosen(sum > 0, sum, (Eight){0}); /* what is no number becomes 0 */
            sum = chosen(sum < mosts, sum, mosts);
            const EightShort codes = __builtin_convertvector(__builtin_convertvector(sum, EightInt), EightShort);
            memcpy(out + b * lanes + lane, &codes, sizeof codes);
        }
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

/* Finite where the gain is: 0 is 0 steps whatever the step. */
INLINE float scale_of(float inverse, float step) {
    const float scale = inverse / step;
    return scale > FLT_MAX ? FLT_MAX : scale;
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

/* Rows of blocks that are worked on at once: MEMFIT_RUN blocks or so, whose coefficients stay in the nearest cache. */
#define MEMFIT_RUN 512

/* Samples of `x` (samples, planes, height, width) to rows of bytes, and their gains.

   codes: room for a sample's codes unpacked; floats: room as `memfit.native` works it out. */
FAST void memfit_encode(const Plan *plan, const float *x, int64_t samples, uint8_t *out, float *gains, uint8_t *codes, float *floats) {
    const Plan p = *plan;
    const int64_t size = p.height * p.width, block_rows = p.height / p.block_height, columns = p.width / p.block_width;
    const int64_t frequencies = p.block_height * p.block_width, lanes = lanes_of(p.block_width);
    const int64_t run = columns < MEMFIT_RUN ? MEMFIT_RUN / columns : 1;
    float *matrix = floats, *scale = matrix + p.block_width * lanes, *bend = scale + lanes, *half = bend + lanes, *most = half + lanes;
    float *row = most + lanes;
    uint16_t *coded = (uint16_t *)(row + run * p.width + 8);
    padded(p.cosines_width, p.block_width, 1, matrix);
    for (int64_t sample = 0; sample < samples; sample++, x += p.planes * size, out += p.row_bytes) {
        double energy = 0;
        for (int64_t plane = 0; plane < p.planes; plane++) {
            double part[8] = {0};
            const float mean = p.means[plane], *at = x + plane * size;
            int64_t i = 0;
            for (; i + 8 <= size; i += 8)
                for (int k = 0; k < 8; k++) {
                    double d = (double)(at[i + k] - mean);
                    part[k] += d * d;
                }
            for (; i < size; i++) part[0] += (double)(at[i] - mean) * (double)(at[i] - mean);
            for (int k = 0; k < 8; k++) energy += part[k];
        }
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

/* Rows of bytes and gains to samples of `x`: the way back. */
FAST void memfit_decode(const Plan *plan, const uint8_t *in, const float *gains, int64_t samples, float *x, uint8_t *codes, float *floats) {
    const Plan p = *plan;
    const int64_t size = p.height * p.width, block_rows = p.height / p.block_height, columns = p.width / p.block_width;
    const int64_t frequencies = p.block_height * p.block_width, lanes = lanes_of(p.block_width);
    const int64_t run = columns < MEMFIT_RUN ? MEMFIT_RUN / columns : 1, apart = run * p.width + lanes;
    float *matrix = floats, *rows_of = matrix + p.block_width * lanes, *coefficients = rows_of + p.block_height * apart;
    padded(p.cosines_width, p.block_width, 0, matrix);
    for (int64_t sample = 0; sample < samples; sample++, x += p.planes * size, in += p.row_bytes) {
        const float gain = gains[sample];
        if (isnan(gain)) {
            for (int64_t i = 0; i < p.planes * size; i++) x[i] = NAN;
            continue;
        }
        memset(codes, 0, (size_t)p.code_bytes);
        const uint8_t *from = in;
        for (int64_t group = 0; group < p.groups; group++) {
            int bits = (int)p.group_widths[group], width[8], shift[8], count = planes_of(bits, width, shift);
            for (int n = 0; n < count; n++) {
                uint8_t *to = codes + p.group_places[group];
                if (bits <= 8) from = unpack_plane(from, 0, p.group_counts[group], width[n], shift[n], to);
                else from = unpack_plane(from, 1, p.group_counts[group], width[n], shift[n], to);
            }
        }
        for (int64_t plane = 0; plane < p.planes; plane++) {
            const uint8_t *widths = p.widths + plane * frequencies;
            const float mean = p.means[plane], *deviations = p.deviations + plane * frequencies;
            const int32_t *places = p.places + plane * frequencies;
            float *to = x + plane * size;
            if (!any_bits(widths, frequencies)) {
                const float value = mean < p.low ? p.low : mean > p.high ? p.high : mean;
                for (int64_t i = 0; i < size; i++) to[i] = value;
                continue;
            }
            for (int64_t first = 0; first < block_rows; first += run) {
                const int64_t rows = block_rows - first < run ? block_rows - first : run, blocks = rows * columns;
                for (int64_t f = 0; f < p.block_height; f++) {
                    float *row = rows_of + f * apart;
                    if (!any_bits(widths + f * p.block_width, p.block_width)) {
                        memset(row, 0, (size_t)(rows * p.width) * sizeof(float));
                        continue;
                    }
                    float *into = p.block_width == 1 ? row : coefficients;
                    for (int64_t k = 0; k < p.block_width; k++) {
                        const int64_t position = f * p.block_width + k, stride = p.block_width == 1 ? 1 : lanes;
                        const int bits = widths[position];
                        const uint8_t *c8 = codes + (bits ? places[position] + first * columns * (bits > 8 ? 2 : 1) : 0);
                        const uint16_t *c16 = (const uint16_t *)c8;
                        const float unit = bits ? deviations[position] * gain : 0, *levels = p.levels + p.level_places[bits];
                        float *at = into + k;
                        if (!bits) for (int64_t b = 0; b < blocks; b++) at[b * stride] = 0;
                        else if (stride == 1 && bits <= 8) for (int64_t b = 0; b < blocks; b++) at[b] = levels[c8[b]] * unit;
                        else if (bits <= 8) for (int64_t b = 0; b < blocks; b++) at[b * stride] = levels[c8[b]] * unit;
                        else unbend(c16, blocks, p.shift - (float)(1 << (bits - 1)), p.bends[bits], p.steps[bits] * unit, at, stride);
                    }
                    if (p.block_width > 1) WITH_CONSTANT(p.block_width, back_across(coefficients, blocks, N, matrix, row))
                }
                for (int64_t r = 0; r < rows; r++) {
                    float *block = to + (first + r) * p.block_height * p.width;
                    WITH_CONSTANT(p.block_height, back_down(rows_of + r * p.width, apart, N, p.width, p.cosines_height, &p, mean, block))
                }
            }
        }
    }
}
