/* Multiply few tokens by a packed weight that is dequantized on the fly, one or a few rows of it at a time.

   With few tokens, reading the weight takes most of the time. AVX-512 reads codes of 2 and 4 bits, and integers of 8,
   from the packed words; packed.c decodes any others piece by piece. */

#include <stdlib.h>

#include "products.h"

enum { ALIGNED = 64 }; /* inputs are filled up to a multiple of it */

#ifdef __x86_64__
#include <immintrin.h>

enum { LANES = 16 }; /* words of a vector */

/* Columns of a vector of words, which lie in LANES lanes. */
static int64_t chunk_of(const Weight *weight) { return LANES * 32 / weight->bits; }

/* Whether a path for words reads these codes, and each lane's columns have one scale. */
static int reads_words(const Weight *weight) {
    int64_t chunk = chunk_of(weight), group = weight->group;
    int even = weight->groups == 1 || group % chunk == 0 || (chunk % group == 0 && group % (chunk / LANES) == 0);
    return (weight->bits == 2 || weight->bits == 4 || weight->bits == 8) && even &&
           (weight->bits == 4 || !weight->values);
}

/* Orders inputs as the codes lie in a chunk's words of `width` bits: first the lowest codes of all words, then the next
   ones. */
static void order(const Weight *weight, const float *inputs, int width, float *ordered) {
    int64_t chunk = chunk_of(weight), columns = weight->columns;
    int each = 8 / weight->bits, shifts = width / weight->bits; /* codes of a byte, the first in its highest bits */
    int words = chunk / shifts;
    for (int64_t first = 0; first < columns; first += chunk, ordered += chunk)
        for (int i = 0; i < shifts; i++) {
            int64_t start = first + i / each * each + each - 1 - i % each;
            int inside = columns - start > 0 ? (columns - start + shifts - 1) / shifts : 0;
            inside = inside < words ? inside : words;
            for (int word = 0; word < inside; word++) ordered[i * words + word] = inputs[start + word * shifts];
            for (int word = inside; word < words; word++) ordered[i * words + word] = 0;
        }
}

#define PATH(name) float32_##name
#define TARGET __attribute__((target("avx512f,avx512bw")))
#define INPUT float
#define WIDTH 32
#define TABLE_TYPE __m512
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
#define TABLE_TYPE __m512i
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

static void multiply_words(const Weight *weight, const float *inputs, int64_t in_stride, const float *input_sums,
                           int64_t tokens, int bfloat16, float *outputs, int threads) {
    int64_t chunk = chunk_of(weight), stride = (weight->columns + chunk - 1) / chunk * chunk;
    int64_t groups = weight->groups, size = 3 * groups;
    float *ordered = malloc((tokens * stride + 1) * sizeof *ordered);
    for (int64_t t = 0; t < tokens; t++)
        order(weight, inputs + t * in_stride, bfloat16 ? 16 : 32, ordered + t * stride);
    if (bfloat16) /* in place: a rounded input is never behind the next one to be rounded */
        for (int64_t k = 0; k < tokens * stride; k += chunk) narrow(ordered + k, chunk, (uint16_t *)ordered + k);
    int64_t shares = (weight->rows + FEW - 1) / FEW;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *room = malloc(FEW * size * sizeof *room);
#pragma omp for
        for (int64_t share = 0; share < shares; share++) {
            int64_t row = share * FEW, end = row + FEW < weight->rows ? row + FEW : weight->rows;
            Grid grids[FEW];
            for (int64_t r = row; r < end; r++)
                grids[r - row] = centered_grid(weight, r, center_of(weight), room + (r - row) * size);
            for (int64_t t = 0; t < tokens; t += FEW) {
                int some = tokens - t < FEW ? tokens - t : FEW, together = FEW / some;
                for (int64_t r = row; r < end;) {
                    int rows = some != 3 && end - r >= together ? together : 1;
                    float *to = outputs + t * weight->rows;
                    if (bfloat16)
                        bfloat16_words_of(weight, grids + (r - row), r, rows, (uint16_t *)ordered + t * stride, stride,
                                          some, to);
                    else
                        float32_words_of(weight, grids + (r - row), r, rows, ordered + t * stride, stride, some, to);
                    r += rows;
                }
            }
            for (int64_t r = row; r < end; r++)
                for (int64_t t = 0; t < tokens; t++) {
                    float more = weight->bias ? weight->bias[r] : 0;
                    if (weight->zero.stored) more += dot(grids[r - row].zero, input_sums + t * groups, groups);
                    outputs[t * weight->rows + r] += more;
                }
        }
        free(room);
    }
    free(ordered);
}
#endif

/* Widens inputs [tokens, columns] to floats [tokens, stride], filled up with zeros, and adds them up by group. */
static void prepare_inputs(const Weight *weight, const void *inputs, int bfloat16, int64_t tokens, int64_t stride,
                           float *wide, float *sums) {
    int64_t columns = weight->columns, groups = weight->groups, group = groups == 1 ? columns : weight->group;
    for (int64_t t = 0; t < tokens; t++) {
        float *line = wide + t * stride;
        const float *from = widened(inputs, bfloat16, t * columns, columns, line);
        if (from != line) memcpy(line, from, columns * sizeof *line);
        memset(line + columns, 0, (stride - columns) * sizeof *line);
        for (int64_t g = 0; g < groups && weight->zero.stored; g++) {
            double sum = 0;
            for (int64_t k = g * group; k < (g + 1) * group && k < columns; k++) sum += line[k];
            sums[t * groups + g] = sum;
        }
    }
}

/* Multiplies `tokens` inputs of float32 or bfloat16. The path for bfloat16 takes what bfloat16 holds exactly. */
void multiply_packed(const Weight *weight, int path, const void *inputs, int bfloat16, int64_t tokens, void *outputs,
                     int threads) {
    int64_t rows = weight->rows, stride = (weight->columns + ALIGNED - 1) / ALIGNED * ALIGNED;
    float *wide = aligned_alloc(64, ((tokens * (stride + rows + weight->groups) + 15) / 16 * 16) * sizeof *wide);
    float *to = bfloat16 ? wide + tokens * stride : outputs, *sums = wide + tokens * (stride + rows);
    prepare_inputs(weight, inputs, bfloat16, tokens, stride, wide, sums);
#ifdef __x86_64__
    int pairs = bfloat16 && weight->bits < 8 && weight->narrow && path == AVX512_BF16;
    if (path >= AVX512 && reads_words(weight))
        multiply_words(weight, wide, stride, sums, tokens, pairs, to, threads);
    else
#endif
        multiply_rows(weight, path, wide, stride, sums, tokens, to, threads);
    if (bfloat16) narrow(to, tokens * rows, outputs);
    free(wide);
}
