// y = sum of terms: scale * x W^T or scale * x W, plus a bias; fp32 sums on every level.
// Terms of bf16 are multiplied in pairs, or by tiles, where there are instructions for it: see pairs.h and tiles.h.
//
// x is packed once, MR rows interleaved. A task is a strip of columns of y, or some of its rows: the weights
// are decoded, INNER of the inner dimension at a time, into panels of NR columns that stay in the caches, and
// every tile of MR x NR runs through them. A low-rank update is one more term, so it costs no second pass over y.
// After Goto and van de Geijn 2008, Anatomy of high-performance matrix multiplication.

#define NV 2                    // vectors of a tile's row
#define NR (NV * VW)
#define COLUMNS 64              // a multiple of NR, and the usual block of a packed weight
#if defined(__AMX_BF16__)
#define TILES                   // see tiles.h
#define MR 32
#define IN_REGISTERS 8          // rows of a tile of y that are summed at one time, where it is not made of AMX's tiles
#define INNER 192               // a panel stays in the first cache beside the rows that stream through it
#define WIDEST 256              // columns of a strip: for fewer, rows of x would not come in time
#else
#if VW == 16
#define MR 12
#elif VW == 8
#define MR 6
#else
#define MR 4
#endif
#define IN_REGISTERS MR
#define INNER 256
#define WIDEST COLUMNS
#endif
#define BAND (1 << 22)          // numbers of x that are packed at one time: 16 MiB
#define TASK_TILES (768 / MR)   // of a task
#define SHARES 4                // tasks of a thread, or more
#define CACHED_TILES (192 / MR) // tiles whose rows of x stay in the second-level cache beside a strip's panels

static _Thread_local arena packed_x, own_panels, own_sums;

// Pack rows [first, first + count) of scale * x: for each k, MR rows side by side; rows that are missing are 0.
static void pack_rows(const graft_term *t, int64_t inner, int64_t first, int64_t count, float *out) {
  if (t->step != 1) {  // x is transposed
    for (int64_t k = 0; k < inner; k++)
      for (int64_t r = 0; r < MR; r++)
        out[k * MR + r] =
            r < count ? t->scale * number_as(t->x, (first + r) * t->stride + k * t->step, t->dtype) : 0;
    return;
  }
  float rows[MR][INNER];
  for (int64_t from = 0; from < inner; from += INNER) {
    int64_t n = least(INNER, inner - from);
    for (int64_t r = 0; r < MR; r++) {
      if (r >= count) { memset(rows[r], 0, sizeof rows[r]); continue; }
      int64_t at = (first + r) * t->stride + from, i = 0;
      vf scale = vf_set(t->scale);
      for (; i + VW <= n; i += VW) vf_store(rows[r] + i, load_as(t->x, at + i, t->dtype) * scale);
      if (i < n) vf_store_n(rows[r] + i, load_n_as(t->x, at + i, n - i, t->dtype) * scale, n - i);
    }
    for (int64_t k = 0; k < n; k++)
      for (int r = 0; r < MR; r++) out[(from + k) * MR + r] = rows[r][k];
  }
}

// W^T: inner [from, to) of rows [first, first + count) of W, as panels of NR columns.
static void panels_of_rows(const graft_weight *w, int64_t first, int64_t count, int64_t from, int64_t to,
                           float *out) {
  float rows[VW][INNER];
  int64_t n = to - from;
  for (int64_t c = 0; c < (count + NR - 1) / NR * NR; c += VW) {
    for (int r = 0; r < VW; r++) {
      if (c + r < count) decode_row(w, first + c + r, from, to, rows[r]);
      else memset(rows[r], 0, sizeof rows[r]);
    }
    float *panel = out + c / NR * NR * INNER + c % NR;
    int64_t k = 0;
    for (; k + VW <= n; k += VW) {
      vf tile[VW];
      for (int r = 0; r < VW; r++) tile[r] = vf_load(rows[r] + k);
      vf_transpose(tile);
      for (int r = 0; r < VW; r++) vf_store(panel + (k + r) * NR, tile[r]);
    }
    for (; k < n; k++)
      for (int r = 0; r < VW; r++) panel[k * NR + r] = rows[r][k];
  }
}

// W: rows [from, to) of W are the inner dimension, columns [first, first + count) become panels.
static void panels_of_columns(const graft_weight *w, int64_t first, int64_t count, int64_t from, int64_t to,
                              float *out) {
  float row[WIDEST] = {0};
  for (int64_t k = from; k < to; k++) {
    decode_row(w, k, first, first + count, row);
    for (int64_t c = 0; c < count; c += NR)
      memcpy(out + c / NR * NR * INNER + (k - from) * NR, row + c, sizeof(float) * NR);
  }
}

#include "tiles.h"
#include "pairs.h"

// Some rows of a tile (MR, NR) of y = or += packed rows times a panel.  inner: floats, or pairs of bf16.
INLINE void tile_product(const float *x, const float *panel, int64_t inner, int pairs, float *y, int64_t stride,
                         int add) {
  vf sum[IN_REGISTERS][NV];
#pragma GCC unroll 12
  for (int i = 0; i < IN_REGISTERS; i++)
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) sum[i][j] = vf_zero();
  for (int64_t k = 0; k < inner; k++) {
    vf w[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) w[j] = vf_load(panel + k * NR + j * VW);
#pragma GCC unroll 12
    for (int i = 0; i < IN_REGISTERS; i++) {
      vf a = vf_set(x[k * MR + i]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) sum[i][j] = pairs ? vf_dot(a, w[j], sum[i][j]) : vf_fma(a, w[j], sum[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < IN_REGISTERS; i++)
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) {
      float *at = y + i * stride + j * VW;
      vf_store(at, add ? vf_load(at) + sum[i][j] : sum[i][j]);
    }
}

// sums (tiles * MR, side) = or += packed rows, whose tiles are `apart` numbers apart, times the panels of a strip.
static void strip_product(const float *x, int64_t apart, int64_t tiles, const float *panels, int64_t width,
                          int64_t inner, int pairs, float *sums, int64_t side, int add) {
  for (int64_t top = 0; top < tiles; top += CACHED_TILES)
    for (int64_t c = 0; c < width; c += NR)
      for (int64_t i = top; i < least(tiles, top + CACHED_TILES); i++) {
        const float *rows = x + i * apart, *panel = panels + c * INNER;
        float *tile = sums + i * MR * side + c;
#if defined(TILES)
        if (pairs) {
          panel_by_tiles(rows, panel, inner, width - c > VW, tile, side, add);
          continue;
        }
#endif
        for (int64_t r = 0; r < MR; r += IN_REGISTERS) {
          if (pairs) tile_product(rows + r, panel, inner, 1, tile + r * side, side, add);
          else tile_product(rows + r, panel, inner, 0, tile + r * side, side, add);
        }
      }
}

// Write sums (count, side) as rows of y, in its dtype, with the bias; or add them to what is there.
INLINE void finish_as(const float *sums, int64_t side, int64_t count, int64_t columns, const float *bias, int add,
                      void *y, int dtype, int64_t at, int64_t stride) {
  for (int64_t r = 0; r < count; r++, at += stride)
    for (int64_t c = 0; c < columns; c += VW) {
      int64_t n = least(VW, columns - c);
      vf v = vf_load(sums + r * side + c);
      if (bias) v += vf_load_n(bias + c, n);
      if (add) v += load_n_as(y, at + c, n, dtype);
#if defined(PAIRS)
      if (dtype == BF16 && n == VW) {  // in one instruction, which takes numbers below the normal ones for 0
        _mm256_storeu_si256((__m256i *)((uint16_t *)y + at + c), (__m256i)_mm512_cvtneps_pbh((__m512)v));
        continue;
      }
#endif
      if (n == VW) store_as(y, at + c, v, dtype);
      else store_n_as(y, at + c, v, n, dtype);
    }
}

static void finish(const float *sums, int64_t side, int64_t count, int64_t columns, const float *bias, int add,
                   void *y, int dtype, int64_t at, int64_t stride) {
  if (dtype == FP32) finish_as(sums, side, count, columns, bias, add, y, FP32, at, stride);
  else if (dtype == BF16) finish_as(sums, side, count, columns, bias, add, y, BF16, at, stride);
  else finish_as(sums, side, count, columns, bias, add, y, FP16, at, stride);
}

#include "few.h"

// How many rows of x are packed at one time, if a row has so many words.
static int64_t band_of(int64_t m, int64_t words) {
  return least((m + MR - 1) / MR, BAND / (MR * (words + 1)) + 1) * MR;
}

// Words of a term's inner dimension: floats, or pairs of bf16 in whole steps.
static int64_t words_of(const graft_term *t) {
  int64_t inner = t->across ? t->weight->rows : t->weight->columns;
  return paired(t) ? (inner + 2 * STEP - 1) / (2 * STEP) * STEP : inner;
}

// Pack tile i of rows [first, first + rows) of a term's x.
static void pack_tile(const graft_term *t, int64_t first, int64_t rows, int64_t i, float *out) {
  int64_t inner = t->across ? t->weight->rows : t->weight->columns, count = least(MR, rows - i * MR);
  out += i * words_of(t) * MR;
  if (paired(t)) pack_pairs(t, inner, first + i * MR, count, out);
  else pack_rows(t, inner, first + i * MR, count, out);
}

// Decode words [from, to) of the inner dimension of a term's weight into panels, for columns of y.
static void decode_panels(const graft_term *t, int64_t first, int64_t count, int64_t from, int64_t to, float *out) {
  const graft_weight *w = t->weight;
  if (paired(t) && t->across) pairs_of_columns(w, first, count, from, to, out);
  else if (paired(t)) pairs_of_rows(w, first, count, from, to, out);
  else if (t->across) panels_of_columns(w, first, count, from, to, out);
  else panels_of_rows(w, first, count, from, to, out);
}

// Columns of a strip, as many as leave every thread some strips of n.
static int64_t side_of(int64_t n, int threads) {
  int64_t side = WIDEST;
  while (side > COLUMNS && n < SHARES * threads * side) side /= 2;
  return side;
}

// Write y (m, n) in `dtype`, its rows `stride` numbers apart, or add to it. bias: (n,) or NULL.
// ready: for each term its rows of x, packed, or NULL; no more of them than a band. Returns 0, or -1 without memory.
static int multiply_packed(const graft_term *terms, float *const *ready, int count, int64_t m, int64_t n,
                           const float *bias, int onto, void *y, int dtype, int64_t stride, int threads) {
  int64_t depth[8], before[8], whole = 0;
  if (count > 8) return -1;
  for (int t = 0; t < count; t++) {
    depth[t] = words_of(&terms[t]);
    before[t] = whole;
    whole += ready[t] ? 0 : depth[t];
  }
  int64_t band = band_of(m, whole), side = side_of(n, threads);
  float *x = scratch_of(&packed_x, sizeof(float) * (size_t)(band * whole + 1));
  if (!x) return -1;
  int failed = 0;
  for (int64_t top = 0; top < m; top += band) {
    int64_t rows = least(band, m - top), tiles = (rows + MR - 1) / MR;
    int64_t strips = (n + side - 1) / side, parts = (tiles + TASK_TILES - 1) / TASK_TILES;
    while (parts < tiles && strips * parts < SHARES * threads) parts++;  // few columns: threads share the rows
    int64_t share = (tiles + parts - 1) / parts;
#pragma omp parallel num_threads(threads)
    {
      if (whole) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; i++)
          for (int t = 0; t < count; t++)  // packed as (term, tile, word, MR)
            if (!ready[t]) pack_tile(&terms[t], top, rows, i, x + before[t] * tiles * MR);
      }
      float *panels = scratch_of(&own_panels, sizeof(float) * (size_t)(INNER * side));
      float *sums = scratch_of(&own_sums, sizeof(float) * (size_t)(share * MR * side));
      if (!panels || !sums) failed = 1;
      tiles_begin();
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < strips * parts; task++) {
        int64_t begin = task / strips * share, end = least(begin + share, tiles);
        if (failed || begin >= end) continue;
        int64_t first = task % strips * side, width = least(side, n - first);
        int add = 0;
        for (int t = 0; t < count; t++) {
          const float *packed = (ready[t] ? ready[t] : x + before[t] * tiles * MR) + begin * depth[t] * MR;
          for (int64_t from = 0; from < depth[t]; from += INNER, add = 1) {
            int64_t to = least(from + INNER, depth[t]);
            decode_panels(&terms[t], first, width, from, to, panels);
            strip_product(packed + from * MR, depth[t] * MR, end - begin, panels, width, to - from,
                          paired(&terms[t]), sums, side, add);
          }
        }
        if (!add) memset(sums, 0, sizeof(float) * (size_t)(share * MR * side));  // a sum of nothing
        int64_t row = begin * MR;
        finish(sums, side, least(end * MR, rows) - row, width, bias ? bias + first : 0, onto, y, dtype,
               (top + row) * stride + first, stride);
      }
      tiles_end();
    }
  }
  return failed ? -1 : 0;
}

// The same of rows that are not packed yet.
static int multiply(const graft_term *terms, int count, int64_t m, int64_t n, const float *bias, int onto, void *y,
                    int dtype, int64_t stride, int threads) {
  float *const ready[8] = {0};
  if (m == 0 || n == 0) return 0;
  int few = m <= FEW_MOST;
  for (int t = 0; t < count; t++) few &= !terms[t].across;
  if (few) return few_product(terms, count, m, n, bias, onto, y, dtype, stride, threads);
  return multiply_packed(terms, ready, count, m, n, bias, onto, y, dtype, stride, threads);
}

int KERNEL(product)(const graft_term *terms, int count, int64_t m, int64_t n, const float *bias, void *y, int dtype,
                    int64_t stride, int threads) {
  return multiply(terms, count, m, n, bias, 0, y, dtype, stride, threads);
}
