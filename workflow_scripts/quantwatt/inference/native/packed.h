/* A packed weight, and its grids row by row; quantwatt.inference.packed fills these structures. */

#pragma once

#include "lines.h"

enum { FLOAT32, FLOAT16, WHOLE, SIGNED, E8M0, E4M3 };         /* types of stored numbers */
enum { PLAIN, AVX2, AVX512, AVX512_BF16 };                    /* paths, by instruction set */
enum { NO_ZEROS, ZERO_POINTS, MINIMA };              /* what `zero` of a weight is */

typedef struct {
    const void *stored; /* [row blocks, groups] of `type`, or NULL: there are none */
    const void *factor; /* [row blocks, groups / of_factor] float16, of_factor a multiple of 8; [1] float32
                                      if it is 0; or NULL */
    int64_t type, of_factor, rows; /* rows that share numbers */
} Numbers;

typedef struct {
    int64_t rows, columns, groups, group, bits;
    int64_t minima;   /* `zero` has the values of code 0; else the codes of value 0 */
    int64_t exponent; /* exponent bits of codes that are floats without NaN; else 0 */
    int64_t narrow;   /* whether bfloat16 holds all values of codes exactly */
    int64_t half;     /* whether float16 does */
    const uint8_t *packed;
    const float *values; /* [1 << bits], or NULL: a code minus its zero point is its value */
    const float *bias;   /* [rows] or NULL */
    const int32_t *group_index; /* [columns], or NULL: groups are neighbours */
    Numbers scale, zero;
    float middle;  /* the zero point where there is no `zero` */
    float shifted; /* a float's value over that of the float16 with the same exponent and mantissa bits */
} Weight;

typedef struct {
    const float *scale, *zero; /* [groups], [groups] or NULL, of one row */
} Grid;

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Shifted bits of subnormal numbers would be so in float32, too, which CPUs multiply slowly. */
static inline float of_float16(uint16_t half) {
    uint32_t magnitude = half & 0x7fff, bits;
    float subnormal = (int32_t)magnitude * 0x1p-24f;
    memcpy(&bits, &subnormal, 4);
    bits = magnitude < 0x400 ? bits : (magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23);
    return float_of(bits | (uint32_t)(half & 0x8000) << 16);
}

static inline float of_e8m0(uint32_t code) {
    return float_of(code == 255 ? 0x7fc00000 : code ? code << 23 : 0x400000);
}

static inline float of_e4m3(uint32_t code) {
    uint32_t magnitude = code & 127, bits;
    float subnormal = (int32_t)magnitude * 0x1p-9f;
    memcpy(&bits, &subnormal, 4);
    bits = magnitude < 8 ? bits : magnitude == 127 ? 0x7fc00000 : (magnitude << 20) + (120u << 23);
    return float_of(bits | (code & 128) << 24);
}

enum { EIGHT = 8 };

/* Returns a row's numbers as float32: those that are stored, or `line` [groups]. */
static inline const float *numbers_of(const Numbers *numbers, int64_t row, int64_t groups, float *line) {
    if (!numbers->stored) return NULL;
    int64_t block = row / numbers->rows;
    const uint8_t *bytes = (const uint8_t *)numbers->stored + block * groups;
    const float *floats = (const float *)numbers->stored + block * groups;
    const uint16_t *halves = (const uint16_t *)numbers->stored + block * groups;
    switch (numbers->type) {
    case FLOAT32:
        if (!numbers->factor) return floats;
        memcpy(line, floats, groups * sizeof *line);
        break;
    case FLOAT16: for (int64_t g = 0; g < groups; g++) line[g] = of_float16(halves[g]); break;
    case WHOLE: for (int64_t g = 0; g < groups; g++) line[g] = bytes[g]; break;
    case SIGNED: for (int64_t g = 0; g < groups; g++) line[g] = (int8_t)bytes[g]; break;
    case E8M0: for (int64_t g = 0; g < groups; g++) line[g] = of_e8m0(bytes[g]); break;
    case E4M3: for (int64_t g = 0; g < groups; g++) line[g] = of_e4m3(bytes[g]);
    }
    int64_t each = numbers->of_factor;
    if (numbers->factor && !each)
        for (int64_t g = 0; g < groups; g++) line[g] *= *(const float *)numbers->factor;
    else if (numbers->factor)
        for (int64_t g = 0; g < groups; g += EIGHT) { /* K-quants have 8 or 16 groups a block */
            float factor = of_float16(((const uint16_t *)numbers->factor)[(block * groups + g) / each]);
            for (int64_t i = 0; i < EIGHT; i++) line[g + i] *= factor;
        }
    return line;
}

/* `room`: [2 * groups] floats. */
static inline Grid grid_of_row(const Weight *weight, int64_t row, float *room) {
    Grid found = {numbers_of(&weight->scale, row, weight->groups, room),
                  numbers_of(&weight->zero, row, weight->groups, room + weight->groups)};
    return found;
}

/* The code that products subtract from all codes: near the zero points, so that few digits cancel out. */
static inline float center_of(const Weight *weight) {
    return weight->values ? 0 : weight->zero.stored ? 1 << (weight->bits - 1) : weight->middle;
}

/* The grid of a row with the values of the code `center` as zeros. `room`: [3 * groups] floats. */
static inline Grid centered_grid(const Weight *weight, int64_t row, float center, float *room) {
    Grid grid = grid_of_row(weight, row, room);
    if (!grid.zero) return grid;
    float *zero = room + 2 * weight->groups;
    for (int64_t g = 0; g < weight->groups; g++)
        zero[g] = weight->minima ? grid.zero[g] + center * grid.scale[g] : (center - grid.zero[g]) * grid.scale[g];
    grid.zero = zero;
    return grid;
}
