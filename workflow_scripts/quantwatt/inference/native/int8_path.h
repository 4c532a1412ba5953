/* One path of int8.c, for one instruction set. It is included with these macros:

   PATH(name)  a name of this path                TARGET  attribute of its functions
   CODE        type of an input's code            VECTOR  type of a vector
   RUN         columns of an output that are next to each other, whose products one instruction adds
   PARTS       vectors of a panel's run           WIDE  panels of BLOCK tokens whose sums are in registers
   LOAD(address)                the weights of PANEL * RUN / PARTS bytes
   LOW(address, zero), HIGH(…)  the same of the low or high halves of bytes, minus as many zero points
   SPREAD(address)              the codes of a run, repeated
   ADD_PRODUCTS(sums, codes, weights)
   STORE(sums, address)         PARTS vectors to PANEL integers of 32 bits */

static inline __attribute__((always_inline)) TARGET void PATH(block)(const CODE *codes, int64_t stride, int64_t runs,
                                                                     const uint8_t *weight, int64_t panel_size,
                                                                     const uint8_t *zero, const int tokens,
                                                                     const int panels, const int halves,
                                                                     int32_t *sums) {
    VECTOR total[BLOCK][WIDE * PARTS];
    const int part = PANEL * RUN / PARTS; /* bytes */
#pragma GCC unroll 8
    for (int m = 0; m < tokens; m++)
#pragma GCC unroll 8
        for (int i = 0; i < panels * PARTS; i++) total[m][i] = (VECTOR){0};
    for (int64_t run = 0; run < runs; run += 1 + halves)
#pragma GCC unroll 2
        for (int half = 0; half <= halves; half++) {
            VECTOR weights[WIDE * PARTS];
#pragma GCC unroll 8
            for (int i = 0; i < panels * PARTS; i++) {
                const uint8_t *from = weight + i / PARTS * panel_size + (run >> halves) * PANEL * RUN + i % PARTS * part;
                weights[i] = !halves ? LOAD(from) : half ? HIGH(from, zero + i * part) : LOW(from, zero + i * part);
            }
#pragma GCC unroll 8
            for (int m = 0; m < tokens; m++) {
                VECTOR spread = SPREAD(codes + m * stride + (run + half) * RUN);
#pragma GCC unroll 8
                for (int i = 0; i < panels * PARTS; i++) total[m][i] = ADD_PRODUCTS(total[m][i], spread, weights[i]);
            }
        }
#pragma GCC unroll 8
    for (int m = 0; m < tokens; m++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) STORE((total[m] + p * PARTS), (sums + (m * WIDE + p) * PANEL));
}

static __attribute__((noinline)) TARGET void PATH(block_of)(const CODE *codes, int64_t stride, int64_t runs, const uint8_t *weight,
                                  int64_t panel_size, const uint8_t *zero, int tokens, int panels, int32_t *sums) {
#define BLOCK_WITH(tokens, panels) \
    case (tokens) * 8 + (panels): \
        if (zero) PATH(block)(codes, stride, runs, weight, panel_size, zero, tokens, panels, 1, sums); \
        else PATH(block)(codes, stride, runs, weight, panel_size, zero, tokens, panels, 0, sums); \
        break;
    switch (tokens * 8 + panels) { /* constant numbers keep the sums in registers */
        BLOCK_WITH(1, 1) BLOCK_WITH(2, 1) BLOCK_WITH(3, 1) BLOCK_WITH(4, 1) BLOCK_WITH(5, 1) BLOCK_WITH(6, 1)
#if WIDE > 1
        BLOCK_WITH(1, WIDE) BLOCK_WITH(2, WIDE) BLOCK_WITH(3, WIDE)
        BLOCK_WITH(4, WIDE) BLOCK_WITH(5, WIDE) BLOCK_WITH(6, WIDE)
#endif
    }
#undef BLOCK_WITH
}

/* Computes outputs [row, row + rows) of the panels [panel, last). */
static TARGET void PATH(share)(const Layer *layer, const Codes *codes, int64_t row, int64_t rows, int64_t panel,
                               int64_t last, uint8_t *bytes, int bfloat16, void *outputs) {
    int64_t stride = filled(layer), size = stride * PANEL, groups = groups_of(layer);
    int64_t group_runs = (groups > 1 ? layer->group : stride) / RUN, padded = panels_of(layer) * PANEL;
    int halves = layer->nibbles && rows <= BLOCK; /* else unpacking takes little of the time */
    size >>= halves;
    while (panel < last) {
        int panels = last - panel >= WIDE ? WIDE : 1;
        const uint8_t *weight = layer->weight + panel * (size >> (layer->nibbles && !halves));
        uint8_t zero[WIDE * PANEL * RUN];
        if (layer->nibbles && !halves) {
            for (int p = 0; p < panels; p++) unpack_panel(layer, panel + p, RUN, bytes + p * size);
            weight = bytes;
        }
        for (int64_t m = 0; m < rows; m += BLOCK) {
            int tokens = rows - m < BLOCK ? rows - m : BLOCK;
            const CODE *from = (const CODE *)codes->codes + (row + m) * stride;
            int32_t sums[BLOCK * WIDE * PANEL];
            float totals[BLOCK * WIDE * PANEL];
            for (int64_t g = 0; g < groups; g++) {
                int64_t first = g * group_runs, end = first + group_runs;
                end = end < stride / RUN ? end : stride / RUN;
                if (halves) zeros_of(layer, g, panel, panels, RUN, zero);
                PATH(block_of)(from + first * RUN, stride, end - first, weight + (first * PANEL * RUN >> halves), size,
                               halves ? zero : NULL, tokens, panels, sums);
                if (groups == 1) break;
                const float *scale = layer->scale + g * padded + panel * PANEL;
                for (int i = 0; i < tokens; i++)
                    for (int n = 0; n < panels * PANEL; n++) {
                        float part = sums[i * WIDE * PANEL + n] * scale[n];
                        totals[i * WIDE * PANEL + n] = part + (g ? totals[i * WIDE * PANEL + n] : 0);
                    }
            }
            for (int i = 0; i < tokens; i++) {
                const int32_t *sum = sums + i * WIDE * PANEL;
                const float *total = groups > 1 ? totals + i * WIDE * PANEL : NULL;
                if (panels == WIDE) finish(layer, codes, row + m + i, panel, WIDE, sum, total, bfloat16, outputs);
                else finish(layer, codes, row + m + i, panel, 1, sum, total, bfloat16, outputs);
            }
        }
        panel += panels;
    }
}

#undef PATH
#undef TARGET
#undef CODE
#undef VECTOR
#undef RUN
#undef PARTS
#undef WIDE
#undef LOAD
#undef LOW
#undef HIGH
#undef SPREAD
#undef ADD_PRODUCTS
#undef STORE
