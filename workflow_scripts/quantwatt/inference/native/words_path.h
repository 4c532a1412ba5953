/* One path of few_tokens.c for words of packed codes. It is included with these macros:

   PATH(name), TARGET   a name of this path, attribute of its functions
   INPUT, WIDTH         type of the inputs, and bits of the words whose codes are multiplied by them in turn
   TABLE_TYPE, TABLE_OF(values)                vector with the 16 values of a code
   WEIGHTS(words, shift, bits, table, middle)  the values of the codes at `shift` of all words
   ADD_PRODUCTS(sums, inputs, weights)
   CASES(rows, tokens)                         CASE(bits, rows, tokens) for all bits that the path reads */

/* Multiplies `tokens` ordered inputs by `rows` rows of words, as if the center of codes had the value 0. */
static inline __attribute__((always_inline)) TARGET void PATH(words_with)(const Weight *weight, const Grid *grids,
                                                                          int64_t row, const INPUT *ordered,
                                                                          int64_t stride, const int bits,
                                                                          const int rows, const int tokens,
                                                                          float *outputs) {
    const int shifts = WIDTH / bits;
    int64_t chunk = LANES * 32 / bits, columns = weight->columns, bytes = (columns * bits + 7) / 8;
    int64_t groups = weight->groups, group = groups == 1 ? columns : weight->group;
    int many = chunk > group; /* groups in one chunk */
    float center = center_of(weight);
    float own[LANES];
    int32_t index[LANES];
    for (int i = 0; i < LANES; i++) { /* only the low bits of a code count, so a table repeats */
        own[i] = (weight->values ? weight->values[i] : i & ((1 << bits) - 1)) - center;
        index[i] = i * (32 / bits) / group;
    }
    TABLE_TYPE table = TABLE_OF(own);
    __m512 middle = _mm512_set1_ps(center), totals[FEW];
    __m512i of_lane = _mm512_loadu_si512(index);
    (void)middle;
#pragma GCC unroll 4
    for (int i = 0; i < rows * tokens; i++) totals[i] = _mm512_setzero_ps();
    for (int64_t first = 0, g = 0; first < columns; first += chunk) {
        int64_t left = bytes - first * bits / 8;
        __mmask64 inside = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
        __m512i words[FEW];
        __m512 found[FEW];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            words[r] = _mm512_maskz_loadu_epi8(inside, weight->packed + (row + r) * bytes + first * bits / 8);
#pragma GCC unroll 4
        for (int i = 0; i < rows * tokens; i++) found[i] = _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int i = 0; i < shifts; i++)
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                __auto_type weights = WEIGHTS(words[r], i * bits, bits, table, middle);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; t++) {
                    const INPUT *inputs = ordered + t * stride + first + i * (chunk / shifts);
                    found[r * tokens + t] = ADD_PRODUCTS(found[r * tokens + t], inputs, weights);
                }
            }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const Grid *grid = grids + r;
            __mmask16 there = groups - g < LANES ? (1 << (groups - g)) - 1 : 0xffff;
            __m512 scale = many ? _mm512_permutexvar_ps(of_lane, _mm512_maskz_loadu_ps(there, grid->scale + g))
                                : _mm512_set1_ps(grid->scale[g]);
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++)
                totals[r * tokens + t] = _mm512_fmadd_ps(scale, found[r * tokens + t], totals[r * tokens + t]);
        }
        g = many ? g + chunk / group : (first + chunk) / group;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++)
            outputs[t * weight->rows + row + r] = _mm512_reduce_add_ps(totals[r * tokens + t]);
}

static TARGET void PATH(words_of)(const Weight *weight, const Grid *grids, int64_t row, int rows, const INPUT *ordered,
                                  int64_t stride, int tokens, float *outputs) {
#define CASE(bits, rows, tokens) \
    case bits * 100 + rows * 10 + tokens: \
        PATH(words_with)(weight, grids, row, ordered, stride, bits, rows, tokens, outputs); \
        break;
    switch (weight->bits * 100 + rows * 10 + tokens) { /* constant numbers keep the sums in registers */
        CASES(4, 1) CASES(2, 2) CASES(1, 1) CASES(1, 2) CASES(1, 3) CASES(1, 4)
    }
#undef CASE
}

#undef PATH
#undef TARGET
#undef INPUT
#undef WIDTH
#undef TABLE_TYPE
#undef TABLE_OF
#undef CASES
#undef WEIGHTS
#undef ADD_PRODUCTS
