/* What codes stand for at scale 1, as float32 or, where this is exact, as float16, with the instructions of a path.

   Codes that are floats are shifted to float16, which the CPU converts at full speed, subnormal numbers too. */

#pragma once

#include "packed.h"

enum { PIECE = 1024, FILLED = 64, ROOM = PIECE + FILLED }; /* columns that are decoded at once, and zeros behind them */

typedef struct {
    union {
        float floats[ROOM];
        uint16_t halves[ROOM];
    } values __attribute__((aligned(64)));
    float line[ROOM] __attribute__((aligned(64)));
    uint8_t codes[ROOM];
    float table[64]; /* of codes of up to 6 bits, again and again; and its float16's bytes */
    uint8_t low[64], high[64];
    uint8_t order[64], starts[64]; /* of vbmi_looked_up */
    float center;
} Piece;

enum { AHEAD = 2048 }; /* bytes before which memory is asked for packed codes */

/* Whether a path looks codes up in tables of up to 64 values of float16. */
static inline int looks_up_in_64(const Weight *weight, int path) {
#ifdef __x86_64__
    return path >= AVX512 && weight->bits <= 6 && weight->half && __builtin_cpu_supports("avx512vbmi");
#else
    return 0;
#endif
}

/* Whether a path shifts codes to float16, so that their values have the factor `shifted`. */
static inline int shifts(const Weight *weight, int path) {
    return path >= AVX2 && weight->exponent && weight->bits > 4 && !looks_up_in_64(weight, path);
}


static inline float value_at_one(const Weight *weight, int code, float center) {
    return weight->values ? weight->values[code] : code - center;
}

/* Fills the tables of a piece, once for all rows. `center`: the code that is subtracted from codes without a table. */
static void prepare(const Weight *weight, float center, Piece *piece) {
    piece->center = center;
    for (int i = 0; i < 64 && weight->bits <= 6; i++) {
        uint32_t bits, half;
        float value = piece->table[i] = value_at_one(weight, i & ((1 << weight->bits) - 1), center);
        float scaled = value * 0x1p-112f; /* has float16's exponent; its last bits are 0 where float16 is exact */
        memcpy(&bits, &scaled, 4);
        half = (bits >> 13 & 0x7fff) | (bits >> 16 & 0x8000);
        piece->low[i] = half, piece->high[i] = half >> 8;
        int word = i / 8 % 2 ? 4 + i / 16 : i / 16; /* so that the bytes of float16 are interleaved in order */
        int byte = weight->bits - 1 - i % 8;
        piece->order[i] = word * weight->bits + (byte > 0 ? byte : 0);
        piece->starts[i] = weight->bits * (7 - i % 8);
    }
}

static void plain_values(const Weight *weight, const uint8_t *packed, int64_t columns, Piece *piece) {
    float *floats = piece->values.floats;
    line_of_codes(packed, columns, weight->bits, piece->codes);
    if (weight->values)
        for (int64_t k = 0; k < columns; k++) floats[k] = weight->values[piece->codes[k]];
    else
        for (int64_t k = 0; k < columns; k++) floats[k] = piece->codes[k] - piece->center;
}

#ifdef __x86_64__
#include <immintrin.h>

#define OF_AVX2 __attribute__((target("avx2,f16c,fma")))
#define OF_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,fma")))
#define OF_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

/* Unpacks codes of up to 7 bits to bytes, 32 at once, shifted `left`: 16 bits around each code are multiplied so that
   the code is in the highest bits. */
static OF_AVX2 void avx2_codes(const uint8_t *packed, int64_t columns, int bits, int left, uint8_t *codes) {
    int8_t order[16];
    int16_t factors[8];
    for (int i = 0; i < 8; i++) {
        order[2 * i + 1] = i * bits / 8;
        order[2 * i] = i * bits / 8 + 1;
        factors[i] = 1 << i * bits % 8;
    }
    __m256i around = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)order));
    __m256i upwards = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)factors));
    __m256i mask = _mm256_set1_epi16((int16_t)(0xffff0000 >> bits)), downwards = _mm256_set1_epi16(1 << (bits + left));
    int64_t bytes = (columns * bits + 7) / 8;
    uint8_t last[64];
    for (; bytes > 0; bytes -= 4 * bits, packed += 4 * bits, codes += 32) {
        const uint8_t *from = packed;
        if (bytes < 3 * bits + 16) { /* each load takes 16 bytes */
            memset(last, 0, sizeof last);
            memcpy(last, packed, bytes);
            from = last;
        }
        __m256i found[2];
        for (int i = 0; i < 2; i++) {
            __m256i eights = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(from + i * bits))),
                _mm_loadu_si128((const __m128i *)(from + (i + 2) * bits)), 1);
            eights = _mm256_mullo_epi16(_mm256_shuffle_epi8(eights, around), upwards);
            found[i] = _mm256_mulhi_epu16(_mm256_and_si256(eights, mask), downwards);
        }
        _mm256_storeu_si256((__m256i *)codes, _mm256_packus_epi16(found[0], found[1]));
    }
}

/* Shifts floats of 8 bits, or fewer in the highest bits, to float16, 16 at once. `codes`: with room for 16 more. */
static OF_AVX2 void avx2_shifted(const Weight *weight, const uint8_t *codes, int64_t columns, uint16_t *halves) {
    __m256i shift = _mm256_set1_epi16(1 << (3 + weight->exponent));
    __m256i mask = _mm256_set1_epi16((int16_t)(0x8000 | ((1 << (10 + weight->exponent)) - 1)));
    for (int64_t k = 0; k < columns; k += 16) {
        __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + k)));
        _mm256_storeu_si256((__m256i *)(halves + k), _mm256_and_si256(_mm256_mullo_epi16(wide, shift), mask));
    }
}

/* Looks codes of up to 4 bits up in a table of float16, 32 at once. `codes`: with room for 32 more. */
static OF_AVX2 void avx2_looked_up(const uint8_t *codes, int64_t columns, Piece *piece) {
    uint16_t *halves = piece->values.halves;
    __m256i of_low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)piece->low));
    __m256i of_high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)piece->high));
    for (int64_t k = 0; k < columns; k += 32) {
        __m256i code = _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i *)(codes + k)), 0xd8);
        __m256i first = _mm256_shuffle_epi8(of_low, code), second = _mm256_shuffle_epi8(of_high, code);
        _mm256_storeu_si256((__m256i *)(halves + k), _mm256_unpacklo_epi8(first, second));
        _mm256_storeu_si256((__m256i *)(halves + k + 16), _mm256_unpackhi_epi8(first, second));
    }
}

/* Looks codes of up to 4 bits up in a table of floats, 8 at once: the fourth bit of a code selects one of two vectors. */
static OF_AVX2 void avx2_floats(const uint8_t *codes, int64_t columns, Piece *piece) {
    float *floats = piece->values.floats;
    __m256 first = _mm256_loadu_ps(piece->table), second = _mm256_loadu_ps(piece->table + 8);
    for (int64_t k = 0; k < columns; k += 8) {
        __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + k)));
        __m256 either[] = {_mm256_permutevar8x32_ps(first, code), _mm256_permutevar8x32_ps(second, code)};
        __m256 select = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
        _mm256_storeu_ps(floats + k, _mm256_blendv_ps(either[0], either[1], select));
    }
}

/* Looks packed codes of up to 6 bits up in a table of float16, 64 at once: each word gets the bytes of 8 codes in order,
   and each byte of it 8 bits that end with a code. */
static OF_VBMI void vbmi_looked_up(int bits, const uint8_t *packed, int64_t columns, Piece *piece) {
    uint16_t *halves = piece->values.halves;
    __m512i in_order = _mm512_loadu_si512(piece->order), from = _mm512_loadu_si512(piece->starts);
    __m512i of_low = _mm512_loadu_si512(piece->low), of_high = _mm512_loadu_si512(piece->high);
    int64_t bytes = (columns * bits + 7) / 8;
    for (; bytes > 0; bytes -= 8 * bits, packed += 8 * bits, halves += 64) {
        int64_t there = bytes < 8 * bits ? bytes : 8 * bits;
        __builtin_prefetch(packed + AHEAD);
        __m512i words = _mm512_maskz_loadu_epi8(((uint64_t)1 << there) - 1, packed);
        __m512i codes = _mm512_multishift_epi64_epi8(from, _mm512_permutexvar_epi8(in_order, words));
        __m512i first = _mm512_permutexvar_epi8(codes, of_low), second = _mm512_permutexvar_epi8(codes, of_high);
        _mm512_storeu_si512(halves, _mm512_unpacklo_epi8(first, second));
        _mm512_storeu_si512(halves + 32, _mm512_unpackhi_epi8(first, second));
    }
}

/* As avx2_shifted, of packed codes of 8 bits, 32 at once. */
static OF_AVX512 void avx512_shifted(const Weight *weight, const uint8_t *codes, int64_t columns, uint16_t *halves) {
    __m512i shift = _mm512_set1_epi16(1 << (3 + weight->exponent));
    __m512i mask = _mm512_set1_epi16((int16_t)(0x8000 | ((1 << (10 + weight->exponent)) - 1)));
    int64_t k = 0;
    for (; k + 64 <= columns; k += 64) {
        __builtin_prefetch(codes + k + AHEAD);
#pragma GCC unroll 2
        for (int i = 0; i < 64; i += 32) {
            __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(codes + k + i)));
            _mm512_storeu_si512(halves + k + i, _mm512_and_si512(_mm512_mullo_epi16(wide, shift), mask));
        }
    }
    for (; k < columns; k += 32) {
        __mmask32 there = columns - k < 32 ? ((uint32_t)1 << (columns - k)) - 1 : 0xffffffff;
        __m512i wide = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(there, codes + k));
        _mm512_storeu_si512(halves + k, _mm512_and_si512(_mm512_mullo_epi16(wide, shift), mask));
    }
}

static int by_avx2(const Weight *weight, const uint8_t *packed, int64_t columns, Piece *piece) {
    int bits = weight->bits, shifted = weight->exponent && bits > 4;
    if (bits == 8) memcpy(piece->codes, packed, columns);
    else avx2_codes(packed, columns, bits, shifted ? 8 - bits : 0, piece->codes);
    if (shifted) avx2_shifted(weight, piece->codes, columns, piece->values.halves);
    else if (bits <= 4 && weight->half) avx2_looked_up(piece->codes, columns, piece);
    else if (bits <= 4) avx2_floats(piece->codes, columns, piece);
    else for (int64_t k = 0; k < columns; k++) piece->values.floats[k] = value_at_one(weight, piece->codes[k], piece->center);
    return shifted || (bits <= 4 && weight->half);
}
#endif

static int halves_or_floats(const Weight *weight, int path, const uint8_t *packed, int64_t columns, Piece *piece) {
#ifdef __x86_64__
    if (looks_up_in_64(weight, path)) {
        vbmi_looked_up(weight->bits, packed, columns, piece);
        return 1;
    }
    if (path >= AVX512 && weight->bits == 8 && shifts(weight, path)) {
        avx512_shifted(weight, packed, columns, piece->values.halves);
        return 1;
    }
    if (path >= AVX2) return by_avx2(weight, packed, columns, piece);
#endif
    plain_values(weight, packed, columns, piece);
    return 0;
}

/* Writes the values of packed codes at scale 1, and zeros behind them. Returns whether they are float16. */
static inline int values_of(const Weight *weight, int path, const uint8_t *packed, int64_t columns, Piece *piece) {
    int halves = halves_or_floats(weight, path, packed, columns, piece);
    if (halves) memset(piece->values.halves + columns, 0, FILLED * sizeof *piece->values.halves);
    else memset(piece->values.floats + columns, 0, FILLED * sizeof *piece->values.floats);
    return halves;
}
