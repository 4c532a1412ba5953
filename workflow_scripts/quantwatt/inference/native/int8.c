/* Integer linear layers in one call: quantize the inputs, multiply, rescale, add the bias.

   The products of codes from 0 to 255 and weights from -128 to 127 are added exactly in 32 bits, on each path:
   AVX-512 VNNI and AVX-VNNI add four products per lane at once; AVX2 adds two of 16 bits. quantwatt.inference.int8
   chooses the path. */

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "lines.h"

#ifdef __x86_64__
#include <immintrin.h>

enum { AVX2, AVX_VNNI, AVX512_VNNI }; /* paths, as of quantwatt.inference.int8 */
enum { CACHE_BYTES = 1 << 19, LEAST_TILE = 96 }; /* second cache where it is unknown; rows for which weights are read */

/* PANEL: outputs whose weights are interleaved. STEP: columns, to a multiple of which a line is filled up with codes of
   0. BLOCK: tokens whose sums are in registers. MOST_RUN, MOST_PANELS: of all paths. */
enum { PANEL = 16, STEP = 8, BLOCK = 6, MOST_RUN = 4, MOST_PANELS = 4 };

typedef struct {
    int64_t columns, outputs;
    int64_t group;        /* columns that share a scale, a multiple of STEP; all columns: 0 */
    int32_t nibbles;      /* weights are codes of 4 bits, minus `zero`; else integers of 8 bits */
    int32_t dynamic, by_row, symmetric, lowest, highest; /* the inputs' format, as of quantize() */
    float static_scale, static_zero;
    const uint8_t *weight; /* [panels, runs, PANEL, RUN] bytes, or [panels, runs / 2, PANEL, RUN] pairs of codes */
    const uint8_t *zero;   /* [groups, panels * PANEL], of nibbles */
    const float *scale;    /* [groups, panels * PANEL] */
    const float *sums;     /* [panels * PANEL] sum of an output's integers, each times its group's scale if grouped */
    const float *bias;     /* [panels * PANEL] or NULL */
} Layer;

typedef struct { /* inputs of a layer, quantized: value = (code - offset) * scale */
    void *codes;   /* [rows, columns filled up to STEP] bytes from 0 on, or 16-bit integers where a path wants them */
    float *scale;  /* [rows] */
    float *offset; /* [rows] */
} Codes;

typedef void Share(const Layer *layer, const Codes *codes, int64_t row, int64_t rows, int64_t panel, int64_t last,
                   uint8_t *bytes, int bfloat16, void *outputs);

static int64_t filled(const Layer *layer) { return (layer->columns + STEP - 1) / STEP * STEP; }

static int64_t panels_of(const Layer *layer) { return (layer->outputs + PANEL - 1) / PANEL; }

static int64_t groups_of(const Layer *layer) {
    return layer->group ? (layer->columns + layer->group - 1) / layer->group : 1;
}

/* Writes the zero points of a group, once for each byte of a run. */
static void zeros_of(const Layer *layer, int64_t g, int64_t panel, int panels, int run, uint8_t *zero) {
    const uint8_t *from = layer->zero + (g * panels_of(layer) + panel) * PANEL;
    for (int n = 0; n < panels * PANEL; n++) {
        uint32_t bytes = from[n] * 0x01010101u;
        memcpy(zero + n * run, &bytes, run);
    }
}

/* Unpacks a panel of codes of 4 bits to bytes; the low halves are the first run of two. */
static void unpack_panel(const Layer *layer, int64_t panel, int run, uint8_t *bytes) {
    int64_t columns = filled(layer), pairs = columns / run / 2, size = PANEL * run;
    int64_t each = (layer->group ? layer->group : columns) / run / 2;
    const uint8_t *packed = layer->weight + panel * pairs * size;
    uint8_t zero[PANEL * MOST_RUN];
    for (int64_t pair = 0; pair < pairs; pair++) {
        if (pair % each == 0) zeros_of(layer, pair / each, panel, 1, run, zero);
        const uint8_t *from = packed + pair * size;
        uint8_t *to = bytes + pair * 2 * size;
        for (int i = 0; i < size; i++) to[i] = (from[i] & 15) - zero[i];
        for (int i = 0; i < size; i++) to[size + i] = (from[i] >> 4) - zero[i];
    }
}

/* As `narrow`, but that denormal numbers become 0; the lines are filled up to whole vectors. */
__attribute__((target("avx512f,avx512bf16"))) static void narrow_in_vectors(const float *line, int64_t count,
                                                                              uint16_t *out) {
    for (int64_t k = 0; k < count; k += PANEL)
        _mm256_storeu_si256((__m256i *)(out + k), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(line + k)));
}

/* Makes outputs of the sums of one row: integers, or where there are groups floats that hold the weights' scales. */
static inline __attribute__((always_inline)) void finish(const Layer *layer, const Codes *codes, int64_t row,
                                                         int64_t panel, const int panels, const int32_t *sums,
                                                         const float *totals, int bfloat16, void *outputs) {
    const int width = panels * PANEL;
    int64_t first = panel * PANEL, left = layer->outputs - first, to = row * layer->outputs + first;
    const float *sum_of = layer->sums + first, *scale = layer->scale + first;
    float step = codes->scale[row], line[MOST_PANELS * PANEL];
    float *out = bfloat16 || left < width ? line : (float *)outputs + to;
    float offset = codes->offset[row];
    if (totals)
        for (int n = 0; n < width; n++) out[n] = (totals[n] - offset * sum_of[n]) * step;
    else
        for (int n = 0; n < width; n++) out[n] = ((float)sums[n] - offset * sum_of[n]) * (step * scale[n]);
    if (layer->bias)
        for (int n = 0; n < width; n++) out[n] += layer->bias[first + n];
    if (bfloat16 == 2 && left >= width) narrow_in_vectors(out, width, (uint16_t *)outputs + to);
    else if (bfloat16 && left >= width) narrow(out, width, (uint16_t *)outputs + to);
    else if (bfloat16) narrow(out, left, (uint16_t *)outputs + to);
    else if (left < width) memcpy((float *)outputs + to, out, left * sizeof *out);
}

#define PATH(name) avx512_##name
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define CODE uint8_t
#define VECTOR __m512i
#define RUN 4
#define PARTS 1
#define WIDE 4
#define LOAD(address) _mm512_loadu_si512(address)
#define LOW(address, zero) \
    _mm512_sub_epi8(_mm512_and_si512(LOAD(address), _mm512_set1_epi8(15)), _mm512_loadu_si512(zero))
#define HIGH(address, zero) \
    _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(LOAD(address), 4), _mm512_set1_epi8(15)), \
                    _mm512_loadu_si512(zero))
#define SPREAD(address) _mm512_set1_epi32(*(const int32_t *)(address))
#define ADD_PRODUCTS(sums, codes, weights) _mm512_dpbusd_epi32(sums, codes, weights)
#define STORE(total, address) _mm512_storeu_si512(address, total[0])
#include "int8_path.h"

#define CODE uint8_t
#define PATH(name) avx_vnni_##name
#define TARGET __attribute__((target("avx2,avxvnni")))
#define VECTOR __m256i
#define RUN 4
#define PARTS 2
#define WIDE 1
#define LOAD(address) _mm256_loadu_si256((const __m256i *)(address))
#define LOW(address, zero) _mm256_sub_epi8(_mm256_and_si256(LOAD(address), _mm256_set1_epi8(15)), LOAD(zero))
#define HIGH(address, zero) \
    _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(LOAD(address), 4), _mm256_set1_epi8(15)), LOAD(zero))
#define SPREAD(address) _mm256_set1_epi32(*(const int32_t *)(address))
#define ADD_PRODUCTS(sums, codes, weights) _mm256_dpbusd_avx_epi32(sums, codes, weights)
#define STORE(total, address) \
    _mm256_storeu_si256((__m256i *)(address), total[0]), _mm256_storeu_si256((__m256i *)(address) + 1, total[1])
#include "int8_path.h"

/* The same of 256 bits as AVX-512 VNNI encodes it: so that CPUs that have only that one run the path in tests. */
#define PATH(name) avx512vl_##name
#define TARGET __attribute__((target("avx2,avx512f,avx512vl,avx512vnni")))
#define CODE uint8_t
#define VECTOR __m256i
#define RUN 4
#define PARTS 2
#define WIDE 1
#define LOAD(address) _mm256_loadu_si256((const __m256i *)(address))
#define LOW(address, zero) _mm256_sub_epi8(_mm256_and_si256(LOAD(address), _mm256_set1_epi8(15)), LOAD(zero))
#define HIGH(address, zero) \
    _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(LOAD(address), 4), _mm256_set1_epi8(15)), LOAD(zero))
#define SPREAD(address) _mm256_set1_epi32(*(const int32_t *)(address))
#define ADD_PRODUCTS(sums, codes, weights) _mm256_dpbusd_epi32(sums, codes, weights)
#define STORE(total, address) \
    _mm256_storeu_si256((__m256i *)(address), total[0]), _mm256_storeu_si256((__m256i *)(address) + 1, total[1])
#include "int8_path.h"

#define PATH(name) avx2_##name
#define TARGET __attribute__((target("avx2")))
#define CODE int16_t
#define VECTOR __m256i
#define RUN 2
#define PARTS 2
#define WIDE 1
#define BYTES(address) _mm_loadu_si128((const __m128i *)(address))
#define LOAD(address) _mm256_cvtepi8_epi16(BYTES(address))
#define LOW(address, zero) \
    _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_and_si128(BYTES(address), _mm_set1_epi8(15)), BYTES(zero)))
#define HIGH(address, zero) \
    _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(BYTES(address), 4), _mm_set1_epi8(15)), BYTES(zero)))
#define SPREAD(address) _mm256_set1_epi32(*(const int32_t *)(address))
#define ADD_PRODUCTS(sums, codes, weights) _mm256_add_epi32(sums, _mm256_madd_epi16(codes, weights))
#define STORE(total, address) \
    _mm256_storeu_si256((__m256i *)(address), total[0]), _mm256_storeu_si256((__m256i *)(address) + 1, total[1])
#include "int8_path.h"

static Share *share_of(int path) {
    if (path == AVX512_VNNI) return avx512_share;
    if (path == AVX_VNNI) return __builtin_cpu_supports("avxvnni") ? avx_vnni_share : avx512vl_share;
    return avx2_share;
}

/* Bits: the paths that this CPU runs. */
int int8_paths(void) {
    int avx512 = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw");
    int narrow_vnni = __builtin_cpu_supports("avxvnni") || avx512;
    return (__builtin_cpu_supports("avx2") ? 1 << AVX2 : 0) | narrow_vnni << AVX_VNNI | avx512 << AVX512_VNNI;
}

/* Quantizes a line to codes from 0 on, of bytes or 16 bits, and fills it up with 0. */
static void encode_line(const Layer *layer, const float *line, float scale, float zero, uint8_t *bytes, int wide,
                        void *codes) {
    int64_t stride = filled(layer), columns = layer->columns;
    uint8_t *to = wide ? bytes : codes;
    encode(line, columns, scale, zero, layer->lowest, layer->highest, to, NULL);
    if (wide)
        for (int64_t k = 0; k < columns; k++) ((int16_t *)codes)[k] = to[k];
    memset((uint8_t *)codes + (columns << wide), 0, (stride - columns) << wide);
}

/* Rows whose codes stay in the second cache while the weights pass, and whose outputs do. `parts`: into how many the
   outputs are split, so that the tiles times the parts are even shares for the threads. */
static int64_t tile_of(const Layer *layer, int64_t rows, int wide, int bfloat16, int64_t groups_of_panels, int threads,
                       int64_t *parts) {
    int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE), bytes = (cache > 0 ? cache : CACHE_BYTES) / 2;
    int64_t of_outputs = bytes / (layer->outputs * (bfloat16 ? 2 : 4));
    int64_t tile = bytes / (filled(layer) << wide);
    of_outputs = of_outputs > LEAST_TILE ? of_outputs : LEAST_TILE;
    tile = tile < of_outputs ? tile : of_outputs;
    tile = tile > BLOCK ? tile : BLOCK;
    int64_t tiles = (rows + tile - 1) / tile;
    if (groups_of_panels < threads && tiles < threads) tiles = threads; /* too few outputs to split */
    for (*parts = 1; *parts < groups_of_panels && tiles * *parts % threads && tiles * *parts < 8 * threads;) ++*parts;
    tile = tiles ? (rows + tiles - 1) / tiles : BLOCK;
    return (tile + BLOCK - 1) / BLOCK * BLOCK;
}

/* Computes a layer's outputs of `rows` inputs.

   codes: of the size that Codes says, and `grid`: [2 * rows] floats; both are written, or read where the inputs were
   `quantized` before. */
void int8_multiply(const Layer *layer, int path, const void *inputs, int bfloat16, int64_t rows, void *codes,
                   float *grid_of, int quantized, void *outputs, int threads) {
    int wide = path == AVX2;
    int64_t stride = filled(layer), panels = panels_of(layer), columns = layer->columns;
    Codes made = {codes, grid_of, grid_of + rows};
    Share *share = share_of(path);
    if (bfloat16 && path == AVX512_VNNI && __builtin_cpu_supports("avx512bf16")) bfloat16 = 2;
    int64_t groups_of_panels = (panels + MOST_PANELS - 1) / MOST_PANELS, parts;
    int64_t tile = tile_of(layer, rows, wide, bfloat16, groups_of_panels, threads, &parts);
    int64_t tiles = (rows + tile - 1) / tile;
    float scale = layer->static_scale, zero = layer->static_zero;
    int32_t least = INT32_MAX, most = INT32_MIN;
    int whole = layer->dynamic && !layer->by_row && !quantized;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *buffer = malloc((columns + 1) * sizeof *buffer);
        uint8_t *bytes = malloc(layer->nibbles ? MOST_PANELS * PANEL * stride : columns + 1);
        if (whole) {
#pragma omp for reduction(min : least) reduction(max : most)
            for (int64_t row = 0; row < rows; row++) {
                int32_t low, high;
                line_range(widened(inputs, bfloat16, row * columns, columns, buffer), columns, &low, &high);
                least = low < least ? low : least;
                most = high > most ? high : most;
            }
#pragma omp single
            grid(least, most, layer->symmetric, layer->lowest, layer->highest, &scale, &zero);
        }
        if (!quantized) {
#pragma omp for
            for (int64_t row = 0; row < rows; row++) {
                const float *line = widened(inputs, bfloat16, row * columns, columns, buffer);
                float own_scale = scale, own_zero = zero;
                if (layer->dynamic && layer->by_row) {
                    int32_t low, high;
                    line_range(line, columns, &low, &high);
                    grid(low, high, layer->symmetric, layer->lowest, layer->highest, &own_scale, &own_zero);
                }
                made.scale[row] = own_scale;
                made.offset[row] = own_zero - layer->lowest;
                encode_line(layer, line, own_scale, own_zero, bytes, wide, (uint8_t *)codes + (row * stride << wide));
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tiles * parts; i++) {
            int64_t first = i / parts * tile, part = i % parts;
            int64_t from = groups_of_panels * part / parts * MOST_PANELS;
            int64_t to = groups_of_panels * (part + 1) / parts * MOST_PANELS;
            share(layer, &made, first, rows - first < tile ? rows - first : tile, from, to < panels ? to : panels,
                  bytes, bfloat16, outputs);
        }
        free(bytes);
        free(buffer);
    }
}
#endif
