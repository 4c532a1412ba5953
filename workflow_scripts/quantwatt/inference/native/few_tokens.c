/* Multiply few tokens by a packed weight that is dequantized on the fly, one or a few rows of it at a time.

   With few tokens, reading the weight takes most of the time. A weight is its code minus the group's zero point, or the
   code's value in a table, times the group's scale. AVX-512 reads codes of 2, 4 and 8 bits from the packed words;
   any others, and AVX2, unpack a row to bytes first. */

#include <stdlib.h>

#include "lines.h"

#ifdef __AVX2__
#include <immintrin.h>

enum { FEW = 4, LANES = 16 }; /* tokens times rows whose sums are in registers; words of a vector */

typedef struct {
    int64_t rows, columns, groups, group;
    int64_t bits;
    const uint8_t *packed;
    const float *values;  /* [1 << bits], or NULL: a code minus its zero point is its value */
    const float *scale, *zero, *bias; /* [rows, groups], the same or NULL, [rows] or NULL */
    float middle;         /* the zero point where `zero` is NULL */
} Weight;

/* Looks 8 codes up: a table of up to 16 values lies in two registers, where the fourth bit of a code selects one. */
static inline __m256 looked_up(const float *values, int64_t bits, __m256i code, __m256 first, __m256 second) {
    if (bits > 4) return _mm256_i32gather_ps(values, code, sizeof *values);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, code), _mm256_permutevar8x32_ps(second, code),
                            _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}

/* Multiplies up to FEW tokens by one row of codes in bytes. */
static inline __attribute__((always_inline)) void row_with(const Weight *weight, int64_t row, const float *inputs,
                                                           const uint8_t *codes, const float *values,
                                                           const int tokens, float *outputs) {
    const int ways = FEW / tokens; /* independent sums per token: with one, each addition would wait for the last */
    int64_t columns = weight->columns, groups = weight->groups, group = weight->group;
    const float *scale = weight->scale + row * groups, *zeros = weight->zero ? weight->zero + row * groups : NULL;
    __m256 totals[FEW], first = _mm256_setzero_ps(), second = first;
    for (int i = 0; i < FEW; i++) totals[i] = _mm256_setzero_ps();
    for (int t = 0; t < tokens; t++) outputs[t] = 0;
    if (values) first = _mm256_loadu_ps(values), second = _mm256_loadu_ps(values + 8);
    for (int64_t g = 0; g < groups; g++) {
        int64_t k = g * group, end = k + group < columns ? k + group : columns;
        float zero = zeros ? zeros[g] : weight->middle;
        __m256 sums[FEW], step = _mm256_set1_ps(scale[g]), offset = _mm256_set1_ps(zero);
        for (int i = 0; i < FEW; i++) sums[i] = _mm256_setzero_ps();
        for (; k + 8 * ways <= end; k += 8 * ways)
            for (int w = 0; w < ways; w++) {
                __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + k + 8 * w)));
                __m256 value = _mm256_sub_ps(_mm256_cvtepi32_ps(code), offset);
                if (values) value = looked_up(values, weight->bits, code, first, second);
                for (int t = 0; t < tokens; t++) {
                    __m256 input = _mm256_loadu_ps(inputs + t * columns + k + 8 * w);
                    sums[w * tokens + t] = _mm256_add_ps(sums[w * tokens + t], _mm256_mul_ps(input, value));
                }
            }
        for (int i = 0; i < FEW; i++) totals[i] = _mm256_add_ps(totals[i], _mm256_mul_ps(step, sums[i]));
        for (int t = 0; t < tokens; t++) {
            float sum = 0;
            for (int64_t rest = k; rest < end; rest++)
                sum += inputs[t * columns + rest] * (values ? values[codes[rest]] : codes[rest] - zero);
            outputs[t] += scale[g] * sum;
        }
    }
    for (int i = 0; i < tokens * ways; i++) {
        float lanes[8];
        _mm256_storeu_ps(lanes, totals[i]);
        for (int lane = 0; lane < 8; lane++) outputs[i % tokens] += lanes[lane];
    }
}

static void row_of(const Weight *weight, int64_t row, const float *inputs, const uint8_t *codes,
                   int tokens, float *outputs) {
#define ROW_WITH(values, tokens) row_with(weight, row, inputs, codes, values, tokens, outputs)
    switch (2 * tokens + !weight->values) { /* constant numbers of tokens keep the sums in registers */
    case 2: ROW_WITH(weight->values, 1); break;
    case 3: ROW_WITH(NULL, 1); break;
    case 4: ROW_WITH(weight->values, 2); break;
    case 5: ROW_WITH(NULL, 2); break;
    case 6: ROW_WITH(weight->values, 3); break;
    case 7: ROW_WITH(NULL, 3); break;
    case 8: ROW_WITH(weight->values, FEW); break;
    default: ROW_WITH(NULL, FEW);
    }
#undef ROW_WITH
}

static void multiply_bytes(const Weight *weight, const float *inputs, int64_t tokens, float *outputs, int threads) {
    int64_t columns = weight->columns, rows = weight->rows;
    int64_t bytes = (columns * weight->bits + 7) / 8;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint8_t *codes = malloc(columns + 8);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            line_of_codes(weight->packed + row * bytes, columns, weight->bits, codes);
            for (int64_t t = 0; t < tokens; t += FEW) {
                int together = tokens - t < FEW ? tokens - t : FEW;
                float products[FEW];
                row_of(weight, row, inputs + t * columns, codes, together, products);
                for (int i = 0; i < together; i++)
                    outputs[(t + i) * rows + row] = products[i] + (weight->bias ? weight->bias[row] : 0);
            }
        }
        free(codes);
    }
}

#ifdef __x86_64__

/* Columns of a vector of words, which lie in LANES lanes. */
static int64_t chunk_of(const Weight *weight) { return LANES * 32 / weight->bits; }

/* Whether a path for words reads these codes, and each lane's columns have one scale. */
static int reads_words(const Weight *weight) {
    int64_t chunk = chunk_of(weight), group = weight->group;
    int even = weight->groups == 1 || group % chunk == 0 || (chunk % group == 0 && group % (chunk / LANES) == 0);
    return (weight->bits == 2 || weight->bits == 4 || weight->bits == 8) && even &&
           (weight->bits == 4 || !weight->values) && __builtin_cpu_supports("avx512bw");
}

/* Orders inputs as the codes lie in a chunk's words of `width` bits: first the lowest codes of all words, then the next
   ones. `sums` are those of each lane's inputs. */
static void order(const Weight *weight, const float *inputs, int width, float *ordered, float *sums) {
    int64_t chunk = chunk_of(weight), columns = weight->columns;
    int each = 8 / weight->bits, shifts = width / weight->bits; /* codes of a byte, the first in its highest bits */
    int words = chunk / shifts, twice = words > LANES; /* words of a lane: one or two */
    memset(sums, 0, (columns + chunk - 1) / chunk * LANES * sizeof *sums);
    for (int64_t first = 0; first < columns; first += chunk, ordered += chunk, sums += LANES)
        for (int i = 0; i < shifts; i++) {
            int64_t start = first + i / each * each + each - 1 - i % each;
            int inside = columns - start > 0 ? (columns - start + shifts - 1) / shifts : 0;
            inside = inside < words ? inside : words;
            for (int word = 0; word < inside; word++) ordered[i * words + word] = inputs[start + word * shifts];
            for (int word = inside; word < words; word++) ordered[i * words + word] = 0;
            for (int word = 0; word < words; word++) sums[word >> twice] += ordered[i * words + word];
        }
}

#define PATH(name) float32_##name
#define TARGET __attribute__((target("avx512f,avx512bw")))
#define INPUT float
#define WIDTH 32
#define TABLE __m512
#define TABLE_OF(values) _mm512_loadu_ps(values)
#define CASES(rows, tokens) CASE(2, rows, tokens) CASE(4, rows, tokens) CASE(8, rows, tokens)
#define WEIGHTS(words, shift, bits, table, middle) \
    (bits == 8 ? _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(words, shift), \
                                                                   _mm512_set1_epi32(255))), middle) \
               : _mm512_permutexvar_ps(_mm512_srli_epi32(words, shift), table))
#define ADD_PRODUCTS(sums, inputs, weights) _mm512_fmadd_ps(_mm512_loadu_ps(inputs), weights, sums)
#include "words_path.h"

/* Two weights in each lane, multiplied as bfloat16 and added as float32. */
#define PATH(name) bfloat16_##name
#define TARGET __attribute__((target("avx512f,avx512bw,avx512bf16")))
#define INPUT uint16_t
#define WIDTH 16
#define TABLE __m512i
#define TABLE_OF(values) pairs_of_values(values)
#define CASES(rows, tokens) CASE(2, rows, tokens) CASE(4, rows, tokens) /* of integers */
#define WEIGHTS(words, shift, bits, table, middle) _mm512_permutexvar_epi16(_mm512_srli_epi16(words, shift), table)
#define ADD_PRODUCTS(sums, inputs, weights) \
    _mm512_dpbf16_ps(sums, (__m512bh)_mm512_loadu_si512(inputs), (__m512bh)(weights))
static inline __attribute__((target("avx512f"))) __m512i pairs_of_values(const float *values) {
    uint16_t rounded[2 * LANES]; /* the fifth bit of an index is the next code's */
    narrow(values, LANES, rounded);
    narrow(values, LANES, rounded + LANES);
    return _mm512_loadu_si512(rounded);
}
#include "words_path.h"

static void multiply_words(const Weight *weight, const float *inputs, int64_t tokens, int bfloat16, float *outputs,
                           int threads) {
    int64_t chunk = chunk_of(weight), chunks = (weight->columns + chunk - 1) / chunk, stride = chunks * chunk;
    int64_t each = chunks * LANES;
    float *ordered = malloc(tokens * (stride + each) * sizeof *ordered), *sums = ordered + tokens * stride;
    for (int64_t t = 0; t < tokens; t++)
        order(weight, inputs + t * weight->columns, bfloat16 ? 16 : 32, ordered + t * stride, sums + t * each);
    if (bfloat16) /* in place: a rounded input is never behind the next one to be rounded */
        for (int64_t k = 0; k < tokens * stride; k += chunk) narrow(ordered + k, chunk, (uint16_t *)ordered + k);
    int64_t shares = (weight->rows + FEW - 1) / FEW;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t share = 0; share < shares; share++) {
        int64_t row = share * FEW, end = row + FEW < weight->rows ? row + FEW : weight->rows;
        for (int64_t t = 0; t < tokens; t += FEW) {
            int some = tokens - t < FEW ? tokens - t : FEW, together = FEW / some;
            for (int64_t r = row; r < end;) {
                int rows = some != 3 && end - r >= together ? together : 1;
                if (bfloat16)
                    bfloat16_words_of(weight, r, rows, (uint16_t *)ordered + t * stride, sums + t * each, stride, some,
                                      outputs + t * weight->rows);
                else
                    float32_words_of(weight, r, rows, ordered + t * stride, sums + t * each, stride, some,
                                     outputs + t * weight->rows);
                r += rows;
            }
        }
    }
    free(ordered);
}
#endif

/* Multiplies `tokens` inputs of float32 or bfloat16. Only integers are multiplied as bfloat16, which holds them exactly. */
void multiply_packed(const Weight *weight, const void *inputs, int bfloat16, int64_t tokens, void *outputs,
                     int threads) {
    int64_t columns = weight->columns, rows = weight->rows;
    float *wide = malloc((tokens * (columns + rows) + 1) * sizeof *wide);
    const float *from = widened(inputs, bfloat16, 0, tokens * columns, wide);
    float *to = bfloat16 ? wide + tokens * columns : outputs;
#ifdef __x86_64__
    int pairs = bfloat16 && weight->bits < 8 && !weight->values && __builtin_cpu_supports("avx512bf16");
    if (reads_words(weight)) multiply_words(weight, from, tokens, pairs, to, threads);
    else
#endif
        multiply_bytes(weight, from, tokens, to, threads);
    if (bfloat16) narrow(to, tokens * rows, outputs);
    free(wide);
}
#endif
