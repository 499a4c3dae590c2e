/* Reading and updating analog arrays, patch by patch: what rapa_cli/analog/periphery.py and merged.py define, without
   the matrix of all patches.

   Blocks of up to CHUNK patches of one tile are gathered into a thread's own memory and go through converters, product
   and noise while they are in the cache. What a patch gets depends on nothing but itself and the key of its noise: all
   sums over its lines run in one order, and every Gaussian has a place of its own in the sequence of Philox. Sums over
   patches run in the order of tiles and numbers, whatever the number of threads. */

#include "common.h"

#include <math.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint64_t wide __attribute__((vector_size(4 * WIDTH), aligned(8), may_alias));
typedef uint32_t bits_of_float __attribute__((may_alias));

/* Added and taken away again, rounds what is below 2^22 to whole numbers, halves to even; what is larger stays so. */
#define ROUNDING 12582912.0f

/* What a divisor of inputs is: a constant, the largest magnitude, the largest value. */
enum { CONSTANT, ABS_MAX, MAX };
enum { NO_WEIGHT_NOISE, ADDITIVE, PCM_READ };
/* What a Gaussian is for: two bits of its key. */
enum { OF_OUTPUTS, OF_INPUTS };

typedef struct {
    float constant, threshold;                           /* the constant divisor; the largest other one, or infinity */
    float inp_inverse, inp_step, inp_bound, inp_noise;   /* steps of 0: no rounding; bounds may be infinite */
    float out_inverse, out_step, out_bound, out_noise;
    float out_scale, w_noise, ir_drop, ir_current;
    int32_t management, w_noise_type;
    int32_t negative_too;       /* whether outputs below the negative bound ask for another reading */
    int32_t passes;             /* at most so many readings of a patch */
    int32_t reads_zeros;        /* whether a patch whose divisor is 0 is read, with divisor 1 */
    int32_t backward;
    uint32_t key0, key1, layer, unused;
    const int64_t *images, *draws;   /* ids and draws of the batch's images */
} Io;

/* One direction of reading: matrices (tiles, inputs, stride), of which `outputs` columns count. */
typedef struct {
    const Io *io;
    const float *plain, *magnitude, *dropped;   /* W, |W|, and W times how much each input loses to IR drop; or NULL */
    int64_t inputs, outputs, stride;
} Array;

/* ---------------------------------------------------------------- Gaussians */

/* The Gaussians of a patch, in one direction and reading, have places 0, 1, ... in groups of 32. Group g of patch i of
   an image takes the blocks 8 (i groups + g) to + 7 of the counter (block, layer, image, draw), where `groups` are
   those of a patch; place 8 j + l of a group belongs to word j of block l. Words 0 and 1 of a block make two Gaussians,
   words 2 and 3 two more (Box and Muller): of words a and b sqrt(-2 ln u) times the cosine and sine of 2 pi b / 2^32,
   with u = (floor(a / 2) + 1/2) / 2^31. The second half of the key is that of the caller (below 2^16) + 2^16 kind
   + 2^20 r, with kind 0 for outputs and 1 for inputs of a forward reading, 2 and 3 for those of a backward one, and r
   the number of the reading. */
#define GROUP 32

INLINE wide even_products(wide x, uint32_t m) {
#if WIDTH == 16
    return (wide)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(m));
#elif WIDTH == 8 && defined(__AVX2__)
    return (wide)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
#elif WIDTH == 4 && defined(__SSE2__)
    return (wide)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(m));
#else
    return (x & 0xFFFFFFFFu) * (uint64_t)m;
#endif
}

INLINE uvec high_product(uvec x, uint32_t m) {
    const wide even = even_products((wide)x, m), odd = even_products((wide)x >> 32, m);
    return (uvec)((even >> 32) | (odd & 0xFFFFFFFF00000000u));
}

INLINE vec root(vec x) {
#if WIDTH == 16
    return (vec)_mm512_sqrt_ps((__m512)x);
#elif WIDTH == 8
    return (vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
    return (vec)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
    return (vec)vsqrtq_f32((float32x4_t)x);
#else
    UNROLL for (int l = 0; l < WIDTH; l++) x[l] = sqrtf(x[l]);
    return x;
#endif
}

/* Polynomials that are nearest to ln(1 + f) / f, to the sine over t and to the cosine of t quarter turns in the sense
   of the largest relative error: 2e-7, 3e-9 and 3e-8. */
INLINE void box_muller(uvec a, uvec b, vec *first, vec *second) {
    const vec u = __builtin_convertvector((ivec)(a >> 1), vec) * 0x1p-31f + 0x1p-32f;
    const ivec exponent = ((ivec)u - 0x3F3504F3) >> 23;
    const vec f = (vec)((ivec)u - (exponent << 23)) - 1.0f;
    vec ln = f * -1.010689308e-01f + 1.622257964e-01f;
    ln = ln * f - 1.725083013e-01f;
    ln = ln * f + 1.990016559e-01f;
    ln = ln * f - 2.496990904e-01f;
    ln = ln * f + 3.333505894e-01f;
    ln = ln * f - 5.000036512e-01f;
    ln = ln * f + 9.999999453e-01f;
    ln = ln * f + __builtin_convertvector(exponent, vec) * 6.931471806e-01f;
    const vec radius = root(ln * -2.0f);
    const uvec quarter = (b + 0x20000000u) >> 30;
    const vec t = __builtin_convertvector((ivec)(b << 2), vec) * 0x1p-32f, square = t * t;
    vec sine = square * -4.601657887e-03f + 7.968003277e-02f, cosine = square * -2.039858178e-02f + 2.535949467e-01f;
    sine = (sine * square - 6.459634602e-01f) * square + 1.570796322e+00f;
    cosine = (cosine * square - 1.233696662e+00f) * square + 9.999999674e-01f;
    sine *= t * radius, cosine *= radius;
    const uvec swap = -(quarter & 1u), turned = (uvec)sine ^ (uvec)cosine;
    *first = (vec)(((uvec)cosine ^ (turned & swap)) ^ (((quarter + 1u) & 2u) << 30));
    *second = (vec)(((uvec)sine ^ (turned & swap)) ^ ((quarter & 2u) << 30));
}

typedef struct {
    uint32_t block, image, draw;
    float *to;
} Place;

/* Groups that are made at once, in two vectors at a time: one alone would wait for its own last product. */
#define TOGETHER 4

INLINE void together(const Io *io, uint32_t key1, const Place *place) {
    for (int piece = 0; piece < TOGETHER * 8 / WIDTH; piece += 2) {
        uvec c[2][4];
        UNROLL for (int v = 0; v < 2; v++) {
#if WIDTH == 16
            const uvec lane = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7};
            const uvec upper = {0, 0, 0, 0, 0, 0, 0, 0, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
            const Place *one = place + 2 * (piece + v), *other = one + 1;
#elif WIDTH == 8
            const uvec lane = {0, 1, 2, 3, 4, 5, 6, 7}, upper = {0};
            const Place *one = place + piece + v, *other = one;
#else
            const uvec lane = (uvec){0, 1, 2, 3} + 4u * (uint32_t)v, upper = {0};
            const Place *one = place + piece / 2, *other = one;
#endif
            c[v][0] = lane + one->block + (upper & (other->block - one->block)), c[v][1] = (uvec){0} + io->layer;
            c[v][2] = (uvec){0} + one->image + (upper & (other->image - one->image));
            c[v][3] = (uvec){0} + one->draw + (upper & (other->draw - one->draw));
        }
        uint32_t k0 = io->key0, k1 = key1;
        UNROLL for (int round = 0; round < 10; round++) {
            UNROLL for (int v = 0; v < 2; v++) {
                const uvec high0 = high_product(c[v][0], PHILOX_0), high1 = high_product(c[v][2], PHILOX_1);
                const uvec low0 = c[v][0] * PHILOX_0, low1 = c[v][2] * PHILOX_1;
                c[v][0] = high1 ^ c[v][1] ^ k0, c[v][1] = low1;
                c[v][2] = high0 ^ c[v][3] ^ k1, c[v][3] = low0;
            }
            k0 += WEYL_0, k1 += WEYL_1;
        }
        UNROLL for (int v = 0; v < 2; v++) {
            vec z[4];
            box_muller(c[v][0], c[v][1], z, z + 1);
            box_muller(c[v][2], c[v][3], z + 2, z + 3);
            UNROLL for (int j = 0; j < 4; j++) {
#if WIDTH == 16
                memcpy(place[2 * (piece + v)].to + 8 * j, z + j, 32);
                memcpy(place[2 * (piece + v) + 1].to + 8 * j, (const float *)(z + j) + 8, 32);
#elif WIDTH == 8
                memcpy(place[piece + v].to + 8 * j, z + j, 32);
#else
                memcpy(place[piece / 2].to + 8 * j + 4 * v, z + j, 16);
#endif
            }
        }
    }
}

/* `count` Gaussians, and what fills the last group, for each of m patches with these numbers in the batch. */
static void gaussians(const Problem *p, const Io *io, const int64_t *number, int64_t m, int64_t count, int kind,
                      int reading, float *to, int64_t stride) {
    const int64_t groups = (count + GROUP - 1) / GROUP;
    const uint32_t key1 = io->key1 + ((uint32_t)(kind + 2 * io->backward) << 16) + ((uint32_t)reading << 20);
    float nowhere[GROUP];
    Place place[TOGETHER];
    int waiting = 0;
    for (int64_t i = 0; i < m; i++) {
        const uint32_t b = (uint32_t)number[i] / (uint32_t)p->patches;
        const int64_t patch = number[i] - (int64_t)b * p->patches;
        for (int64_t g = 0; g < groups; g++) {
            place[waiting++] = (Place){(uint32_t)((patch * groups + g) * 8), (uint32_t)io->images[b],
                                       (uint32_t)io->draws[b], to + i * stride + g * GROUP};
            if (waiting == TOGETHER) together(io, key1, place), waiting = 0;
        }
    }
    if (waiting) {
        for (int i = waiting; i < TOGETHER; i++) place[i] = place[0], place[i].to = nowhere;
        together(io, key1, place);
    }
}

/* ---------------------------------------------------------------- products */

/* y = a w (or y += with `add`): a has m rows and k columns, `row` and `column` numbers apart; w (k, w_stride). */
INLINE void dense(const float *a, int64_t row, int64_t column, int64_t k, const float *w, int64_t w_stride, float *y,
                  int64_t y_stride, const int add, const int m, const int n) {
    vec sum[MOST][2];
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) sum[i][j] = add ? *(const vec *)(y + i * y_stride + j * WIDTH) : (vec){0};
    const float *at[MOST];
    UNROLL for (int i = 0; i < m; i++) at[i] = a + i * row;
    for (int64_t c = 0; c < k; c++, w += w_stride) {
        vec v[2];
        UNROLL for (int j = 0; j < n; j++) v[j] = *(const vec *)(w + j * WIDTH);
        UNROLL for (int i = 0; i < m; i++) {
            const float s = at[i][c * column];
            UNROLL for (int j = 0; j < n; j++) sum[i][j] += s * v[j];
        }
    }
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) *(vec *)(y + i * y_stride + j * WIDTH) = sum[i][j];
}

#define DENSE(NAME)                                                                                               \
    static void NAME(const float *a, int64_t apart, int64_t k, const float *w, int64_t w_stride, float *y,        \
                     int64_t y_stride, int m) {                                                                   \
        CASES(NAME##_CALL)                                                                                        \
    }
#define rows_1_CALL(M) dense(a, apart, 1, k, w, w_stride, y, y_stride, 0, M, 1)
#define rows_2_CALL(M) dense(a, apart, 1, k, w, w_stride, y, y_stride, 0, M, 2)
#define columns_1_CALL(M) dense(a, 1, apart, k, w, w_stride, y, y_stride, 1, M, 1)
#define columns_2_CALL(M) dense(a, 1, apart, k, w, w_stride, y, y_stride, 1, M, 2)
DENSE(rows_1)
DENSE(rows_2)
DENSE(columns_1)
DENSE(columns_2)

/* y (m, stride) = a (m, apart) w (k, stride). */
static void multiply(const float *a, int64_t apart, int64_t m, int64_t k, const float *w, int64_t stride, float *y) {
    const int64_t blocks = (m + MOST - 1) / MOST;
    for (int64_t c = 0; c < stride;) {
        const int two = stride - c >= 2 * WIDTH;
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t from = m * b / blocks, to = m * (b + 1) / blocks;
            (two ? rows_2 : rows_1)(a + from * apart, apart, k, w + c, stride, y + from * stride + c, stride,
                                    (int)(to - from));
        }
        c += two ? 2 * WIDTH : WIDTH;
    }
}

/* y (m, y_stride) += a^T b, a (k, apart), b (k, b_stride) with `width` columns that count. */
static void add_products(const float *a, int64_t apart, int64_t m, int64_t k, const float *b, int64_t b_stride,
                         int64_t width, float *y, int64_t y_stride) {
    const int64_t blocks = (m + MOST - 1) / MOST;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t from = m * block / blocks, to = m * (block + 1) / blocks;
        for (int64_t c = 0; c < width;) {
            const int two = width - c >= 2 * WIDTH;
            (two ? columns_2 : columns_1)(a + from, apart, k, b + c, b_stride, y + from * y_stride + c, y_stride,
                                          (int)(to - from));
            c += two ? 2 * WIDTH : WIDTH;
        }
    }
}

/* ---------------------------------------------------------------- one reading of a block */

static int64_t filled(int64_t numbers, int64_t of) { return (numbers + of - 1) / of * of; }

/* The distance of rows: whole vectors, and an odd number of cache lines, so that rows do not meet in it. */
static int64_t apart_for(int64_t numbers) {
    const int64_t lines = filled(numbers, 16) / 16;
    return (lines | 1) * 16;
}

/* The largest magnitude, a NaN where there is one. */
static float largest_of(const float *x, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)(((const bits_of_float *)x)[i] & 0x7FFFFFFFu);
        most = bits > most ? bits : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    return largest;
}

/* The noise management's divisor of a row filled up with zeros; not above 0 where the patch has none. */
static float divisor(const Io *io, const float *x, int64_t n) {
    if (io->management == CONSTANT) return io->constant;
    float alpha;
    if (io->management == ABS_MAX)
        alpha = largest_of(x, n);
    else {
        alpha = x[0];
        for (int64_t i = 1; i < n; i++) alpha = x[i] > alpha ? x[i] : alpha;
    }
    return alpha > io->threshold ? io->threshold : alpha;
}

/* t / step to the nearest whole number, halves to even, times step; `inverse` is 1 / step. Without the quotient's last
   bit there would be other halves: the largest input, halved by bound management, is one as often as not. */
INLINE float rounded(float t, float step, float inverse) {
    const float near = t * inverse, quotient = near + (t - near * step) * inverse;
    return (quotient + ROUNDING - ROUNDING) * step;
}

INLINE float within(float t, float bound) {
    t = t > bound ? bound : t;
    return t < -bound ? -bound : t;
}

static void to_levels(const Io *io, float *restrict x, int64_t n, float scale) {
    const float inverse = io->inp_inverse, step = io->inp_step, bound = io->inp_bound;
    if (step > 0)
        for (int64_t i = 0; i < n; i++) x[i] = within(rounded(x[i] * scale, step, inverse), bound);
    else
        for (int64_t i = 0; i < n; i++) x[i] = within(x[i] * scale, bound);
}

static float sum_of_squares(const float *x, int64_t n) {
    vec sum = {0};
    for (int64_t i = 0; i < n; i += WIDTH) sum += *(const vec *)(x + i) * *(const vec *)(x + i);
    float total = 0;
    for (int l = 0; l < WIDTH; l++) total += sum[l];
    return total;
}

/* A thread's memory. Rows of inputs are `apart` numbers long, filled up with zeros, those of outputs as long as the
   rows of a matrix. */
typedef struct {
    float *u, *v, *noise, *more, *most;   /* inputs, outputs, Gaussians; twice outputs again where they are needed */
    float spread[CHUNK], scale[CHUNK];
    int64_t number[CHUNK], place[CHUNK];  /* of each patch in the batch, and in `order` */
    int64_t apart, noise_apart, noise_rows;
    float *memory;
} Block;

static int block_new(Block *s, const Array *a) {
    const Io *io = a->io;
    s->apart = apart_for(a->inputs);
    s->noise_apart = filled(a->outputs, GROUP);
    /* Rows whose groups can be made together leave none over. */
    s->noise_rows = 1024 / s->noise_apart > TOGETHER ? 1024 / s->noise_apart : TOGETHER;
    if (s->noise_rows > CHUNK) s->noise_rows = CHUNK;
    const int more = a->magnitude || a->dropped;
    const int64_t inputs = CHUNK * s->apart + WIDTH, outputs = CHUNK * a->stride;
    int64_t noise = s->noise_rows * s->noise_apart;
    if (io->inp_noise > 0 && noise < filled(a->inputs, GROUP)) noise = filled(a->inputs, GROUP);
    noise = filled(noise, 16);
    const int64_t numbers = filled(inputs, 16) + noise + (more ? 3 : 1) * outputs;
    s->memory = malloc(sizeof(float) * (numbers + 16));
    if (!s->memory) return 1;
    s->u = (float *)(((uintptr_t)s->memory + 63) / 64 * 64);
    s->noise = s->u + filled(inputs, 16);
    s->v = s->noise + noise;
    s->more = more ? s->v + outputs : NULL, s->most = more ? s->more + outputs : NULL;
    memset(s->noise, 0, sizeof(float) * noise);
    return 0;
}

/* Inputs u of m patches become outputs v before their noise, whose spread is found too. */
static void currents(const Problem *p, const Array *a, Block *s, int64_t tile, int64_t m, int reading) {
    const Io *io = a->io;
    const int64_t matrix = tile * a->inputs * a->stride, outputs = m * a->stride;
    for (int64_t i = 0; i < m; i++) {
        float *u = s->u + i * s->apart;
        to_levels(io, u, s->apart, s->scale[i]);
        if (io->inp_noise > 0) {
            gaussians(p, io, s->number + i, 1, a->inputs, OF_INPUTS, reading, s->noise, 0);
            for (int64_t k = 0; k < a->inputs; k++) u[k] += io->inp_noise * s->noise[k];
        }
        s->spread[i] = io->out_noise;
        if (io->w_noise_type == ADDITIVE) {
            const float weights = io->w_noise * io->w_noise * sum_of_squares(u, s->apart);
            s->spread[i] = sqrtf(weights + io->out_noise * io->out_noise);
        }
    }
    multiply(s->u, s->apart, m, a->inputs, a->plain + matrix, a->stride, s->v);
    if (a->dropped) {
        multiply(s->u, s->apart, m, a->inputs, a->dropped + matrix, a->stride, s->more);
        for (int64_t k = 0; k < m * s->apart; k++) s->u[k] = fabsf(s->u[k]);
        multiply(s->u, s->apart, m, a->inputs, a->magnitude + matrix, a->stride, s->most);
        for (int64_t k = 0; k < outputs; k++) {
            const float current = s->most[k] * io->ir_current;
            s->v[k] -= io->ir_drop * (current * (current * (0.05f * current - 0.2f) + 0.5f)) * s->more[k];
        }
    }
    if (io->w_noise_type == PCM_READ) {
        const float weights = io->w_noise * io->w_noise, rest = io->out_noise * io->out_noise;
        for (int64_t k = 0; k < m * s->apart; k++) s->u[k] *= s->u[k];
        multiply(s->u, s->apart, m, a->inputs, a->magnitude + matrix, a->stride, s->more);
        for (int64_t k = 0; k < outputs; k++) s->more[k] = sqrtf(weights * s->more[k] + rest);
    }
}

/* The ADC on one row. Returns 1 where an output is above the bound, 2 where one is below the negative one, or both. */
INLINE int convert(const Io *io, float *restrict v, const float *restrict noise, const float *restrict spreads,
                   float spread, int64_t n, const int each, const int rounds) {
    const float inverse = io->out_inverse, step = io->out_step, bound = io->out_bound;
    int over = 0, under = 0;
    for (int64_t k = 0; k < n; k++) {
        float t = v[k] + (each ? spreads[k] : spread) * noise[k];
        if (rounds) t = rounded(t, step, inverse);
        over |= t > bound, under |= t < -bound;
        v[k] = t;
    }
    return over | under << 1;
}

static int converted(const Io *io, float *v, const float *noise, const float *spreads, float spread, int64_t n) {
    if (spreads)
        return io->out_step > 0 ? convert(io, v, noise, spreads, spread, n, 1, 1)
                                : convert(io, v, noise, spreads, spread, n, 1, 0);
    return io->out_step > 0 ? convert(io, v, noise, spreads, spread, n, 0, 1)
                            : convert(io, v, noise, spreads, spread, n, 0, 0);
}

/* Gaussians of the rows from i on, where that is due. */
static void noise_for(const Problem *p, const Array *a, Block *s, int64_t i, int64_t m, int reading) {
    const Io *io = a->io;
    if (i % s->noise_rows || (io->out_noise <= 0 && io->w_noise_type == NO_WEIGHT_NOISE)) return;
    const int64_t rows = m - i < s->noise_rows ? m - i : s->noise_rows;
    gaussians(p, io, s->number + i, rows, a->outputs, OF_OUTPUTS, reading, s->noise, s->noise_apart);
}

static int row_converted(const Array *a, Block *s, int64_t i) {
    const float *spreads = a->io->w_noise_type == PCM_READ ? s->more + i * a->stride : NULL;
    return converted(a->io, s->v + i * a->stride, s->noise + i % s->noise_rows * s->noise_apart, spreads, s->spread[i],
                     a->outputs);
}

/* ---------------------------------------------------------------- forward */

/* The patch at place q of the order: its runs one after the other, then 1 for a bias line, then zeros, of which up to
   WIDTH lie behind the row. */
INLINE void gather(const Problem *p, const float *x, int64_t q, float *row, int64_t apart, int64_t bias) {
    const float *from = x + p->base[q];
    int64_t k = 0;
    for (int64_t line = 0; line < p->lines; line++, k += p->run)
        for (int64_t r = 0; r < p->run; r += WIDTH)
            *(vec *)(row + k + r) = *(const vec *)(from + p->line_offset[line] + r);
    if (bias) row[k++] = 1;
    for (; k < apart; k += WIDTH) *(vec *)(row + k) = (vec){0};
}

/* The group of part and tile that holds place q. */
static int64_t group_of(const Problem *p, int64_t q) {
    int64_t low = 0, high = p->parts * p->tiles;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (p->start[middle] <= q) low = middle;
        else high = middle;
    }
    return low;
}

/* Readings of up to CHUNK patches of one tile, from place q on. Returns whether anything was clipped in their last. */
static int forward_block(const Problem *p, const Array *a, Block *s, int64_t tile, int64_t q, int64_t size,
                         const float *x, int64_t bias, float *y, uint8_t *clipped) {
    const Io *io = a->io;
    int64_t todo = size, any = 0;
    for (int64_t i = 0; i < size; i++) s->place[i] = q + i;
    for (int reading = 0; todo; reading++) {
        int64_t m = 0;
        for (int64_t i = 0; i < todo; i++) {
            float *row = s->u + m * s->apart;
            gather(p, x, s->place[i], row, s->apart, bias);
            const float alpha = divisor(io, row, s->apart);
            const int64_t number = p->order[s->place[i]];
            if (alpha <= 0 && !io->reads_zeros) {
                memset(y + number * a->outputs, 0, sizeof(float) * a->outputs);
                continue;
            }
            s->place[m] = s->place[i], s->number[m] = number;
            s->scale[m++] = (alpha <= 0 ? 1 : 1 / alpha) / (float)((int64_t)1 << reading);
        }
        currents(p, a, s, tile, m, reading);
        todo = 0;
        for (int64_t i = 0; i < m; i++) {
            noise_for(p, a, s, i, m, reading);
            const int out_of_bounds = row_converted(a, s, i);
            if ((out_of_bounds & (io->negative_too ? 3 : 1)) && reading + 1 < io->passes) {
                s->place[todo++] = s->place[i];
                continue;
            }
            const float *v = s->v + i * a->stride;
            float *to = y + s->number[i] * a->outputs;
            const float bound = io->out_bound, factor = io->out_scale / s->scale[i];
            for (int64_t c = 0; c < a->outputs; c++) to[c] = within(v[c], bound) * factor;
            if (out_of_bounds) {
                uint8_t *mark = clipped + s->number[i] * a->outputs;
                for (int64_t c = 0; c < a->outputs; c++) mark[c] = v[c] > bound || v[c] < -bound;
                any = 1;
            }
        }
    }
    return (int)any;
}

/* y[patch] as the patch's array answers it, y (.., outputs); clipped (.., outputs), zeros before, gets 1 where the ADC
   clipped. Returns whether it did anywhere, or -1 where there is no memory. */
int rapa_analog_forward(const Problem *p, const Array *a, const float *x, int64_t bias, float *y, uint8_t *clipped,
                        int threads) {
    const int64_t total = p->start[p->parts * p->tiles];
    /* Work for all threads in pieces that cost little to hand out; results do not depend on how they are cut. */
    int64_t piece = total / (8 * threads);
    piece = piece < CHUNK ? CHUNK : piece > 16 * CHUNK ? 16 * CHUNK : piece;
    int failed = 0, any = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed, any)
    {
        Block s;
        const int ready = !block_new(&s, a);
        failed |= !ready;
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < total; first += piece) {
            const int64_t last = first + piece < total ? first + piece : total;
            int64_t group = group_of(p, first);
            for (int64_t q = first; ready && q < last;) {
                while (p->start[group + 1] <= q) group++;
                const int64_t end = p->start[group + 1] < last ? p->start[group + 1] : last;
                const int64_t size = end - q < CHUNK ? end - q : CHUNK;
                any |= forward_block(p, a, &s, group % p->tiles, q, size, x, bias, y, clipped);
                q += size;
            }
        }
        if (ready) free(s.memory);
    }
    return failed ? -1 : any;
}

/* ---------------------------------------------------------------- backward */

/* The first place from `first` to `last`, in one group, whose patch has this number in the batch or a later one. */
static int64_t place_of(const Problem *p, int64_t first, int64_t last, int64_t patch) {
    while (first < last) {
        const int64_t middle = (first + last) / 2;
        if (p->order[middle] < patch) first = middle + 1;
        else last = middle;
    }
    return first;
}

static void backward_block(const Problem *p, const Array *a, Block *s, int64_t tile, int64_t q, int64_t size,
                           const float *d, const uint8_t *clipped, float *grad) {
    const Io *io = a->io;
    int64_t m = 0;
    for (int64_t i = 0; i < size; i++) {
        float *row = s->u + m * s->apart;
        const int64_t number = p->order[q + i];
        memcpy(row, d + number * a->inputs, sizeof(float) * a->inputs);
        if (clipped)
            for (int64_t c = 0; c < a->inputs; c++) row[c] = clipped[number * a->inputs + c] ? 0 : row[c];
        for (int64_t c = a->inputs; c < s->apart; c++) row[c] = 0;
        const float alpha = divisor(io, row, s->apart);
        if (alpha <= 0) continue;
        s->place[m] = q + i, s->number[m] = number, s->scale[m++] = 1 / alpha;
    }
    currents(p, a, s, tile, m, 0);
    for (int64_t i = 0; i < m; i++) {
        noise_for(p, a, s, i, m, 0);
        row_converted(a, s, i);
        const float *v = s->v + i * a->stride;
        float *target = grad + p->base[s->place[i]];
        const float bound = io->out_bound, factor = io->out_scale / s->scale[i];
        for (int64_t line = 0; line < p->lines; line++, v += p->run) {
            float *to = target + p->line_offset[line];
            for (int64_t r = 0; r < p->run; r++) to[r] += within(v[r], bound) * factor;
        }
    }
}

/* grad (batch, image) = the transposed readings of d (.., inputs), those of each patch added to its pixels; where
   `clipped` (.., inputs) is not 0, d counts as 0. Images belong to one thread. Returns 0, or -1 where there is no
   memory. */
int rapa_analog_backward(const Problem *p, const Array *a, const float *d, const uint8_t *clipped, float *grad,
                         int threads) {
    int64_t cuts = p->parts ? (4 * threads + p->parts - 1) / p->parts : 1;
    if (cuts > p->part_images) cuts = p->part_images;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        Block s;
        const int ready = !block_new(&s, a);
        failed |= !ready;
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < p->parts * cuts; unit++) {
            const int64_t part = unit / cuts, begin = part * p->part_images;
            const int64_t images = p->batch - begin < p->part_images ? p->batch - begin : p->part_images;
            const int64_t from = begin + images * (unit % cuts) / cuts, to = begin + images * (unit % cuts + 1) / cuts;
            memset(grad + from * p->image, 0, sizeof(float) * (to - from) * p->image);
            for (int64_t tile = 0; ready && tile < p->tiles; tile++) {
                const int64_t *start = p->start + part * p->tiles + tile;
                const int64_t first = place_of(p, start[0], start[1], from * p->patches);
                const int64_t last = place_of(p, first, start[1], to * p->patches);
                for (int64_t q = first; q < last; q += CHUNK)
                    backward_block(p, a, &s, tile, q, last - q < CHUNK ? last - q : CHUNK, d, clipped, grad);
            }
        }
        if (ready) free(s.memory);
    }
    return -failed;
}

/* ---------------------------------------------------------------- moments of pulses */

typedef struct {
    float rate, granularity, a;        /* lr, g, and A = B before any management */
    float grad_scale, inverse, step;   /* of the largest gradient; the step of probabilities, 0 for none */
    int32_t managed, bl_managed;       /* update management, update BL management */
    int32_t slots, desired;            /* BL before any management, and at most */
} Update;

/* Lengths and scales of a pair's pulse trains, as rapa_cli/analog/update.py defines them; 0 slots for no pulses. */
static float trains(const Update *t, float largest_x, float largest_d, float *a, float *b) {
    float slots = (float)t->slots;
    *a = *b = t->a;
    if (!t->managed) return slots;
    largest_d *= t->grad_scale;
    if (largest_x <= 0 || largest_d <= 0) return 0;
    const float k = t->rate * largest_x * largest_d / t->granularity, desired = (float)t->desired;
    if (t->bl_managed) {
        slots = ceilf(k);
        slots = slots < 1 ? 1 : slots > desired ? desired : slots;
        *a = *b = sqrtf(t->rate / (t->granularity * slots));
    }
    if (k > desired) largest_d = largest_d * desired / k;
    const float ratio = largest_x / largest_d;
    *a *= sqrtf(ratio), *b *= sqrtf(1 / ratio);
    return slots;
}

INLINE vec magnitude(vec x) { return (vec)((ivec)x & 0x7FFFFFFF); }

/* A probability with the sign of its number. */
INLINE vec probability(const Update *t, vec x) {
    if (t->step > 0) {
        const vec near = x * t->inverse, quotient = near + (x - near * t->step) * t->inverse;
        x = (quotient + ROUNDING - ROUNDING) * t->step;
    }
    const ivec above = magnitude(x) > 1.0f, one = (ivec)((vec){0} + 1.0f) | ((ivec)x & (int32_t)0x80000000);
    return (vec)(((ivec)x & ~above) | (one & above));
}

/* Rows of up to CHUNK pairs, and two matrices of sums, of probabilities and of their squares: each row holds a line's
   sums without signs, then those with signs. */
typedef struct {
    float *x, *p_x, *s_x, *square, *signed_square;   /* one patch; and of its probabilities from `from` to `to` */
    float *e, *d, *sums, *squares;                   /* one gradient; d: four rows of `out` for each pair */
    int64_t from, to, apart, out, count;
    int negative;                                    /* whether an input of the block was, or one of the last block */
    float *memory;
} Sums;

static int sums_new(Sums *s, int64_t lines, int64_t slice, int64_t out) {
    const int64_t row = apart_for(lines) + 16;
    s->apart = apart_for(slice), s->out = out;
    const int64_t panel = CHUNK * s->apart, sums = slice * 2 * out;
    s->memory = malloc(sizeof(float) * (row + 4 * panel + (4 * CHUNK + 1) * filled(out, 16) + 2 * sums + 16));
    if (!s->memory) return 1;
    s->x = (float *)(((uintptr_t)s->memory + 63) / 64 * 64);
    s->p_x = s->x + row, s->s_x = s->p_x + panel, s->square = s->s_x + panel, s->signed_square = s->square + panel;
    s->e = s->signed_square + panel, s->d = s->e + filled(out, 16);
    s->sums = s->d + 4 * CHUNK * out, s->squares = s->sums + sums;
    memset(s->e, 0, sizeof(float) * out);
    s->count = s->negative = 0;
    return 0;
}

static void add_block(Sums *s) {
    const int64_t m = s->to - s->from, out = s->out;
    if (s->negative) {
        add_products(s->p_x, s->apart, m, s->count, s->d, 4 * out, out, s->sums, 2 * out);
        add_products(s->s_x, s->apart, m, s->count, s->d + out, 4 * out, out, s->sums + out, 2 * out);
        add_products(s->square, s->apart, m, s->count, s->d + 2 * out, 4 * out, out, s->squares, 2 * out);
        add_products(s->signed_square, s->apart, m, s->count, s->d + 3 * out, 4 * out, out, s->squares + out, 2 * out);
    } else {
        /* Inputs without signs: each two of the products are one. */
        add_products(s->p_x, s->apart, m, s->count, s->d, 4 * out, 2 * out, s->sums, 2 * out);
        add_products(s->square, s->apart, m, s->count, s->d + 2 * out, 4 * out, 2 * out, s->squares, 2 * out);
    }
    s->count = 0;
}

/* Rows lie in an order that no processor foresees. */
#define AHEAD 6
INLINE void fetch(const Problem *p, const float *x, const float *d, int64_t q, int64_t outputs) {
    const float *row = d + p->order[q] * outputs, *base = x + p->base[q];
    for (int64_t c = 0; c < outputs; c += 16) __builtin_prefetch(row + c);
    for (int64_t line = 0; line < p->lines; line++)
        for (int64_t r = 0; r < p->run; r += 16) __builtin_prefetch(base + p->line_offset[line] + r);
}

static void add_pair(const Problem *p, const Update *t, Sums *s, const float *x, const float *d, int64_t q,
                     int64_t lines, int64_t bias, int64_t outputs) {
    memcpy(s->e, d + p->order[q] * outputs, sizeof(float) * outputs);
    const float largest_d = largest_of(s->e, s->out);
    if (t->managed && largest_d <= 0) return;
    const int64_t row = apart_for(lines);
    gather(p, x, q, s->x, row, bias);
    float a, b;
    const float slots = trains(t, largest_of(s->x, row), largest_d, &a, &b);
    if (slots <= 0) return;
    const int64_t m = s->to - s->from, at = s->count * s->apart, out = s->out;
    const float *from = s->x + s->from;
    const Update own = *t;
    float *p_x = s->p_x + at, *square = s->square + at, *s_x = s->s_x + at, *signed_square = s->signed_square + at;
    if (!s->negative) {
        ivec negative = {0};
        for (int64_t k = 0; k < m; k += WIDTH) {
            const vec v = probability(&own, *(const vec *)(from + k) * b);
            negative |= v < 0.0f;
            *(vec *)(p_x + k) = v, *(vec *)(square + k) = v * v;
        }
        for (int l = 0; l < WIDTH; l++) s->negative |= negative[l];
        if (s->negative) {
            /* The first patch of the block with signs: those before it have none. */
            memcpy(s->s_x, s->p_x, sizeof(float) * at), memcpy(s->signed_square, s->square, sizeof(float) * at);
        }
    }
    if (s->negative)
        for (int64_t k = 0; k < m; k += WIDTH) {
            const vec v = probability(&own, *(const vec *)(from + k) * b), p = magnitude(v);
            *(vec *)(p_x + k) = p, *(vec *)(s_x + k) = v;
            *(vec *)(square + k) = v * v, *(vec *)(signed_square + k) = v * p;
        }
    float *to = s->d + s->count * 4 * out;
    for (int64_t c = 0; c < out; c += WIDTH) {
        const vec v = probability(&own, *(const vec *)(s->e + c) * a), p_d = magnitude(v);
        *(vec *)(to + c) = slots * p_d, *(vec *)(to + out + c) = slots * v;
        *(vec *)(to + 2 * out + c) = slots * p_d * p_d, *(vec *)(to + 3 * out + c) = slots * v * p_d;
    }
    if (++s->count == CHUNK) add_block(s);
}

/* The four moments of a slice of lines, each result (tiles, outputs, lines). */
static void finish(const Sums *s, int64_t tile, int64_t lines, int64_t outputs, float *const *moments) {
    const int64_t out = s->out;
    for (int64_t first = s->from; first < s->to; first += 16) {
        const int64_t last = first + 16 < s->to ? first + 16 : s->to;
        for (int64_t c = 0; c < outputs; c++)
            for (int64_t k = first; k < last; k++) {
                const int64_t at = (k - s->from) * 2 * out + c, to = (tile * outputs + c) * lines + k;
                const float total = s->sums[at], net = s->sums[at + out];
                const float squares = s->squares[at], net_squares = s->squares[at + out];
                const float up = (total - net) / 2, down = (total + net) / 2;
                const float of_up = up - (squares - net_squares) / 2, of_down = down - (squares + net_squares) / 2;
                moments[0][to] = up < 0 ? 0 : up, moments[1][to] = down < 0 ? 0 : down;
                moments[2][to] = of_up < 0 ? 0 : of_up, moments[3][to] = of_down < 0 ? 0 : of_down;
            }
    }
}

/* Means and variances of the pulses up and down from the patches number `first` to `last` of the batch, as
   rapa_cli/analog/merged.py defines them: up, down, and their variances, each (tiles, outputs, lines). Each sum runs in
   the order of its tile's patches. Returns 0, or -1 where there is no memory. */
int rapa_analog_moments(const Problem *p, const Update *t, const float *x, const float *d, int64_t first, int64_t last,
                        int64_t lines, int64_t bias, int64_t outputs, float *up, float *down, float *up_variance,
                        float *down_variance, int threads) {
    float *const results[4] = {up, down, up_variance, down_variance};
    /* Where tiles do not go round, threads share the lines of each; gathering a patch twice costs less than adding. */
    int64_t cuts = p->tiles >= 4 * threads || p->tiles % threads == 0 ? 1 : threads;
    if (cuts > (lines + CHUNK - 1) / CHUNK) cuts = (lines + CHUNK - 1) / CHUNK;
    const int64_t slice = (lines + cuts - 1) / cuts;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        Sums s;
        const int ready = !sums_new(&s, lines, slice, p->out);
        failed |= !ready;
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < p->tiles * cuts; unit++) {
            if (!ready) continue;
            const int64_t tile = unit / cuts;
            s.from = lines * (unit % cuts) / cuts, s.to = lines * (unit % cuts + 1) / cuts;
            memset(s.sums, 0, sizeof(float) * (s.to - s.from) * 2 * p->out);
            memset(s.squares, 0, sizeof(float) * (s.to - s.from) * 2 * p->out);
            const int64_t of_part = p->part_images * p->patches;
            for (int64_t part = first / of_part; part * of_part < last; part++) {
                const int64_t *start = p->start + part * p->tiles + tile;
                const int64_t from = place_of(p, start[0], start[1], first), to = place_of(p, from, start[1], last);
                for (int64_t q = from; q < to; q++) {
                    if (q + AHEAD < to) fetch(p, x, d, q + AHEAD, outputs);
                    add_pair(p, t, &s, x, d, q, lines, bias, outputs);
                }
            }
            add_block(&s);
            finish(&s, tile, lines, outputs, results);
        }
        if (ready) free(s.memory);
    }
    return -failed;
}
