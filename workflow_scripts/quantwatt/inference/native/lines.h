/* What all functions do with one line of floats: widen, narrow, find its range, its grid and its codes. */

#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline const float *widened(const void *values, int bfloat16, int64_t start, int64_t count, float *line) {
    if (!bfloat16) return (const float *)values + start;
    const uint16_t *from = (const uint16_t *)values + start;
    for (int64_t k = 0; k < count; k++) {
        uint32_t bits = (uint32_t)from[k] << 16;
        memcpy(&line[k], &bits, 4);
    }
    return line;
}

static inline void narrow(const float *line, int64_t count, uint16_t *out) { /* to nearest, ties to even; NaN stays NaN */
    for (int64_t k = 0; k < count; k++) {
        uint32_t bits;
        memcpy(&bits, &line[k], 4);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[k] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
}

/* Maps the bits of floats to integers of the same order. NaN is beyond infinity, so a NaN shows in a line's range. */
static inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

static inline float value_of(int32_t key) {
    float value;
    key = ordered(key);
    memcpy(&value, &key, 4);
    return value;
}

static inline void line_range(const float *line, int64_t count, int32_t *least, int32_t *most) {
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

static inline void grid(int32_t least, int32_t most, int symmetric, int lowest, int highest, float *scale, float *zero) {
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

static inline void encode(const float *line, int64_t count, float scale, float zero, int lowest, int highest,
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

static inline void line_of_codes(const uint8_t *packed, int64_t columns, int bits, uint8_t *codes) {
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
