/* Walsh-Hadamard transforms of each row's blocks, in one pass over the tensor.

   quantwatt.inference.hadamard calls it. Strides run from 1 upwards, as in quantwatt.formats.rotation, so that both round
   alike. A tile is as much of a row as registers hold: the steps whose strides lie inside it read and write memory once. */

#include <stdlib.h>

#include "lines.h"

enum { PLAIN, AVX2, AVX512 }; /* paths, as of quantwatt.inference.hadamard */
enum { MOST = 256 };          /* floats of the largest tile; lines are filled up to a multiple of it */

static void plain_blocks(float *line, int64_t count, int64_t block) {
    for (int64_t stride = 1; stride < block; stride *= 2)
        for (int64_t start = 0; start < count; start += 2 * stride)
#pragma GCC ivdep
            for (int64_t k = start; k < start + stride; k++) {
                float first = line[k], second = line[k + stride];
                line[k] = first + second;
                line[k + stride] = first - second;
            }
}

#ifdef __x86_64__
#include <immintrin.h>

/* Adds to each lane its neighbour at a stride; where the neighbour lies below, the lane's own value is subtracted. */
#define PATH(name) avx2_##name
#define TARGET __attribute__((target("avx2")))
#define VECTOR __m256
#define LANES 8
#define REGISTERS 8
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ADD _mm256_add_ps
#define SUBTRACT _mm256_sub_ps
#define WITHIN(swapped, own, lanes) \
    _mm256_blend_ps(_mm256_add_ps(own, swapped), _mm256_sub_ps(swapped, own), lanes)
#define STEP_1(x) WITHIN(_mm256_permute_ps(x, 0xb1), x, 0xaa)
#define STEP_2(x) WITHIN(_mm256_permute_ps(x, 0x4e), x, 0xcc)
#define STEP_4(x) WITHIN(_mm256_permute2f128_ps(x, x, 1), x, 0xf0)
#include "hadamard_path.h"

#define PATH(name) avx512_##name
#define TARGET __attribute__((target("avx512f")))
#define VECTOR __m512
#define LANES 16
#define REGISTERS 16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ADD _mm512_add_ps
#define SUBTRACT _mm512_sub_ps
#define WITHIN(swapped, own, lanes) _mm512_mask_sub_ps(_mm512_add_ps(own, swapped), lanes, swapped, own)
#define STEP_1(x) WITHIN(_mm512_permute_ps(x, 0xb1), x, 0xaaaa)
#define STEP_2(x) WITHIN(_mm512_permute_ps(x, 0x4e), x, 0xcccc)
#define STEP_4(x) WITHIN(_mm512_shuffle_f32x4(x, x, 0xb1), x, 0xf0f0)
#define STEP_8(x) WITHIN(_mm512_shuffle_f32x4(x, x, 0x4e), x, 0xff00)
#include "hadamard_path.h"
#endif

/* Bits: the paths that this CPU runs. */
int hadamard_paths(void) {
    int paths = 1 << PLAIN;
#ifdef __x86_64__
    paths |= (__builtin_cpu_supports("avx2") ? 1 << AVX2 : 0) | (__builtin_cpu_supports("avx512f") ? 1 << AVX512 : 0);
#endif
    return paths;
}

static void transform(float *line, int64_t count, int64_t block, int path) {
#ifdef __x86_64__
    if (path == AVX2) avx2_blocks(line, count, block);
    else if (path == AVX512) avx512_blocks(line, count, block);
    else
#endif
        plain_blocks(line, count, block);
}

/* Outputs are scale * (transform of inputs * before) * after; before and after are [columns] or NULL. */
void hadamard(const void *inputs, int bfloat16, int64_t rows, int64_t columns, int64_t block, float scale,
              const float *before, const float *after, void *outputs, int path, int threads) {
    int64_t most = block > MOST ? block : MOST, room = (columns + most - 1) / most * most;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *line = aligned_alloc(64, room * sizeof *line);
        memset(line, 0, room * sizeof *line); /* a block that is filled up stays 0 */
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            const float *from = widened(inputs, bfloat16, row * columns, columns, line);
            if (before)
                for (int64_t k = 0; k < columns; k++) line[k] = from[k] * before[k];
            else if (from != line)
                memcpy(line, from, columns * sizeof *line);
            transform(line, room, block, path);
            float *to = bfloat16 ? line : (float *)outputs + row * columns;
            if (after)
                for (int64_t k = 0; k < columns; k++) to[k] = line[k] * scale * after[k];
            else
                for (int64_t k = 0; k < columns; k++) to[k] = line[k] * scale;
            if (bfloat16) narrow(line, columns, (uint16_t *)outputs + row * columns);
        }
        free(line);
    }
}
