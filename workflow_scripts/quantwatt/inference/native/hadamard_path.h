/* One path of hadamard.c, for one instruction set. It is included with these macros:

   PATH(name)  a name of this path          TARGET     attribute of its functions
   VECTOR      type of a vector             LANES      floats of a vector
   REGISTERS   vectors of a tile            LOAD, STORE, ADD, SUBTRACT
   STEP_1, STEP_2, STEP_4, STEP_8 where a vector has 16 lanes: the steps of these strides, inside a vector */

#define TILE (LANES * REGISTERS)

/* The step between vectors that are `apart` vectors from each other. */
static inline __attribute__((always_inline)) TARGET void PATH(across)(VECTOR *x, const int apart) {
#pragma GCC unroll 16
    for (int i = 0; i < REGISTERS; i++)
        if (!(i & apart)) {
            VECTOR first = x[i], second = x[i + apart];
            x[i] = ADD(first, second);
            x[i + apart] = SUBTRACT(first, second);
        }
}

/* The steps inside a tile whose strides are below a block's length. */
static inline __attribute__((always_inline)) TARGET void PATH(tile)(float *line, int64_t block) {
    VECTOR x[REGISTERS];
#define EACH(step) \
    _Pragma("GCC unroll 16") for (int i = 0; i < REGISTERS; i++) x[i] = step(x[i])
#pragma GCC unroll 16
    for (int i = 0; i < REGISTERS; i++) x[i] = LOAD(line + i * LANES);
    EACH(STEP_1);
    if (block > 2) EACH(STEP_2);
    if (block > 4) EACH(STEP_4);
#ifdef STEP_8
    if (block > 8) EACH(STEP_8);
#endif
    if (block > LANES) PATH(across)(x, 1);
    if (block > 2 * LANES) PATH(across)(x, 2);
    if (block > 4 * LANES) PATH(across)(x, 4);
#if REGISTERS > 8
    if (block > 8 * LANES) PATH(across)(x, 8);
#endif
#pragma GCC unroll 16
    for (int i = 0; i < REGISTERS; i++) STORE(line + i * LANES, x[i]);
#undef EACH
}

/* Transforms all blocks of a line whose length is a multiple of a tile's and of a block's. */
static TARGET void PATH(blocks)(float *line, int64_t count, int64_t block) {
    for (int64_t start = 0; start < count; start += TILE) PATH(tile)(line + start, block);
    for (int64_t stride = TILE; stride < block; stride *= 2)
        for (int64_t start = 0; start < count; start += 2 * stride)
            for (int64_t k = start; k < start + stride; k += LANES) {
                VECTOR first = LOAD(line + k), second = LOAD(line + k + stride);
                STORE(line + k, ADD(first, second));
                STORE(line + k + stride, SUBTRACT(first, second));
            }
}

#undef PATH
#undef TARGET
#undef VECTOR
#undef LANES
#undef REGISTERS
#undef LOAD
#undef STORE
#undef ADD
#undef SUBTRACT
#undef WITHIN
#undef STEP_1
#undef STEP_2
#undef STEP_4
#undef STEP_8
#undef TILE
