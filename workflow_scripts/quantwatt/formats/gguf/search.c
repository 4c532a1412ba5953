/* ggml's searches for the scale of a group: the functions of search.py, for LANES groups at once.

   Every operation is one of search.py, in its order and rounded on its own, so that both give the same bits; the compiler
   must not fuse a product and a sum. Values are [groups, count]; inside, [count][LANES]. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, MOST = 32 }; /* groups at once; values of a group */

typedef float Block[MOST][LANES];

#define EACH_LANE for (int lane = 0; lane < LANES; lane++)
#define EACH_VALUE for (int64_t k = 0; k < count; k++)

static const float TINY = 1e-15f;

static void load(const float *values, int64_t first, int64_t groups, int64_t count, Block x) {
    EACH_LANE {
        int64_t group = first + lane < groups ? first + lane : groups - 1; /* a lane without a group repeats the last */
        EACH_VALUE x[k][lane] = values[group * count + k];
    }
}

static void store(Block x, int64_t first, int64_t groups, int64_t count, float *values) {
    for (int lane = 0; lane < LANES && first + lane < groups; lane++) EACH_VALUE values[(first + lane) * count + k] = x[k][lane];
}

static void store_lanes(const float *lanes, int64_t first, int64_t groups, float *to) {
    for (int lane = 0; lane < LANES && first + lane < groups; lane++) to[first + lane] = lanes[lane];
}

/* The nearest whole number within bounds; 0 for NaN. */
static inline float rounded(float value, float lowest, float highest) {
    float whole = rintf(value);
    whole = whole == whole ? whole : 0;
    whole = whole > lowest ? whole : lowest; /* 0 for -0 */
    return whole > highest ? highest : whole;
}

static void extreme(Block x, int64_t count, float *found) {
    float largest[LANES] = {0};
    EACH_LANE found[lane] = 0;
    EACH_VALUE EACH_LANE {
        int larger = fabsf(x[k][lane]) > largest[lane];
        largest[lane] = larger ? fabsf(x[k][lane]) : largest[lane];
        found[lane] = larger ? x[k][lane] : found[lane];
    }
}

static void affine_loss(Block x, Block w, Block codes, int64_t count, const float *scale, const float *low, int absolute,
                        float *sum) {
    EACH_LANE sum[lane] = -0.0f; /* what is added to it first stays as it is */
    EACH_VALUE EACH_LANE {
        float difference = scale[lane] * codes[k][lane] + low[lane] - x[k][lane];
        sum[lane] += w[k][lane] * (absolute ? fabsf(difference) : difference * difference);
    }
}

/* divisions: [1 + steps], how many parts of the range a step is of. */
void affine(const float *values, const float *weights, int64_t groups, int64_t count, float highest,
            const float *divisions, int steps, int absolute, float *scales, float *lows, float *found, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < groups; first += LANES) {
        Block x, w, codes, tried;
        float low[LANES], high[LANES], scale[LANES], error[LANES], sum_w[LANES], sum_x[LANES];
        int flat[LANES];
        load(values, first, groups, count, x);
        load(weights, first, groups, count, w);
        EACH_LANE low[lane] = 0, high[lane] = x[0][lane], sum_w[lane] = sum_x[lane] = -0.0f;
        EACH_VALUE EACH_LANE {
            low[lane] = x[k][lane] < low[lane] ? x[k][lane] : low[lane];
            high[lane] = x[k][lane] > high[lane] ? x[k][lane] : high[lane];
            sum_w[lane] += w[k][lane];
            sum_x[lane] += w[k][lane] * x[k][lane];
        }
        EACH_LANE {
            flat[lane] = high[lane] == low[lane];
            high[lane] = flat[lane] ? low[lane] + 1 : high[lane];
            float inverse = highest / (high[lane] - low[lane]);
            scale[lane] = 1 / inverse;
            EACH_VALUE codes[k][lane] = rounded(inverse * (x[k][lane] - low[lane]), 0, highest);
        }
        affine_loss(x, w, codes, count, scale, low, absolute, error);
        for (int step = 0; step < steps; step++) {
            float sum_l[LANES], sum_l2[LANES], sum_xl[LANES], new_scale[LANES], new_low[LANES], new_error[LANES];
            float inverse[LANES], determinant[LANES];
            int better[LANES];
            EACH_LANE inverse[lane] = divisions[step] / (high[lane] - low[lane]);
            EACH_LANE sum_l[lane] = sum_l2[lane] = sum_xl[lane] = -0.0f;
            EACH_VALUE EACH_LANE {
                float code = rounded(inverse[lane] * (x[k][lane] - low[lane]), 0, highest);
                float weighted = w[k][lane] * code;
                tried[k][lane] = code;
                sum_l[lane] += weighted;
                sum_l2[lane] += weighted * code;
                sum_xl[lane] += weighted * x[k][lane];
            }
            EACH_LANE {
                determinant[lane] = sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane];
                float fitted = (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / determinant[lane];
                float lowest = (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / determinant[lane];
                new_scale[lane] = lowest > 0 ? sum_xl[lane] / sum_l2[lane] : fitted;
                new_low[lane] = lowest > 0 ? 0 : lowest;
            }
            affine_loss(x, w, tried, count, new_scale, new_low, absolute, new_error);
            EACH_LANE {
                better[lane] = determinant[lane] > 0 && new_error[lane] < error[lane];
                error[lane] = better[lane] ? new_error[lane] : error[lane];
                scale[lane] = better[lane] ? new_scale[lane] : scale[lane];
                low[lane] = better[lane] ? new_low[lane] : low[lane];
            }
            EACH_VALUE EACH_LANE codes[k][lane] = better[lane] ? tried[k][lane] : codes[k][lane];
        }
        EACH_LANE scale[lane] = flat[lane] ? 0 : scale[lane];
        EACH_VALUE EACH_LANE codes[k][lane] = flat[lane] ? 0 : codes[k][lane];
        store_lanes(scale, first, groups, scales);
        store_lanes(low, first, groups, lows);
        store(codes, first, groups, count, found);
    }
}

/* divisions: [steps], by which the extreme value is divided: the negative one is that of the first grid. */
void symmetric(const float *values, int64_t groups, int64_t count, float middle, const float *divisions, int steps,
               float *scales, float *found, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < groups; first += LANES) {
        Block x, codes = {{0}}, tried;
        float largest[LANES], scale[LANES] = {0}, best[LANES];
        int empty[LANES];
        load(values, first, groups, count, x);
        extreme(x, count, largest);
        EACH_LANE {
            empty[lane] = fabsf(largest[lane]) < TINY;
            largest[lane] = empty[lane] ? 1 : largest[lane];
            best[lane] = -1;
        }
        for (int step = 0; step < steps; step++) {
            float inverse[LANES], sum_lx[LANES], sum_l2[LANES];
            int better[LANES];
            EACH_LANE inverse[lane] = divisions[step] / largest[lane], sum_lx[lane] = sum_l2[lane] = -0.0f;
            EACH_VALUE EACH_LANE {
                float value = x[k][lane], code = rounded(inverse[lane] * value, -middle, middle - 1);
                tried[k][lane] = code;
                sum_lx[lane] += value * value * value * code;
                sum_l2[lane] += value * value * code * code;
            }
            EACH_LANE {
                float fitted = sum_lx[lane] / sum_l2[lane];
                better[lane] = sum_l2[lane] > 0 && sum_lx[lane] * sum_lx[lane] > best[lane] * sum_l2[lane];
                scale[lane] = better[lane] ? fitted : scale[lane];
                best[lane] = better[lane] ? fitted * sum_lx[lane] : best[lane];
            }
            EACH_VALUE EACH_LANE codes[k][lane] = better[lane] ? tried[k][lane] : codes[k][lane];
        }
        EACH_LANE scale[lane] = empty[lane] ? 0 : scale[lane];
        EACH_VALUE EACH_LANE codes[k][lane] = empty[lane] ? 0 : codes[k][lane] + middle;
        store_lanes(scale, first, groups, scales);
        store(codes, first, groups, count, found);
    }
}

void coordinate(const float *values, int64_t groups, int64_t count, float middle, float *scales, float *found,
                int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < groups; first += LANES) {
        Block x, codes;
        float largest[LANES], scale[LANES], sum_lx[LANES], sum_l2[LANES];
        int empty[LANES];
        load(values, first, groups, count, x);
        extreme(x, count, largest);
        EACH_LANE {
            empty[lane] = fabsf(largest[lane]) < TINY;
            largest[lane] = -middle / (empty[lane] ? 1 : largest[lane]);
            sum_lx[lane] = sum_l2[lane] = -0.0f;
        }
        EACH_VALUE EACH_LANE {
            float value = x[k][lane], code = rounded(largest[lane] * value, -middle, middle - 1);
            codes[k][lane] = code;
            sum_lx[lane] += value * value * value * code;
            sum_l2[lane] += value * value * code * code;
        }
        for (int pass = 0; pass < 5; pass++) EACH_VALUE EACH_LANE {
            float value = x[k][lane], weight = value * value, old = codes[k][lane];
            float without_lx = sum_lx[lane] - weight * value * old, without_l2 = sum_l2[lane] - weight * old * old;
            float code = rounded(value * without_l2 / without_lx, -middle, middle - 1);
            float new_lx = without_lx + weight * value * code, new_l2 = without_l2 + weight * code * code;
            int better = without_lx > 0 && code != old && new_l2 > 0 &&
                         new_lx * new_lx * sum_l2[lane] > sum_lx[lane] * sum_lx[lane] * new_l2;
            codes[k][lane] = better ? code : old;
            sum_lx[lane] = better ? new_lx : sum_lx[lane];
            sum_l2[lane] = better ? new_l2 : sum_l2[lane];
        }
        EACH_LANE scale[lane] = empty[lane] || !(sum_l2[lane] > 0) ? 0 : sum_lx[lane] / sum_l2[lane];
        EACH_VALUE EACH_LANE codes[k][lane] = empty[lane] ? 0 : codes[k][lane] + middle;
        store_lanes(scale, first, groups, scales);
        store(codes, first, groups, count, found);
    }
}

/* levels: [2 * reach], the levels nearest to places from -reach / 2 on, in steps of 1/2; divisions: [steps], the first 0
   for the grid that puts the extreme value on `end`. */
void of_codebook(const float *values, int64_t groups, int64_t count, float end, const float *levels, int reach,
                 const float *divisions, int steps, float *scales, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < groups; first += LANES) {
        Block x;
        float largest[LANES], scale[LANES] = {0}, best[LANES];
        int empty[LANES];
        load(values, first, groups, count, x);
        extreme(x, count, largest);
        EACH_LANE {
            empty[lane] = fabsf(largest[lane]) < TINY;
            largest[lane] = empty[lane] ? 1 : largest[lane];
            best[lane] = -1;
        }
        for (int step = 0; step < steps; step++) {
            float inverse[LANES], sum_qx[LANES], sum_q2[LANES];
            EACH_LANE inverse[lane] = step ? divisions[step] / largest[lane] : 1 / (-largest[lane] / end);
            EACH_LANE sum_qx[lane] = sum_q2[lane] = -0.0f;
            EACH_VALUE EACH_LANE {
                float value = x[k][lane], halves = floorf(2 * (inverse[lane] * value));
                halves = halves == halves ? halves : -reach;
                halves = halves < -reach ? -reach : halves;
                halves = halves > reach - 1 ? reach - 1 : halves;
                float level = levels[(int)halves + reach], weighted = value * value * level;
                sum_qx[lane] += weighted * value;
                sum_q2[lane] += weighted * level;
            }
            EACH_LANE {
                float fitted = sum_qx[lane] / sum_q2[lane];
                int better = sum_q2[lane] > 0 && sum_qx[lane] * sum_qx[lane] > best[lane] * sum_q2[lane];
                scale[lane] = better ? fitted : scale[lane];
                best[lane] = better ? fitted * sum_qx[lane] : best[lane];
            }
        }
        EACH_LANE scale[lane] = empty[lane] ? 0 : scale[lane];
        store_lanes(scale, first, groups, scales);
    }
}
