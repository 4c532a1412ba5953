/* One path of packed.c, for one instruction set. It is included with these macros:

   PATH(name)  a name of this path          TARGET       attribute of its functions
   VECTOR      type of a vector of floats   LANES        floats of a vector
   LOAD, STORE(address, vector), SPREAD(float)
   KEPT(vector)     hides where it comes from, so that no product is fused into a sum
   WIDENED(halves)  LANES float16 as floats; the plain path has no float16 */

static inline __attribute__((always_inline)) TARGET VECTOR PATH(value)(const Piece *piece, int64_t k, const int halves) {
#ifdef WIDENED
    if (halves) return WIDENED(piece->values.halves + k);
#endif
    return LOAD(piece->values.floats + k);
}

/* Scales the values of columns `first` to `end` to `line`, and writes up to a vector more. */
static inline __attribute__((always_inline)) TARGET void PATH(scale_with)(const Weight *weight, const Grid *grid,
                                                                         float factor, int64_t first, int64_t end,
                                                                         Piece *piece, const int halves,
                                                                         const int zeros) {
    int64_t group = weight->groups == 1 ? weight->columns : weight->group, g = first / group;
    for (int64_t k = first, stop = (g + 1) * group; k < end; g++, stop += group) {
        int64_t last = stop < end ? stop : end;
        VECTOR scale = SPREAD(grid->scale[g] * factor), zero = SPREAD(zeros ? grid->zero[g] : 0);
        for (; k < last; k += LANES) {
            VECTOR value = PATH(value)(piece, k - first, halves);
            if (zeros == ZERO_POINTS) value = value - zero;
            value = value * scale;
            if (zeros == MINIMA) {
                KEPT(value);
                value = value + zero;
            }
            STORE(piece->line + (k - first), value);
        }
        k = last;
    }
}

static TARGET void PATH(scale)(const Weight *weight, const Grid *grid, float factor, int64_t first, int64_t end,
                               Piece *piece, int halves) {
#define CASE(halves, zeros) \
    case 3 * halves + zeros: PATH(scale_with)(weight, grid, factor, first, end, piece, halves, zeros); break;
    switch (3 * halves + (!grid->zero ? NO_ZEROS : weight->minima ? MINIMA : ZERO_POINTS)) {
        CASE(0, NO_ZEROS) CASE(0, ZERO_POINTS) CASE(0, MINIMA)
#ifdef WIDENED
        CASE(1, NO_ZEROS) CASE(1, ZERO_POINTS) CASE(1, MINIMA)
#endif
    }
#undef CASE
}

/* Adds the products of a row's piece and `tokens` inputs to sums [FEW, LANES]: that of token t to those of t, t + tokens,
   ... `vectors`: how many are in a group, or 0: any number, whose last may be filled up with zeros. */
static inline __attribute__((always_inline)) TARGET void PATH(multiply_with)(const float *scales, int64_t group,
                                                                             int64_t count, const Piece *piece,
                                                                             const float *inputs, int64_t stride,
                                                                             const int tokens, const int halves,
                                                                             const int vectors, float *sums) {
    const int ways = vectors ? 1 : FEW / tokens; /* independent sums per token: else each would wait for the last */
    VECTOR totals[FEW];
    for (int i = 0; i < FEW; i++) totals[i] = LOAD(sums + i * LANES);
    for (int64_t k = 0; k < count; scales++) {
        VECTOR found[FEW], scale = SPREAD(*scales);
        for (int i = 0; i < FEW; i++) found[i] = SPREAD(0);
        if (vectors) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++, k += LANES) {
                VECTOR value = PATH(value)(piece, k, halves);
                for (int t = 0; t < tokens; t++) found[t] += value * LOAD(inputs + t * stride + k);
            }
        } else {
            int64_t last = k + group < count ? k + group : count;
            for (; k + ways * LANES <= last; k += ways * LANES)
                for (int w = 0; w < ways; w++) {
                    VECTOR value = PATH(value)(piece, k + w * LANES, halves);
                    for (int t = 0; t < tokens; t++)
                        found[w * tokens + t] += value * LOAD(inputs + t * stride + k + w * LANES);
                }
            for (; k < last; k += LANES) {
                VECTOR value = PATH(value)(piece, k, halves);
                for (int t = 0; t < tokens; t++) found[t] += value * LOAD(inputs + t * stride + k);
            }
        }
        for (int i = 0; i < ways * tokens; i++) totals[i] += scale * found[i];
    }
    for (int i = 0; i < FEW; i++) STORE(sums + i * LANES, totals[i]);
}

/* Adds the sums [FEW, LANES] of each token up. */
static inline __attribute__((always_inline)) TARGET void PATH(total_with)(const float *sums, const int tokens, float *totals) {
    for (int t = 0; t < tokens; t++) {
        VECTOR all = LOAD(sums + t * LANES);
        for (int i = t + tokens; i < FEW / tokens * tokens; i += tokens) all += LOAD(sums + i * LANES);
        float lanes[LANES];
        STORE(lanes, all);
        for (int half = LANES / 2; half; half /= 2)
            for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
        totals[t] = *lanes;
    }
}

static TARGET void PATH(total)(const float *sums, int tokens, float *totals) {
#define CASE(tokens) case tokens: PATH(total_with)(sums, tokens, totals); break;
    switch (tokens) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
}

/* Constant numbers keep the sums in registers. `group` is a multiple of LANES, or not less than `count`. */
static TARGET void PATH(multiply)(const float *scales, int64_t group, int64_t count, const Piece *piece, int halves,
                                  const float *inputs, int64_t stride, int tokens, float *sums) {
    int vectors = halves && group / LANES <= 2 ? group / LANES : 0;
#define CASE(tokens, halves, vectors) \
    case 100 * tokens + 10 * halves + vectors: \
        PATH(multiply_with)(scales, group, count, piece, inputs, stride, tokens, halves, vectors, sums); \
        break;
#ifdef WIDENED
#define CASES(tokens) CASE(tokens, 0, 0) CASE(tokens, 1, 0) CASE(tokens, 1, 1) CASE(tokens, 1, 2)
#else
#define CASES(tokens) CASE(tokens, 0, 0)
#endif
    switch (100 * tokens + 10 * halves + vectors) { CASES(1) CASES(2) CASES(3) CASES(4) }
#undef CASES
#undef CASE
}

#undef PATH
#undef TARGET
#undef VECTOR
#undef LANES
#undef LOAD
#undef STORE
#undef SPREAD
#undef KEPT
#undef WIDENED
