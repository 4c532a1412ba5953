/* Quantize inputs, rescale integer products and dequantize weights, each in one pass over the tensor.

   quantwatt.inference.fused compiles and calls these functions, and documents what they compute. PyTorch's functions
   need five to ten passes. Inputs and outputs are float32, or bfloat16 if the flag `bfloat16` is set. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const float *widened(const void *values, int bfloat16, int64_t start, int64_t count, float *line) {
    if (!bfloat16) return (const float *)values + start;
    const uint16_t *from = (const uint16_t *)values + start;
    for (int64_t k = 0; k < count; k++) {
        uint32_t bits = (uint32_t)from[k] << 16;
        memcpy(&line[k], &bits, 4);
    }
    return line;
}

static void narrow(const float *line, int64_t count, uint16_t *out) { /* to nearest, ties to even; NaN stays NaN */
    for (int64_t k = 0; k < count; k++) {
        uint32_t bits;
        memcpy(&bits, &line[k], 4);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[k] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
}

/* Maps the bits of floats to integers of the same order. NaN is beyond infinity, so a NaN shows in a line's range. */
static int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

static float value_of(int32_t key) {
    float value;
    key = ordered(key);
    memcpy(&value, &key, 4);
    return value;
}

static void line_range(const float *line, int64_t count, int32_t *least, int32_t *most) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t k = 0; k < count; k++) {
        int32_t key;
        memcpy(&key, &line[k], 4);
        key = ordered(key);
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    *least = low;
    *most = high;
}

static void grid(int32_t least, int32_t most, int symmetric, int lowest, int highest, float *scale, float *zero) {
    float low = value_of(least), high = value_of(most);
    if (symmetric) {
        float largest = isnan(low) || isnan(high) ? NAN : fmaxf(-low, high);
        *scale = (largest < FLT_MIN ? FLT_MIN : largest) / highest;
        *zero = 0;
        return;
    }
    low = low > 0 ? 0 : low;
    high = high < 0 ? 0 : high;
    float range = high - low;
    *scale = (range < FLT_MIN ? FLT_MIN : range) / (highest - lowest);
    *zero = nearbyintf(lowest - low / *scale);
}

static void encode(const float *line, int64_t count, float scale, float zero, int lowest, int highest,
                   uint8_t *codes, uint8_t *rest) {
    float low = lowest, high = highest;
    for (int64_t k = 0; k < count; k++) {
        float code = nearbyintf(line[k] / scale) + zero;
        code = code > low ? code : low; /* with this comparison, NaN becomes the lowest code; its scale is NaN */
        code = code < high ? code : high;
        codes[k] = (uint8_t)((int32_t)code - lowest);
    }
    if (rest)
        for (int64_t k = 0; k < count; k++) {
            rest[k] = codes[k] & 1;
            codes[k] >>= 1;
        }
}

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

/* Unpacks eight codes from `bits` bytes; the first code is in the highest bits. */
static inline __attribute__((always_inline)) void codes_of(const uint8_t *packed, int64_t eights, const int bits,
                                                           uint8_t *codes) {
    if (bits == 2 || bits == 4) { /* no code spans two bytes, so compilers can vectorize the loop */
        const int each = 8 / bits;
        for (int64_t byte = 0; byte < eights * bits; byte++)
            for (int i = 0; i < each; i++)
                codes[byte * each + i] = packed[byte] >> bits * (each - 1 - i) & ((1 << bits) - 1);
        return;
    }
    for (int64_t e = 0; e < eights; e++) {
        uint64_t word = 0;
        for (int i = 0; i < bits; i++) word = word << 8 | packed[e * bits + i];
        for (int i = 0; i < 8; i++) codes[8 * e + i] = word >> bits * (7 - i) & ((1 << bits) - 1);
    }
}

static void line_of_codes(const uint8_t *packed, int64_t columns, int bits, uint8_t *codes) {
    int64_t bytes = (columns * bits + 7) / 8, eights = columns / 8;
    switch (bits) { /* so that the loop is compiled for each width */
    case 2: codes_of(packed, eights, 2, codes); break;
    case 3: codes_of(packed, eights, 3, codes); break;
    case 4: codes_of(packed, eights, 4, codes); break;
    case 5: codes_of(packed, eights, 5, codes); break;
    case 6: codes_of(packed, eights, 6, codes); break;
    case 7: codes_of(packed, eights, 7, codes); break;
    case 8: memcpy(codes, packed, 8 * eights);
    }
    if (columns % 8) {
        uint8_t last[8] = {0};
        memcpy(last, packed + eights * bits, bytes - eights * bits);
        codes_of(last, 1, bits, codes + 8 * eights);
    }
}

static void line_of_weights(const uint8_t *codes, int64_t columns, const float *values, const float *scale,
                            const float *zero, int64_t group, const int32_t *group_index, float *line) {
    if (values)
        for (int64_t k = 0; k < columns; k++) line[k] = values[codes[k]];
    else
        for (int64_t k = 0; k < columns; k++) line[k] = codes[k];
    if (group_index)
        for (int64_t k = 0; k < columns; k++) line[k] = (line[k] - zero[group_index[k]]) * scale[group_index[k]];
    else
        for (int64_t g = 0; g * group < columns; g++) {
            int64_t end = (g + 1) * group < columns ? (g + 1) * group : columns;
            float offset = zero[g], step = scale[g];
            for (int64_t k = g * group; k < end; k++) line[k] = (line[k] - offset) * step;
        }
}

void unpack(const uint8_t *packed, int bits, int64_t rows, int64_t columns, const float *values, const float *scale,
            const float *zero, int64_t groups, int64_t group, const int32_t *group_index, int bfloat16, void *weight,
            int threads) {
    int64_t bytes = (columns * bits + 7) / 8;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *codes = malloc(columns + 8);
        float *buffer = malloc((columns + 1) * sizeof *buffer);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            float *line = bfloat16 ? buffer : (float *)weight + row * columns;
            line_of_codes(packed + row * bytes, columns, bits, codes);
            line_of_weights(codes, columns, values, scale + row * groups, zero + row * groups, group, group_index, line);
            if (bfloat16) narrow(line, columns, (uint16_t *)weight + row * columns);
        }
        free(codes);
        free(buffer);
    }
}

#ifdef __AVX2__
#include <immintrin.h>

/* PANEL: outputs per panel. BLOCK: tokens whose sums are in registers. TILE: tokens that are quantized together.
   FEW: tokens whose sums are in registers where the weight is packed. */
enum { PANEL = 16, BLOCK = 6, TILE = 24, FEW = 4 };

/* Multiplies the codes of up to BLOCK tokens by a panel of weights, which holds each output's codes in pairs. */
static inline __attribute__((always_inline)) void block(const int16_t *codes, int64_t pairs, const int8_t *panel,
                                                        const int tokens, int32_t sums[BLOCK][PANEL]) {
    __m256i left[BLOCK], right[BLOCK];
    for (int m = 0; m < tokens; m++) left[m] = right[m] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pairs; p++) {
        const __m128i *weights = (const __m128i *)(panel + 2 * PANEL * p);
        __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights));
        __m256i second = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights + 1));
        for (int m = 0; m < tokens; m++) {
            int32_t pair;
            memcpy(&pair, codes + 2 * (m * pairs + p), 4);
            __m256i both = _mm256_set1_epi32(pair);
            left[m] = _mm256_add_epi32(left[m], _mm256_madd_epi16(both, first));
            right[m] = _mm256_add_epi32(right[m], _mm256_madd_epi16(both, second));
        }
    }
    for (int m = 0; m < tokens; m++) {
        _mm256_storeu_si256((__m256i *)sums[m], left[m]);
        _mm256_storeu_si256((__m256i *)sums[m] + 1, right[m]);
    }
}

static void block_of(const int16_t *codes, int64_t pairs, const int8_t *panel, int tokens, int32_t sums[BLOCK][PANEL]) {
    switch (tokens) { /* constant numbers of tokens keep the sums in registers */
    case 1: block(codes, pairs, panel, 1, sums); break;
    case 2: block(codes, pairs, panel, 2, sums); break;
    case 3: block(codes, pairs, panel, 3, sums); break;
    case 4: block(codes, pairs, panel, 4, sums); break;
    case 5: block(codes, pairs, panel, 5, sums); break;
    default: block(codes, pairs, panel, BLOCK, sums);
    }
}

/* Codes minus their zero point: the sum of two products of a code and a weight is exact in 32 bits. */
static void encode_wide(const float *line, int64_t count, float scale, float zero, float low, float high,
                        int16_t *codes) {
    for (int64_t k = 0; k < count; k++) {
        float code = nearbyintf(line[k] / scale) + zero;
        code = code > low ? code : low;
        code = code < high ? code : high;
        codes[k] = (int16_t)(int32_t)(code - zero);
    }
}

/* Multiplies up to FEW tokens by one row of weights. A weight is its code, or the code's value in a table of 16, minus
   the group's zero point, times the group's scale. Zero points are multiplied by the tokens' input sums per group. */
static inline __attribute__((always_inline)) void row_with(const float *inputs, int64_t columns, const uint8_t *codes,
                                                           const float *values, const float *scale, const float *zero,
                                                           int64_t groups, int64_t group, const float *input_sums,
                                                           const int tokens, float *outputs) {
    const int ways = FEW / tokens; /* independent sums per token: with one, each addition would wait for the last */
    __m256 totals[FEW], first = _mm256_setzero_ps(), second = first;
    for (int i = 0; i < FEW; i++) totals[i] = _mm256_setzero_ps();
    for (int t = 0; t < tokens; t++) outputs[t] = 0;
    if (values) first = _mm256_loadu_ps(values), second = _mm256_loadu_ps(values + 8);
    for (int64_t g = 0; g < groups; g++) {
        int64_t k = g * group, end = k + group < columns ? k + group : columns;
        __m256 sums[FEW], step = _mm256_set1_ps(scale[g]);
        for (int i = 0; i < FEW; i++) sums[i] = _mm256_setzero_ps();
        for (; k + 8 * ways <= end; k += 8 * ways)
            for (int w = 0; w < ways; w++) {
                __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + k + 8 * w)));
                __m256 weight = _mm256_cvtepi32_ps(code);
                if (values) /* the fourth bit of a code selects the half of the table */
                    weight = _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, code),
                                              _mm256_permutevar8x32_ps(second, code),
                                              _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
                for (int t = 0; t < tokens; t++) {
                    __m256 input = _mm256_loadu_ps(inputs + t * columns + k + 8 * w);
                    sums[w * tokens + t] = _mm256_add_ps(sums[w * tokens + t], _mm256_mul_ps(input, weight));
                }
            }
        for (int i = 0; i < FEW; i++) totals[i] = _mm256_add_ps(totals[i], _mm256_mul_ps(step, sums[i]));
        for (int t = 0; t < tokens; t++) {
            float sum = -zero[g] * input_sums[t * groups + g];
            for (int64_t rest = k; rest < end; rest++)
                sum += inputs[t * columns + rest] * (values ? values[codes[rest]] : codes[rest]);
            outputs[t] += scale[g] * sum;
        }
    }
    for (int i = 0; i < tokens * ways; i++) {
        float lanes[8];
        _mm256_storeu_ps(lanes, totals[i]);
        for (int lane = 0; lane < 8; lane++) outputs[i % tokens] += lanes[lane];
    }
}

static void row_of(const float *inputs, int64_t columns, const uint8_t *codes, const float *values, const float *scale,
                   const float *zero, int64_t groups, int64_t group, const float *input_sums, int tokens,
                   float *outputs) {
#define ROW_WITH(values, tokens) \
    row_with(inputs, columns, codes, values, scale, zero, groups, group, input_sums, tokens, outputs)
    switch (2 * tokens + !values) { /* constant numbers of tokens keep the sums in registers */
    case 2: ROW_WITH(values, 1); break;
    case 3: ROW_WITH(NULL, 1); break;
    case 4: ROW_WITH(values, 2); break;
    case 5: ROW_WITH(NULL, 2); break;
    case 6: ROW_WITH(values, 3); break;
    case 7: ROW_WITH(NULL, 3); break;
    case 8: ROW_WITH(values, FEW); break;
    default: ROW_WITH(NULL, FEW);
    }
#undef ROW_WITH
}

void multiply_packed(const float *inputs, int64_t tokens, const uint8_t *packed, int bits, int64_t rows,
                     int64_t columns, const float *values, const float *scale, const float *zero, int64_t groups,
                     int64_t group, const float *input_sums, const float *bias, float *outputs, int threads) {
    int64_t bytes = (columns * bits + 7) / 8;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *codes = malloc(columns + 8);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            line_of_codes(packed + row * bytes, columns, bits, codes);
            for (int64_t t = 0; t < tokens; t += FEW) {
                int together = tokens - t < FEW ? tokens - t : FEW;
                float products[FEW];
                row_of(inputs + t * columns, columns, codes, values, scale + row * groups, zero + row * groups, groups,
                       group, input_sums + t * groups, together, products);
                for (int i = 0; i < together; i++)
                    outputs[(t + i) * rows + row] = products[i] + (bias ? bias[row] : 0);
            }
        }
        free(codes);
    }
}

void multiply(const void *inputs, int bfloat16, int64_t rows, int64_t columns, int64_t outputs, int dynamic, int by_row,
              int symmetric, int lowest, int highest, float static_scale, float static_zero, const int8_t *weight,
              const float *column_scale, const float *bias, void *products, int threads) {
    int64_t pairs = (columns + 1) / 2, panels = (outputs + PANEL - 1) / PANEL, tiles = (rows + TILE - 1) / TILE;
    int64_t parts = tiles >= threads ? 1 : (threads + tiles - 1) / (tiles ? tiles : 1); /* few tokens: split outputs */
    int32_t least = INT32_MAX, most = INT32_MIN;
    if (dynamic && !by_row) {
#pragma omp parallel num_threads(threads) reduction(min : least) reduction(max : most)
        {
            float *buffer = malloc((columns + 1) * sizeof *buffer);
#pragma omp for
            for (int64_t row = 0; row < rows; row++) {
                int32_t low, high;
                line_range(widened(inputs, bfloat16, row * columns, columns, buffer), columns, &low, &high);
                least = low < least ? low : least;
                most = high > most ? high : most;
            }
            free(buffer);
        }
        grid(least, most, symmetric, lowest, highest, &static_scale, &static_zero);
    }
#pragma omp parallel num_threads(threads)
    {
        float *buffer = malloc((columns + 1) * sizeof *buffer), scale[TILE];
        int16_t *codes = calloc(TILE * pairs * 2, sizeof *codes); /* 0 completes the pair of an odd last column */
#pragma omp for
        for (int64_t share = 0; share < tiles * parts; share++) {
            int64_t start = share / parts * TILE, part = share % parts;
            int tokens = rows - start < TILE ? rows - start : TILE;
            for (int m = 0; m < tokens; m++) {
                const float *line = widened(inputs, bfloat16, (start + m) * columns, columns, buffer);
                float zero = static_zero;
                scale[m] = static_scale;
                if (dynamic && by_row) {
                    int32_t low, high;
                    line_range(line, columns, &low, &high);
                    grid(low, high, symmetric, lowest, highest, &scale[m], &zero);
                }
                encode_wide(line, columns, scale[m], zero, lowest, highest, codes + m * 2 * pairs);
            }
            for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; panel++) {
                int64_t first = panel * PANEL;
                int width = outputs - first < PANEL ? outputs - first : PANEL;
                for (int m = 0; m < tokens; m += BLOCK) {
                    int32_t sums[BLOCK][PANEL];
                    int count = tokens - m < BLOCK ? tokens - m : BLOCK;
                    block_of(codes + m * 2 * pairs, pairs, weight + first * 2 * pairs, count, sums);
                    for (int i = 0; i < count; i++) {
                        float line[PANEL];
                        for (int n = 0; n < width; n++) {
                            float value = sums[i][n] * (scale[m + i] * column_scale[first + n]);
                            line[n] = bias ? value + bias[first + n] : value;
                        }
                        int64_t to = (start + m + i) * outputs + first;
                        if (bfloat16) narrow(line, width, (uint16_t *)products + to);
                        else memcpy((float *)products + to, line, width * sizeof *line);
                    }
                }
            }
        }
        free(buffer);
        free(codes);
    }
}
#endif
