/* What the products with few tokens have in common. */

#pragma once

#include "packed.h"

enum { FEW = 4 }; /* tokens times rows whose sums are in registers */

void multiply_rows(const Weight *weight, int path, const float *inputs, int64_t stride, const float *input_sums,
                   int64_t tokens, float *outputs, int threads);

static inline float dot(const float *first, const float *second, int64_t count) {
    float sums[16] = {0}, sum = 0;
    int64_t k = 0;
    for (; k + 16 <= count; k += 16)
        for (int i = 0; i < 16; i++) sums[i] += first[k + i] * second[k + i];
    for (; k < count; k++) sum += first[k] * second[k];
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0] + sum;
}
