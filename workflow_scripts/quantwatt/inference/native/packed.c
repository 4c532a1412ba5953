/* Turn packed weights into floats: for products with many tokens whole rows, for few tokens a piece that stays in the
   first cache and is multiplied at once.

   A weight is its code minus the group's zero point, or the code's value in a table, times the group's scale; or the
   code times the scale, plus a minimum. All paths give the same values, bit for bit. */

#include <stdlib.h>

#include "products.h"
#include "values.h"

typedef void Scale(const Weight *, const Grid *, float factor, int64_t first, int64_t end, Piece *, int halves);
typedef void Multiply(const float *scales, int64_t group, int64_t count, const Piece *, int halves, const float *inputs,
                      int64_t stride, int tokens, float *sums);
typedef void Total(const float *sums, int tokens, float *totals);

#define PATH(name) plain_##name
#define TARGET
#define VECTOR Four
#define LANES 4
#define LOAD(address) ((Four) * (const Unaligned *)(address))
#define STORE(address, vector) (*(Unaligned *)(address) = (Unaligned)(vector))
#define SPREAD(value) spread_to_four(value)
#define KEPT(vector) __asm__("" : "+m"(vector))
typedef float Four __attribute__((vector_size(16)));
typedef float Unaligned __attribute__((vector_size(16), aligned(4), may_alias));
static inline Four spread_to_four(float value) { return (Four){value, value, value, value}; }
#include "packed_path.h"

#ifdef __x86_64__
#define PATH(name) avx2_##name
#define TARGET OF_AVX2
#define VECTOR __m256
#define LANES 8
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define SPREAD _mm256_set1_ps
#define KEPT(vector) __asm__("" : "+x"(vector))
#define WIDENED(halves) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves)))
#include "packed_path.h"

#define PATH(name) avx512_##name
#define TARGET OF_AVX512
#define VECTOR __m512
#define LANES 16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define SPREAD _mm512_set1_ps
#define KEPT(vector) __asm__("" : "+v"(vector))
#define WIDENED(halves) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(halves)))
#include "packed_path.h"

static Scale *const SCALE[] = {plain_scale, avx2_scale, avx512_scale, avx512_scale};
static Multiply *const MULTIPLY[] = {plain_multiply, avx2_multiply, avx512_multiply, avx512_multiply};
static Total *const TOTAL[] = {plain_total, avx2_total, avx512_total, avx512_total};
static const int LANES_OF[] = {4, 8, 16, 16};
#else
static Scale *const SCALE[] = {plain_scale};
static Multiply *const MULTIPLY[] = {plain_multiply};
static Total *const TOTAL[] = {plain_total};
static const int LANES_OF[] = {4};
#endif

/* Bits: the paths that this CPU runs. */
int packed_paths(void) {
    int paths = 1 << PLAIN;
#ifdef __x86_64__
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    paths |= avx2 << AVX2 | avx512 << AVX512 | (avx512 && __builtin_cpu_supports("avx512bf16")) << AVX512_BF16;
#endif
    return paths;
}

/* Decodes the columns of a row from `first`, a multiple of 8, to `end`. */
static const float *decoded(const Weight *weight, int path, int64_t row, const Grid *grid, int64_t first, int64_t end,
                            Piece *piece) {
    int64_t bits = weight->bits, bytes = (weight->columns * bits + 7) / 8;
    float factor = shifts(weight, path) ? weight->shifted : 1;
    int halves = values_of(weight, path, weight->packed + row * bytes + first * bits / 8, end - first, piece);
    SCALE[path](weight, grid, factor, first, end, piece, halves);
    return piece->line;
}

/* Replaces a piece's values by the weights; returns that they are no float16. */
static int scaled_in_place(const Weight *weight, int path, const Grid *grid, int64_t first, int64_t end, Piece *piece,
                           int halves) {
    SCALE[path](weight, grid, shifts(weight, path) ? weight->shifted : 1, first, end, piece, halves);
    memcpy(piece->values.floats, piece->line, (end - first) * sizeof *piece->line);
    memset(piece->values.floats + (end - first), 0, FILLED * sizeof *piece->line);
    return 0;
}

/* Decodes a piece whose columns have any groups. */
static const float *decoded_by_index(const Weight *weight, int64_t row, const Grid *grid, int64_t first, int64_t end,
                                     Piece *piece) {
    int64_t bytes = (weight->columns * weight->bits + 7) / 8;
    plain_values(weight, weight->packed + row * bytes + first * weight->bits / 8, end - first, piece);
    for (int64_t k = first; k < end; k++) {
        int32_t g = weight->group_index[k];
        float zero = grid->zero ? grid->zero[g] : 0, value = piece->values.floats[k - first];
        value = (weight->minima ? value : value - zero) * grid->scale[g];
        __asm__("" : "+m"(value)); /* a product and a sum, each rounded */
        piece->line[k - first] = weight->minima ? value + zero : value;
    }
    return piece->line;
}

/* Writes `rows` rows from `start` on as floats [rows, columns]. */
void unpack(const Weight *weight, int path, int64_t start, int64_t rows, int bfloat16, void *floats, int threads) {
    int64_t columns = weight->columns;
    float center = weight->zero.stored ? 0 : weight->middle;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Piece piece;
        prepare(weight, center, &piece);
        float *room = malloc((2 * weight->groups + 1) * sizeof *room);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            Grid grid = grid_of_row(weight, start + row, room);
            for (int64_t first = 0; first < columns; first += PIECE) {
                int64_t end = first + PIECE < columns ? first + PIECE : columns, at = row * columns + first;
                const float *line = weight->group_index
                                        ? decoded_by_index(weight, start + row, &grid, first, end, &piece)
                                        : decoded(weight, path, start + row, &grid, first, end, &piece);
                if (bfloat16) narrow(line, end - first, (uint16_t *)floats + at);
                else memcpy((float *)floats + at, line, (end - first) * sizeof *line);
            }
        }
        free(room);
    }
}

/* Multiplies inputs [tokens, stride], filled up with zeros, by the rows of a weight without
   group_index. `input_sums`: [tokens, groups], of the inputs of each group. */
void multiply_rows(const Weight *weight, int path, const float *inputs, int64_t stride, const float *input_sums,
                   int64_t tokens, float *outputs, int threads) {
    int64_t columns = weight->columns, lanes = LANES_OF[path], size = (tokens + FEW - 1) / FEW * FEW * lanes;
    int64_t bits = weight->bits, bytes = (columns * bits + 7) / 8, groups = weight->groups, group = weight->group;
    int scaled = groups > 1 && (group % lanes || PIECE % group); /* groups that do not fill vectors are scaled first */
    float factor = shifts(weight, path) && !scaled ? weight->shifted : 1, one = 1;
    float center = !scaled ? center_of(weight) : weight->zero.stored ? 0 : weight->middle;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Piece piece;
        prepare(weight, center, &piece);
        float *room = malloc((3 * groups + size + 1) * sizeof *room), *sums = room + 3 * groups;
#pragma omp for
        for (int64_t row = 0; row < weight->rows; row++) {
            Grid grid = scaled ? grid_of_row(weight, row, room) : centered_grid(weight, row, center, room);
            memset(sums, 0, size * sizeof *sums);
            for (int64_t first = 0; first < columns; first += PIECE) {
                int64_t end = first + PIECE < columns ? first + PIECE : columns, count = end - first;
                int halves = values_of(weight, path, weight->packed + row * bytes + first * bits / 8, count, &piece);
                const float *scales = scaled ? &one : grid.scale + (groups == 1 ? 0 : first / group);
                if (scaled) halves = scaled_in_place(weight, path, &grid, first, end, &piece, halves);
                for (int64_t t = 0; t < tokens; t += FEW)
                    MULTIPLY[path](scales, scaled || groups == 1 ? PIECE : group, count, &piece, halves,
                                   inputs + t * stride + first, stride, tokens - t < FEW ? tokens - t : FEW,
                                   sums + t * lanes);
            }
            for (int64_t t = 0; t < tokens; t += FEW) {
                int together = tokens - t < FEW ? tokens - t : FEW;
                float totals[FEW];
                TOTAL[path](sums + t * lanes, together, totals);
                for (int64_t i = 0; i < together; i++) {
                    float sum = factor * totals[i] + (weight->bias ? weight->bias[row] : 0);
                    if (grid.zero && !scaled) sum += dot(grid.zero, input_sums + (t + i) * groups, groups);
                    outputs[(t + i) * weight->rows + row] = sum;
                }
            }
        }
        free(room);
    }
}
