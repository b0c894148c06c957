/* Gradients of a batch norm with frozen statistics, an affine map a channel, in one pass over the output's gradient.

   The same numbers as the torch operations of `memfit.operators.norm`, but for rounding; `memfit.native` calls it where it was built. */

#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define MEMFIT_PART 1024 /* elements whose sum stays in float */

/* Of channels first to last - 1 of gradients (samples, channels, size): add Σ grad to `sums` and Σ grad (x - mean) to `dots`, and multiply
   grad by its channel's scale. Without `x` no dots, without `scales` grad stays. */
FAST void memfit_affine_gradients(float *grad, const float *x, const float *means, const float *scales, int64_t samples, int64_t channels,
                                  int64_t size, int64_t first, int64_t last, double *sums, double *dots) {
    for (int64_t sample = 0; sample < samples; sample++)
        for (int64_t channel = first; channel < last; channel++) {
            float *g = grad + (sample * channels + channel) * size;
            const float *from = x ? x + (sample * channels + channel) * size : g, mean = x ? means[channel] : 0;
            const float scale = scales ? scales[channel] : 1;
            double sum = 0, dot = 0;
            int64_t i = 0;
            while (i + 8 <= size) {
                const int64_t end = i + MEMFIT_PART < size ? i + MEMFIT_PART : size;
                Eight part_sum = {0}, part_dot = {0}, other_sum = {0}, other_dot = {0};
#define ADD(sum, dot, at) do { const Eight v = load(g + (at)); sum += v; dot += v * (load(from + (at)) - mean); \
    if (scales) { const Eight scaled = v * scale; memcpy(g + (at), &scaled, sizeof scaled); } } while (0)
                for (; i + 16 <= end; i += 16) {
                    ADD(part_sum, part_dot, i);
                    ADD(other_sum, other_dot, i + 8);
                }
                for (; i + 8 <= end; i += 8) ADD(part_sum, part_dot, i);
#undef ADD
                part_sum += other_sum, part_dot += other_dot;
                for (int k = 0; k < 8; k++) sum += (double)part_sum[k], dot += (double)part_dot[k];
            }
            for (; i < size; i++) {
                const float v = g[i];
                sum += (double)v, dot += (double)v * (double)(from[i] - mean);
                if (scales) g[i] = v * scale;
            }
            sums[channel] += sum;
            if (x) dots[channel] += dot;
        }
}
