/* The tiled convolution on a CPU: the indirect convolution algorithm (Dukhan 2019) with patches sorted by tile.

   No patch is ever copied. Images lie channels last, with their padding; a patch is `lines` runs of `run` numbers at
   fixed distances from its base. A block of up to 12 patches of one tile goes through that tile's kernel matrix with
   its sums in registers.

   Patches are sorted by part (a few images), tile, image and number, so that a part's images and gradients stay in the
   cache while its tiles take turns. Every sum is made in an order that depends on the sizes and the number of threads
   only, not on which thread comes first. */

#include "common.h"

/* Numbers in a vector: output channels come in multiples of it, and images lie that far apart at least. */
int64_t rapa_vector_width(void) { return WIDTH; }

/* ---------------------------------------------------------------- assignments */

/* Philox4x32-10 (Salmon et al. 2011) for blocks from `first` on, the same words as rapa_cli/philox.py: word i of block b
   is words[4 b + i]. */
static void philox(uint32_t *words, int64_t blocks, uint32_t first, uint32_t layer, uint32_t image, uint32_t draw,
                   uint32_t key0, uint32_t key1) {
    for (int64_t b = 0; b < blocks; b++) {
        uint32_t c0 = first + (uint32_t)b, c1 = layer, c2 = image, c3 = draw, k0 = key0, k1 = key1;
        UNROLL for (int round = 0; round < 10; round++) {
            const uint64_t p0 = (uint64_t)c0 * PHILOX_0, p1 = (uint64_t)c2 * PHILOX_1;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, c1 = (uint32_t)p1;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1, c3 = (uint32_t)p0;
            k0 += WEYL_0, k1 += WEYL_1;
        }
        words[4 * b] = c0, words[4 * b + 1] = c1, words[4 * b + 2] = c2, words[4 * b + 3] = c3;
    }
}

/* A balanced partition of each image's patches, as rapa_cli/tiling/schemes.py defines it: the tile of a patch is
   floor(rank tiles / patches), turned by the offset; ranks are those of the hashes, ties by patch. Returns 0, or 1 where
   there is no memory. */
int rapa_partition(uint32_t k0, uint32_t k1, uint32_t layer, const int64_t *images, const int64_t *draws, int64_t batch,
                   int64_t patches, int64_t tiles, uint32_t offset_block, int64_t *assignment, int threads) {
    int bits = 0, failed = 0;
    while (((int64_t)1 << bits) < patches) bits++;
    const int64_t buckets = (int64_t)1 << bits, words = (patches + 3) / 4 * 4;
#pragma omp parallel num_threads(threads)
    {
        uint32_t *hash = malloc(sizeof(uint32_t) * words);
        uint64_t *sorted = malloc(sizeof(uint64_t) * patches);
        uint32_t *next = malloc(sizeof(uint32_t) * (buckets + 1));
        if (!hash || !sorted || !next) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t b = 0; b < batch; b++) {
            if (failed) continue;
            const uint32_t image = (uint32_t)images[b], draw = (uint32_t)draws[b];
            uint32_t last[4];
            philox(hash, words / 4, 0, layer, image, draw, k0, k1);
            philox(last, 1, offset_block, layer, image, draw, k0, k1);
            const int64_t offset = (int64_t)((uint64_t)last[0] * (uint64_t)tiles >> 32);
            /* By the leading bits, one hash to a bucket on average; then what is left to exchange. */
            memset(next, 0, sizeof(uint32_t) * (buckets + 1));
            for (int64_t i = 0; i < patches; i++) next[((uint64_t)hash[i] << bits >> 32) + 1]++;
            for (int64_t i = 0; i < buckets; i++) next[i + 1] += next[i];
            for (int64_t i = 0; i < patches; i++)
                sorted[next[(uint64_t)hash[i] << bits >> 32]++] = (uint64_t)hash[i] << 32 | (uint64_t)i;
            for (int64_t i = 1; i < patches; i++) {
                const uint64_t key = sorted[i];
                int64_t j = i;
                for (; j && sorted[j - 1] > key; j--) sorted[j] = sorted[j - 1];
                sorted[j] = key;
            }
            int64_t *target = assignment + b * patches;
            for (int64_t rank = 0; rank < patches; rank++) {
                const int64_t tile = rank * tiles / patches + offset;
                target[sorted[rank] & 0xFFFFFFFFu] = tile < tiles ? tile : tile - tiles;
            }
        }
        free(hash), free(sorted), free(next);
    }
    return failed;
}

/* Sorts patches by part, tile, image and number; start gets parts tiles + 1 places in `order`. A patch of tile -1 is left
   out. `base` gets each patch's base, from patch_offset (patches), the bases in an image, and `image`, the distance of
   images. Returns how many patches are not left out. */
int64_t rapa_sort(const int64_t *assignment, int64_t batch, int64_t patches, int64_t tiles, int64_t part_images,
                  const int32_t *patch_offset, int64_t image, int32_t *order, int32_t *base, int64_t *start,
                  int threads) {
    const int64_t parts = (batch + part_images - 1) / part_images;
    memset(start, 0, sizeof(int64_t) * (parts * tiles + 1));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < parts; part++) {
        const int64_t from = part * part_images * patches;
        const int64_t to = (part + 1 < parts ? (part + 1) * part_images : batch) * patches;
        int64_t *count = start + part * tiles + 1;
        for (int64_t i = from; i < to; i++)
            if (assignment[i] >= 0) count[assignment[i]]++;
    }
    for (int64_t i = 0; i < parts * tiles; i++) start[i + 1] += start[i];
    const int64_t total = start[parts * tiles];
    /* Each place is moved on while it is filled, to where the next tile begins; then all are moved back by one. */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < parts; part++) {
        const int64_t to = part + 1 < parts ? (part + 1) * part_images : batch;
        int64_t *next = start + part * tiles;
        for (int64_t b = part * part_images; b < to; b++)
            for (int64_t i = 0; i < patches; i++) {
                const int64_t tile = assignment[b * patches + i];
                if (tile < 0) continue;
                const int64_t place = next[tile]++;
                order[place] = (int32_t)(b * patches + i);
                base[place] = (int32_t)(b * image) + patch_offset[i];
            }
    }
    memmove(start + 1, start, sizeof(int64_t) * parts * tiles);
    start[0] = 0;
    return total;
}

/* ---------------------------------------------------------------- padding */

/* Copies images (batch, height, width channels) into padded ones, `image` numbers apart, zeros around; or, `back`, the
   other way without the padding. */
void rapa_pad(float *plain, float *padded, int64_t batch, int64_t height, int64_t row, int64_t padded_row, int64_t top,
              int64_t left, int64_t image, int back, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++) {
        float *from = plain + b * height * row, *to = padded + b * image;
        if (!back) memset(to, 0, sizeof(float) * image);
        for (int64_t y = 0; y < height; y++) {
            float *a = from + y * row, *c = to + (top + y) * padded_row + left;
            memcpy(back ? a : c, back ? c : a, sizeof(float) * row);
        }
    }
}

/* ---------------------------------------------------------------- forward */

INLINE void forward_block(const Problem *p, const float *const *base, const float *w, const float *bias, float **y,
                          const int m, const int n) {
    vec sum[MOST][2];
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++)
            sum[i][j] = bias ? *(const vec *)(bias + j * WIDTH) : (vec){0};
    for (int64_t line = 0; line < p->lines; line++) {
        const float *x[MOST];
        UNROLL for (int i = 0; i < m; i++) x[i] = base[i] + p->line_offset[line];
        for (int64_t r = 0; r < p->run; r++, w += p->out) {
            vec k[2];
            UNROLL for (int j = 0; j < n; j++) k[j] = *(const vec *)(w + j * WIDTH);
            UNROLL for (int i = 0; i < m; i++) {
                const float s = x[i][r];
                UNROLL for (int j = 0; j < n; j++) sum[i][j] += s * k[j];
            }
        }
    }
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) *(vec *)(y[i] + j * WIDTH) = sum[i][j];
}

static void forward_1(const Problem *p, const float *const *base, const float *w, const float *bias, float **y, int m) {
#define CALL(M) forward_block(p, base, w, bias, y, M, 1)
    CASES(CALL)
#undef CALL
}

static void forward_2(const Problem *p, const float *const *base, const float *w, const float *bias, float **y, int m) {
#define CALL(M) forward_block(p, base, w, bias, y, M, 2)
    CASES(CALL)
#undef CALL
}

/* y[patch] = bias[tile] + kernel[tile]^T patch; kernel (tiles, lines run, out), bias (tiles, out) or NULL, y (.., out). */
void rapa_forward(const Problem *p, const float *x, const float *kernel, const float *bias, float *y, int threads) {
    const int64_t k = p->lines * p->run;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t group = 0; group < p->parts * p->tiles; group++) {
        const int64_t tile = group % p->tiles, first = p->start[group], count = p->start[group + 1] - first;
        const int64_t blocks = (count + MOST - 1) / MOST;
        for (int64_t b = 0, from = 0; b < blocks; b++) {
            const int64_t to = count * (b + 1) / blocks;
            const int m = (int)(to - from);
            const float *base[MOST];
            float *rows[MOST];
            for (int i = 0; i < m; i++) {
                base[i] = x + p->base[first + from + i];
                rows[i] = y + p->order[first + from + i] * p->out;
            }
            for (int64_t c = 0; c < p->out;) {
                const float *w = kernel + tile * k * p->out + c, *v = bias ? bias + tile * p->out + c : NULL;
                const int two = p->out - c >= 2 * WIDTH;
                (two ? forward_2 : forward_1)(p, base, w, v, rows, m);
                for (int i = 0; i < m; i++) rows[i] += two ? 2 * WIDTH : WIDTH;
                c += two ? 2 * WIDTH : WIDTH;
            }
            from = to;
        }
    }
}

/* ---------------------------------------------------------------- gradient of the kernels */

INLINE void kernel_block(const Problem *p, const float *x, const float *g, int64_t first, int64_t last, int64_t offset,
                         float *grad, const int fresh, const int m, const int n) {
    vec sum[MOST][2];
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++)
            sum[i][j] = fresh ? (vec){0} : *(const vec *)(grad + i * p->out + j * WIDTH);
    x += offset;
    for (int64_t q = first; q < last; q++) {
        const float *s = x + p->base[q], *e = g + p->order[q] * p->out;
        vec v[2];
        UNROLL for (int j = 0; j < n; j++) v[j] = *(const vec *)(e + j * WIDTH);
        UNROLL for (int i = 0; i < m; i++)
            UNROLL for (int j = 0; j < n; j++) sum[i][j] += s[i] * v[j];
    }
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) *(vec *)(grad + i * p->out + j * WIDTH) = sum[i][j];
}

static void kernel_1(const Problem *p, const float *x, const float *g, int64_t first, int64_t last, int64_t offset,
                     float *grad, int fresh, int m) {
#define CALL(M) kernel_block(p, x, g, first, last, offset, grad, fresh, M, 1)
    CASES(CALL)
#undef CALL
}

static void kernel_2(const Problem *p, const float *x, const float *g, int64_t first, int64_t last, int64_t offset,
                     float *grad, int fresh, int m) {
#define CALL(M) kernel_block(p, x, g, first, last, offset, grad, fresh, M, 2)
    CASES(CALL)
#undef CALL
}

/* sum += rows of g. */
static void add_rows(const Problem *p, const float *g, int64_t first, int64_t last, float *sum) {
    for (int64_t c = 0; c < p->out; c += WIDTH) {
        vec total = *(const vec *)(sum + c);
        for (int64_t q = first; q < last; q++) total += *(const vec *)(g + p->order[q] * p->out + c);
        *(vec *)(sum + c) = total;
    }
}

/* Rows lie in an order that no processor foresees: asks for the next ones while the present ones are worked on. */
INLINE void fetch(const Problem *p, const float *g, int64_t first, int64_t last) {
    for (int64_t q = first; q < last; q++)
        for (int64_t c = 0; c < p->out; c += 16) __builtin_prefetch(g + p->order[q] * p->out + c);
}

/* grad[tile] = sum over its patches of patch g^T, bias_grad[tile] = sum of g (or NULL); g (.., out). Returns 0, or 1 where
   there is no memory. */
int rapa_kernel_gradient(const Problem *p, const float *x, const float *g, float *grad, float *bias_grad, int threads) {
    const int64_t k = p->lines * p->run, per_line = (p->run + MOST - 1) / MOST;
    const int64_t per_tile = p->lines * per_line, units = p->tiles * per_tile;
    /* The first part in which each tile has a patch: it begins the tile's sums, so that no zeros are written before. */
    int64_t *begins = malloc(sizeof(int64_t) * p->tiles);
    if (!begins) return 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < p->tiles; tile++) {
            int64_t part = 0;
            while (part < p->parts && p->start[part * p->tiles + tile] == p->start[part * p->tiles + tile + 1]) part++;
            begins[tile] = part;
            if (part == p->parts) memset(grad + tile * k * p->out, 0, sizeof(float) * k * p->out);
            if (bias_grad) memset(bias_grad + tile * p->out, 0, sizeof(float) * p->out);
        }
        /* Each thread keeps the same units of a kernel matrix in every part, so that none waits for another. */
#pragma omp for schedule(static)
        for (int t = 0; t < threads; t++) {
            const int64_t first_unit = units * t / threads, last_unit = units * (t + 1) / threads;
            for (int64_t part = 0; part < p->parts; part++)
                for (int64_t tile = first_unit / per_tile; tile * per_tile < last_unit; tile++) {
                    const int64_t begin = p->start[part * p->tiles + tile], end = p->start[part * p->tiles + tile + 1];
                    const int64_t low = tile * per_tile > first_unit ? tile * per_tile : first_unit;
                    const int64_t high = (tile + 1) * per_tile < last_unit ? (tile + 1) * per_tile : last_unit;
                    for (int64_t q = begin; q < end; q += CHUNK) {
                        fetch(p, g, q + CHUNK, q + 2 * CHUNK < end ? q + 2 * CHUNK : end);
                        if (bias_grad && low == tile * per_tile)
                            add_rows(p, g, q, q + CHUNK < end ? q + CHUNK : end, bias_grad + tile * p->out);
                        for (int64_t unit = low; unit < high; unit++) {
                            const int64_t line = unit % per_tile / per_line, piece = unit % per_line;
                            const int64_t from = p->run * piece / per_line, to = p->run * (piece + 1) / per_line;
                            const int64_t stop = q + CHUNK < end ? q + CHUNK : end;
                            const int fresh = part == begins[tile] && q == begin;
                            float *target = grad + (tile * k + line * p->run + from) * p->out;
                            for (int64_t c = 0; c < p->out;) {
                                const int two = p->out - c >= 2 * WIDTH;
                                (two ? kernel_2 : kernel_1)(p, x, g + c, q, stop, p->line_offset[line] + from,
                                                            target + c, fresh, (int)(to - from));
                                c += two ? 2 * WIDTH : WIDTH;
                            }
                        }
                    }
                }
        }
    }
    free(begins);
    return 0;
}

/* ---------------------------------------------------------------- gradient of the images */

/* A run of up to MOST patches: target += w^T g, w (out, padded). */
INLINE void image_block(float *const *target, const float *const *g, const float *w, int64_t out, int64_t padded,
                        const int m, const int n) {
    vec sum[MOST][2];
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) sum[i][j] = (vec){0};
    for (int64_t c = 0; c < out; c++, w += padded) {
        vec k[2];
        UNROLL for (int j = 0; j < n; j++) k[j] = *(const vec *)(w + j * WIDTH);
        UNROLL for (int i = 0; i < m; i++) {
            const float s = g[i][c];
            UNROLL for (int j = 0; j < n; j++) sum[i][j] += s * k[j];
        }
    }
    /* One patch after the other: patches of a block may overlap. */
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) *(vec *)(target[i] + j * WIDTH) += sum[i][j];
}

INLINE void image_run(float **target, const float *const *g, const float *w, int64_t out, int64_t padded, const int m) {
    int64_t r = 0;
    for (; r + 2 * WIDTH <= padded; r += 2 * WIDTH) {
        image_block(target, g, w + r, out, padded, m, 2);
        UNROLL for (int i = 0; i < m; i++) target[i] += 2 * WIDTH;
    }
    if (r < padded) image_block(target, g, w + r, out, padded, m, 1);
}

static void image_runs(float **target, const float *const *g, const float *w, int64_t out, int64_t padded, int m) {
#define CALL(M) image_run(target, g, w, out, padded, M)
    CASES(CALL)
#undef CALL
}

/* Kernel matrices transposed: each of `rows` lines (run, out) becomes (out, padded), filled with zeros. */
static void transpose(const float *kernel, float *to, int64_t rows, int64_t run, int64_t padded, int64_t out) {
    for (int64_t row = 0; row < rows; row++, kernel += run * out, to += padded * out)
        for (int64_t c = 0; c < out; c++) {
            for (int64_t r = 0; r < run; r++) to[c * padded + r] = kernel[r * out + c];
            for (int64_t r = run; r < padded; r++) to[c * padded + r] = 0;
        }
}

/* grad += kernel^T g for the patches of one tile in one part; `turned` is the tile's kernel matrix transposed. */
static void image_group(const Problem *p, int64_t group, const float *turned, const float *g, float *grad,
                        int64_t padded) {
    const int64_t first = p->start[group], count = p->start[group + 1] - first;
    for (int64_t q = first; q < first + count; q += CHUNK) {
        const int64_t size = first + count - q < CHUNK ? first + count - q : CHUNK, blocks = (size + MOST - 1) / MOST;
        for (int64_t line = 0; line < p->lines; line++)
            for (int64_t b = 0; b < blocks; b++) {
                const int64_t from = size * b / blocks, to = size * (b + 1) / blocks;
                float *target[MOST];
                const float *e[MOST];
                for (int64_t i = from; i < to; i++) {
                    target[i - from] = grad + p->base[q + i] + p->line_offset[line];
                    e[i - from] = g + p->order[q + i] * p->out;
                }
                image_runs(target, e, turned + line * padded * p->out, p->out, padded, (int)(to - from));
            }
    }
}

/* All kernel matrices transposed once, then part by part: images belong to one thread, so that no two add to a number. */
static int image_by_part(const Problem *p, const float *kernel, const float *g, float *grad, int threads) {
    const int64_t padded = (p->run + WIDTH - 1) / WIDTH * WIDTH, matrix = p->lines * padded * p->out;
    float *turned = malloc(sizeof(float) * p->tiles * matrix);
    if (!turned) return 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < p->tiles; tile++)
            transpose(kernel + tile * p->lines * p->run * p->out, turned + tile * matrix, p->lines, p->run, padded,
                      p->out);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < p->parts; part++)
            for (int64_t tile = 0; tile < p->tiles; tile++)
                image_group(p, part * p->tiles + tile, turned + tile * matrix, g, grad, padded);
    }
    free(turned);
    return 0;
}

/* Tile by tile, each kernel matrix transposed just before it is used: threads share the tiles, each adds to images of its
   own, and these are added up in the end. */
static int image_by_tile(const Problem *p, const float *kernel, const float *g, float *grad, int threads) {
    const int64_t padded = (p->run + WIDTH - 1) / WIDTH * WIDTH, matrix = p->lines * padded * p->out;
    const int64_t numbers = p->batch * p->image;
    float *turned = malloc(sizeof(float) * threads * matrix), *others = NULL;
    if (threads > 1) others = malloc(sizeof(float) * (threads - 1) * numbers);
    if (!turned || (threads > 1 && !others)) {
        free(turned), free(others);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int t = 0; t < threads; t++) {
            float *own = t ? others + (t - 1) * numbers : grad, *mine = turned + t * matrix;
            if (t) memset(own, 0, sizeof(float) * numbers);
            for (int64_t tile = p->tiles * t / threads; tile < p->tiles * (t + 1) / threads; tile++) {
                transpose(kernel + tile * p->lines * p->run * p->out, mine, p->lines, p->run, padded, p->out);
                for (int64_t part = 0; part < p->parts; part++)
                    image_group(p, part * p->tiles + tile, mine, g, own, padded);
            }
        }
        if (threads > 1) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < numbers; i++)
                for (int t = 1; t < threads; t++) grad[i] += others[(t - 1) * numbers + i];
        }
    }
    free(turned), free(others);
    return 0;
}

/* grad += kernel[tile] g for every patch, grad (batch, image), zeros before. The zeros that fill up a line are added to
   numbers up to WIDTH behind a run, so that images must be that far apart. `by_tile` where the kernel matrices are more
   than a cache holds and the images are not. Returns 0, or 1 where there is no memory. */
int rapa_image_gradient(const Problem *p, const float *kernel, const float *g, float *grad, int by_tile, int threads) {
    return (by_tile ? image_by_tile : image_by_part)(p, kernel, g, grad, threads);
}
