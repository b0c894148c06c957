/* Depthwise convolution of two axes, a kernel a channel, and its gradients: plane by plane where the values lie, without laying them out anew.

   The same numbers as torch's convolution, but for rounding; `memfit.native` calls it where it was built. */

#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define MEMFIT_KERNEL 7 /* most places of a kernel along an axis */

typedef struct {
    int64_t channels, height, width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
} Shape;

/* A plane of so many rows, each padded and cut by the stride: place x is at x % stride * length + x / stride of its row. */
typedef struct {
    float *rows;
    int64_t length, stride; /* of one remainder of a row; of the remainders */
} Padded;

INLINE int64_t length_of(const Shape *s) {
    const int64_t padded = s->width + 2 * s->padding_width, read = s->out_width + s->kernel_width;
    return (padded > read ? padded : read) / s->stride_width + 24;
}

/* Floats of scratch for each thread. */
int64_t memfit_depthwise_floats(const Shape *s) {
    const int64_t rows = s->height + 2 * s->padding_height + s->kernel_height + s->out_height;
    return (rows + 8) * s->stride_width * length_of(s);
}

/* Rows around the plane, and places around a row, stay as they are: zero. */
INLINE void lay_out(const float *plane, const Shape *s, Padded *p) {
    const float *end = plane + s->height * s->width;
    for (int64_t y = 0; y < s->height; y++) {
        float *to = p->rows + (y + s->padding_height) * p->stride * p->length;
        const float *from = plane + y * s->width;
        if (p->stride == 1) {
            const int64_t whole = from + s->width + 8 <= end ? s->width : s->width - 7; /* vectors may read into the next rows */
            int64_t x = 0;
            for (; x < whole; x += 8) {
                const Eight values = load(from + x);
                memcpy(to + s->padding_width + x, &values, sizeof values);
            }
            for (; x < s->width; x++) to[s->padding_width + x] = from[x];
            memset(to + s->padding_width + s->width, 0, 8 * sizeof(float));
        } else
            for (int64_t f = 0; f < p->stride; f++) {
                int64_t x = f - s->padding_width, m = 0;
                for (; x < 0; x += p->stride) m++;
                const int64_t count = (s->width - x + p->stride - 1) / p->stride;
                float *at = to + f * p->length + m;
                if (p->stride == 2) for (int64_t k = 0; k < count; k++) at[k] = from[x + 2 * k];
                else for (int64_t k = 0; k < count; k++) at[k] = from[x + p->stride * k];
            }
    }
}

/* Rows are written one after the other, so what goes beyond one is written over, but for the plane's end. */
INLINE void store_in(float *to, Eight values, const float *end) {
    if (to + 8 <= end) memcpy(to, &values, sizeof values);
    else for (int64_t k = 0; to + k < end; k++) to[k] = values[k];
}

INLINE void forward_plane(const Padded *p, const Shape *s, const float *kernel, int64_t kernel_height, int64_t kernel_width, int64_t stride,
                          float bias, float *out) {
    const float *end = out + s->out_height * s->out_width;
    for (int64_t y = 0; y < s->out_height; y++)
        for (int64_t x = 0; x < s->out_width; x += 8) {
            Eight sum = bias - (Eight){0};
            for (int64_t i = 0; i < kernel_height; i++)
                for (int64_t j = 0; j < kernel_width; j++)
                    sum += load(p->rows + ((y * s->stride_height + i) * stride + j % stride) * p->length + x + j / stride) * kernel[i * kernel_width + j];
            store_in(out + y * s->out_width + x, sum, end);
        }
}

INLINE void weight_plane(const Padded *p, const Shape *s, const float *grad, int64_t kernel_height, int64_t kernel_width, int64_t stride, Eight *sums) {
    const EightInt lanes = {0, 1, 2, 3, 4, 5, 6, 7}, in_row = lanes < (int32_t)((s->out_width + 7) % 8 + 1);
    const float *end = grad + s->out_height * s->out_width;
    for (int64_t y = 0; y < s->out_height; y++)
        for (int64_t x = 0; x < s->out_width; x += 8) {
            const float *from = grad + y * s->out_width + x;
            Eight g = {0};
            if (from + 8 <= end) g = load(from);
            else memcpy(&g, from, (size_t)(end - from) * sizeof(float));
            if (x + 8 > s->out_width) g = chosen(in_row, g, (Eight){0});
            for (int64_t i = 0; i < kernel_height; i++)
                for (int64_t j = 0; j < kernel_width; j++)
                    sums[i * kernel_width + j] += load(p->rows + ((y * s->stride_height + i) * stride + j % stride) * p->length + x + j / stride) * g;
        }
}

/* One row of the input's gradient, the places of one remainder, and some more: of `count` rows of the result's gradient, which have as many
   zeros before and after them as are read, and the kernel's rows that belong to them. */
INLINE void input_row(const float *const *grads, const float *const *kernels, int64_t count, int64_t kernel_width, int64_t stride,
                      int64_t remainder, int64_t places, float *out) {
    for (int64_t m = 0; m < places; m += 8) {
        Eight sum = {0};
        for (int64_t n = 0; n < count; n++)
            for (int64_t j = 0; j < kernel_width; j++)
                if (j % stride == remainder) sum += load(grads[n] + m - j / stride) * kernels[n][j];
        memcpy(out + m, &sum, sizeof sum);
    }
}

/* The kernel's sizes and the stride as constants where they are frequent, so that sums stay in registers. */
#define WITH_SIZES(call) \
    if (s->kernel_height == 3 && s->kernel_width == 3 && s->stride_width == 1) { enum { KH = 3, KW = 3, S = 1 }; (void)KH; call; } \
    else if (s->kernel_height == 3 && s->kernel_width == 3 && s->stride_width == 2) { enum { KH = 3, KW = 3, S = 2 }; (void)KH; call; } \
    else if (s->kernel_height == 5 && s->kernel_width == 5 && s->stride_width == 1) { enum { KH = 5, KW = 5, S = 1 }; (void)KH; call; } \
    else { const int64_t KH = s->kernel_height, KW = s->kernel_width, S = s->stride_width; (void)KH; call; }

/* Planes first to last - 1 of (samples, channels): the convolution of `x`. `floats`: scratch; kernels (channels, height, width). */
FAST void memfit_depthwise(const Shape *s, const float *x, const float *kernels, const float *biases, int64_t first, int64_t last, float *out,
                           float *floats) {
    Padded p = {floats, length_of(s), s->stride_width};
    memset(floats, 0, (size_t)memfit_depthwise_floats(s) * sizeof(float));
    for (int64_t plane = first; plane < last; plane++) {
        const int64_t channel = plane % s->channels;
        const float *kernel = kernels + channel * s->kernel_height * s->kernel_width, bias = biases ? biases[channel] : 0;
        float *to = out + plane * s->out_height * s->out_width;
        lay_out(x + plane * s->height * s->width, s, &p);
        WITH_SIZES(forward_plane(&p, s, kernel, KH, KW, S, bias, to))
    }
}

/* The gradient of `x` from that of the result. */
FAST void memfit_depthwise_input(const Shape *s, const float *grad, const float *kernels, int64_t first, int64_t last, float *out, float *floats) {
    const int64_t stride = s->stride_width, length = length_of(s) + 2 * s->kernel_width;
    float *rows = floats, *parts = rows + s->out_height * length, *joined = parts + stride * length;
    memset(floats, 0, (size_t)memfit_depthwise_floats(s) * sizeof(float));
    for (int64_t plane = first; plane < last; plane++) {
        const float *kernel = kernels + plane % s->channels * s->kernel_height * s->kernel_width;
        float *to = out + plane * s->height * s->width;
        for (int64_t y = 0; y < s->out_height; y++)
            memcpy(rows + y * length + s->kernel_width, grad + (plane * s->out_height + y) * s->out_width, (size_t)s->out_width * sizeof(float));
        for (int64_t y = 0; y < s->height; y++, to += s->width) {
            const float *grads[MEMFIT_KERNEL], *rows_of_kernel[MEMFIT_KERNEL];
            int64_t count = 0;
            for (int64_t i = 0; i < s->kernel_height; i++) {
                const int64_t at = y + s->padding_height - i;
                if (at < 0 || at % s->stride_height || at / s->stride_height >= s->out_height) continue;
                grads[count] = rows + at / s->stride_height * length + s->kernel_width, rows_of_kernel[count++] = kernel + i * s->kernel_width;
            }
            const int64_t places = (s->width + s->padding_width + stride - 1) / stride;
            for (int64_t f = 0; f < stride; f++)
                WITH_SIZES(input_row(grads, rows_of_kernel, count, KW, S, f, places, parts + f * length))
            if (stride == 1) memcpy(to, parts + s->padding_width, (size_t)s->width * sizeof(float));
            else if (stride == 2) {
                for (int64_t m = 0; m < places; m++) joined[2 * m] = parts[m], joined[2 * m + 1] = parts[length + m];
                memcpy(to, joined + s->padding_width, (size_t)s->width * sizeof(float));
            } else for (int64_t c = 0, m = s->padding_width; c < s->width; c++, m++) to[c] = parts[m % stride * length + m / stride];
        }
    }
}

/* Of channels first to last - 1, over all samples: add the gradient of their kernels to `sums`. */
FAST void memfit_depthwise_weight(const Shape *s, const float *grad, const float *x, int64_t samples, int64_t first, int64_t last, double *sums,
                                  float *floats) {
    const int64_t taps = s->kernel_height * s->kernel_width;
    Padded p = {floats, length_of(s), s->stride_width};
    memset(floats, 0, (size_t)memfit_depthwise_floats(s) * sizeof(float));
    for (int64_t sample = 0; sample < samples; sample++)
        for (int64_t channel = first; channel < last; channel++) {
            const int64_t plane = sample * s->channels + channel;
            const float *from = grad + plane * s->out_height * s->out_width;
            Eight parts[MEMFIT_KERNEL * MEMFIT_KERNEL] = {{0}};
            lay_out(x + plane * s->height * s->width, s, &p);
            WITH_SIZES(weight_plane(&p, s, from, KH, KW, S, parts))
            for (int64_t t = 0; t < taps; t++)
                for (int k = 0; k < 8; k++) sums[channel * taps + t] += (double)parts[t][k];
        }
}
