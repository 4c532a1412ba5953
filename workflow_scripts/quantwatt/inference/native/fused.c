/* Quantize inputs and rescale integer products, each in one pass over the tensor.

   quantwatt.inference.fused compiles and calls these functions, and documents what they compute. PyTorch's functions
   need five to ten passes. Inputs and outputs are float32, or bfloat16 if the flag `bfloat16` is set. */

#include <stdlib.h>

#include "lines.h"

void quantize(const void *inputs, int bfloat16, int64_t rows, int64_t lines, int64_t width, int64_t top, int64_t side,
              int dynamic, int by_row, int symmetric, int lowest, int highest, int halves, uint8_t *codes, float *scale,
              float *zero, int threads) {
    int64_t stride = width + 2 * side, size = (lines + 2 * top) * stride, all = rows * lines;
    int32_t *least = malloc((2 * all + 1) * sizeof *least), *most = least + all;
    int at_once = dynamic && by_row && lines == 1; /* range and encoding of a line while it is in the cache */
#pragma omp parallel num_threads(threads)
    {
        float *buffer = malloc((width + 1) * sizeof *buffer);
        if (dynamic && !at_once) {
#pragma omp for
            for (int64_t i = 0; i < all; i++)
                line_range(widened(inputs, bfloat16, i * width, width, buffer), width, &least[i], &most[i]);
#pragma omp single
            {
                int64_t together = by_row ? lines : all;
                for (int64_t i = 0; i < all; i++) {
                    int64_t first = i - i % together;
                    least[first] = least[i] < least[first] ? least[i] : least[first];
                    most[first] = most[i] > most[first] ? most[i] : most[first];
                }
                for (int64_t row = 0; row < rows; row++) {
                    int64_t first = by_row ? row * lines : 0;
                    grid(least[first], most[first], symmetric, lowest, highest, &scale[row], &zero[row]);
                }
            }
        }
        if (top || side) {
#pragma omp for
            for (int64_t row = 0; row < rows; row++) {
                int code = (int)zero[row] - lowest; /* code of zero, for the padding */
                memset(codes + row * size, halves ? code >> 1 : code, size);
                if (halves) memset(codes + (rows + row) * size, code & 1, size);
            }
        }
#pragma omp for
        for (int64_t i = 0; i < all; i++) {
            int64_t row = i / lines, to = row * size + (top + i % lines) * stride + side;
            const float *line = widened(inputs, bfloat16, i * width, width, buffer);
            if (at_once) {
                line_range(line, width, &least[i], &most[i]);
                grid(least[i], most[i], symmetric, lowest, highest, &scale[i], &zero[i]);
            }
            encode(line, width, scale[row], zero[row], lowest, highest, codes + to,
                   halves ? codes + rows * size + to : NULL);
        }
        free(buffer);
    }
    free(least);
}

void rescale(const float *sums, int halves, int64_t rows, int64_t columns, int64_t positions, const float *scale,
             const float *zero, int lowest, const float *column_scale, const float *column_sum, const float *bias,
             int bfloat16, void *outputs, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float *buffer = malloc((columns + 1) * sizeof *buffer);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            const float *high = sums + row * columns, *low = high + rows * columns;
            float *line = bfloat16 ? buffer : (float *)outputs + row * columns;
            float step = scale[row / positions], offset = zero[row / positions] - lowest;
            for (int64_t n = 0; n < columns; n++) {
                float sum = halves ? 2 * high[n] + low[n] : high[n];
                float value = (sum - offset * column_sum[n]) * (step * column_scale[n]);
                line[n] = bias ? value + bias[n] : value;
            }
            if (bfloat16) narrow(line, columns, (uint16_t *)outputs + row * columns);
        }
        free(buffer);
    }
}
