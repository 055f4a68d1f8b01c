// A frozen linear layer with a trained low-rank update, in one pass over y and one over dx:
//
//   u = x A^T          y = x W^T + s u B^T + b          A (r, inner), B (n, r)
//   v = dy B           dx = dy W + s v A         dA = s v^T x          dB = s dy^T u
//
// x and dy are packed once, for the narrow product and the wide one.

static _Thread_local arena packed_wide, across_rank;

static graft_weight plain(const void *of, int kind, int64_t rows, int64_t columns) {
  return (graft_weight){.kind = kind, .rows = rows, .columns = columns, .codes = of};
}

#if defined(PAIRS)
static _Thread_local arena halves_of_enters;

// n floats, VW or fewer, as sums of two numbers in bf16, which have 16 bits of their fractions.
INLINE void in_halves(vf v, int64_t n, uint16_t *upper, uint16_t *lower) {
  uint16_t half[VW];
  vh_store(half, vf_to_bf16(v));
  memcpy(upper, half, 2 * (size_t)n);
  vh_store(half, vf_to_bf16(v - load_as(half, 0, BF16)));
  memcpy(lower, half, 2 * (size_t)n);
}

// A weight of an adapter in fp32 as such a sum of two.
static void weight_in_halves(const float *of, int64_t rows, int64_t columns, uint16_t *memory, graft_weight halves[2]) {
  int64_t count = rows * columns;
  for (int64_t i = 0; i < count; i += VW) {
    int64_t n = least(VW, count - i);
    in_halves(vf_load_n(of + i, n), n, memory + i, memory + count + i);
  }
  for (int half = 0; half < 2; half++) halves[half] = plain(memory + half * count, W_BF16, rows, columns);
}
#endif

#if defined(TILES)
// Tiles multiply bf16 so much faster than the registers multiply floats that a product of floats is best made of
// three of their halves:  u B^T = [u', u', u"] [B', B", B']^T + u" B"^T, of which the last term is left out.
static _Thread_local arena thirds_of_x, thirds_of_weight, turned_halves, both_halves;

// Rows (rows, r) times a factor as rows (rows, 3 r): [u', u', u"], or [u', u", u'] for a `weight`.
static void rows_in_thirds(const float *of, float factor, int64_t rows, int64_t r, int weight, uint16_t *out) {
  for (int64_t i = 0; i < rows; i++, of += r, out += 3 * r) {
    uint16_t *upper = weight ? out + 2 * r : out + r, *lower = weight ? out + r : out + 2 * r;
    for (int64_t k = 0; k < r; k += VW) {
      int64_t n = least(VW, r - k);
      in_halves(vf_load_n(of + k, n) * vf_set(factor), n, upper + k, lower + k);
    }
    memcpy(out, upper, 2 * (size_t)r);
  }
}

// Describe `leaves` for a product with such rows. Its codes are NULL if there is no memory.
static graft_weight weight_in_thirds(const graft_weight *leaves, int across) {
  int64_t rows = leaves->rows, columns = leaves->columns, count = rows * columns;
  uint16_t *memory = scratch_of(&thirds_of_weight, 6 * (size_t)(count + 1));
  if (memory && across) {
    graft_weight halves[2];
    weight_in_halves(leaves->codes, rows, columns, memory, halves);
    memcpy(memory + 2 * count, memory, 2 * (size_t)count);
  } else if (memory) {
    rows_in_thirds(leaves->codes, 1, rows, columns, 1, memory);
  }
  return plain(memory, W_BF16, across ? 3 * rows : rows, across ? columns : 3 * columns);
}

// out (r, n) = factor * narrow^T (r, m) x (m, n), of narrow in floats and x in bf16: both of its halves at one time.
// Returns where out lies, in scratch memory; or NULL.
static float *turned_product(const float *narrow, float factor, int64_t m, int64_t r, const graft_weight *x,
                             int threads) {
  int64_t n = x->columns;
  uint16_t *turned = scratch_of(&turned_halves, 4 * (size_t)(r * m + 1));
  float *out = scratch_of(&both_halves, sizeof(float) * (size_t)(2 * r * n + 1));
  if (!turned || !out) return 0;
  for (int64_t i = 0; i < m; i++)
    for (int64_t k = 0; k < r; k += VW) {
      uint16_t upper[VW], lower[VW];
      int64_t some = least(VW, r - k);
      in_halves(vf_load_n(narrow + i * r + k, some) * vf_set(factor), some, upper, lower);
      for (int64_t j = 0; j < some; j++) {
        turned[(k + j) * m + i] = upper[j];
        turned[(r + k + j) * m + i] = lower[j];
      }
    }
  graft_term t = {turned, BF16, 1, m, 1, 1.0f, x};
  float *const ready[1] = {0};
  if (multiply_packed(&t, ready, 1, 2 * r, n, 0, 0, out, FP32, n, threads)) return 0;
  for (int64_t i = 0; i < r * n; i += VW) {
    int64_t some = least(VW, r * n - i);
    vf_store_n(out + i, vf_load_n(out + i, some) + vf_load_n(out + r * n + i, some), some);
  }
  return out;
}
#endif

// narrow (m, r) = x A^T, or x A if `across`; y or dx = x W^T + s narrow B^T, and alike, or this update added to it.
// x (m, inner) and y (m, n) in `dtype`.  weight: NULL if y holds the rest.  y: may be NULL.
static int narrow_and_wide(const void *x, int dtype, int across, int64_t m, int64_t inner, int64_t n,
                           const graft_weight *weight, const float *bias, const graft_weight *enters,
                           const graft_weight *leaves, float scale, float *narrow, void *y, int threads) {
  int64_t r = across ? enters->columns : enters->rows, bytes = dtype == FP32 ? 4 : 2;
  int own = weight != 0;
  graft_term down[2] = {{x, dtype, across, inner, 1, 1.0f, enters}};
  graft_term wide[2] = {{x, dtype, across, inner, 1, 1.0f, weight}, {narrow, FP32, across, r, 1, scale, leaves}};
  if (m <= FEW_MOST && !across)
    return multiply(down, 1, m, r, 0, 0, narrow, FP32, r, threads) ||
           (y && multiply(wide + !own, 1 + own, m, n, bias, !own, y, dtype, n, threads));
  int parts = 1;
#if defined(PAIRS)
  graft_weight halves[2];
  if (dtype == BF16) {
    uint16_t *memory = scratch_of(&halves_of_enters, 4 * (size_t)(r * inner + 1));
    if (!memory) return -1;
    weight_in_halves(enters->codes, enters->rows, enters->columns, memory, halves);
    for (parts = 0; parts < 2; parts++) {
      down[parts] = down[0];
      down[parts].weight = &halves[parts];
    }
  }
#endif
#if defined(TILES)
  graft_weight thirds;
  uint16_t *beside = 0;
  if (dtype == BF16 && y) {
    thirds = weight_in_thirds(leaves, across);
    beside = scratch_of(&thirds_of_x, 6 * (size_t)(band_of(m, words_of(&down[0])) * r + 1));
    if (!thirds.codes || !beside) return -1;
    wide[1] = (graft_term){beside, BF16, across, 3 * r, 1, 1.0f, &thirds};
  }
#endif
  int shared = own && paired(&wide[0]) == paired(&down[0]);
  int64_t words = words_of(&down[0]), band = band_of(m, words);
  float *packed = scratch_of(&packed_wide, sizeof(float) * (size_t)(band * words + 1));
  if (!packed) return -1;
  for (int64_t top = 0; top < m; top += band) {
    int64_t rows = least(band, m - top), tiles = (rows + MR - 1) / MR;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < tiles; i++) pack_tile(&down[0], top, rows, i, packed);
    float *const ready[2] = {packed, packed}, *const once[2] = {shared ? packed : 0, 0};
    wide[0].x = (const char *)x + top * inner * bytes;
    if (multiply_packed(down, ready, parts, rows, r, 0, 0, narrow + top * r, FP32, r, threads)) return -1;
#if defined(TILES)
    if (beside) rows_in_thirds(narrow + top * r, scale, rows, r, 0, beside);
    else
#endif
      wide[1].x = narrow + top * r;
    if (y && multiply_packed(wide + !own, own ? once : once + 1, 1 + own, rows, n, bias, !own,
                             (char *)y + top * n * bytes, dtype, n, threads))
      return -1;
  }
  return 0;
}

// x (m, inner) and y (m, n) in `dtype`; u (m, r) is kept for backward.
// weight: NULL if y holds x W^T + b already, and the update is added to it.
int KERNEL(low_rank)(const void *x, int dtype, int64_t m, int64_t inner, int64_t n, const graft_weight *weight,
                     const float *bias, const float *A, const float *B, int64_t r, float scale, float *u, void *y,
                     int threads) {
  graft_weight down = plain(A, W_FP32, r, inner), up = plain(B, W_FP32, n, r);
  return narrow_and_wide(x, dtype, 0, m, inner, n, weight, bias, &down, &up, scale, u, y, threads);
}

// dx (m, inner) in `dtype`, or NULL; dA (r, inner); dB (n, r); v (m, r) is scratch.
// weight: NULL if dx holds dy W already.
int KERNEL(low_rank_backward)(const void *x, const void *dy, int dtype, int64_t m, int64_t inner, int64_t n,
                              const graft_weight *weight, const float *A, const float *B, int64_t r, float scale,
                              const float *u, float *v, void *dx, float *dA, float *dB, int threads) {
  graft_weight down = plain(A, W_FP32, r, inner), up = plain(B, W_FP32, n, r);
  graft_weight entered = plain(x, dtype, m, inner), left = plain(dy, dtype, m, n);
  graft_term of_A = {v, FP32, 1, 1, r, scale, &entered}, of_B = {u, FP32, 1, 1, r, scale, &left};
  if (narrow_and_wide(dy, dtype, 1, m, n, inner, weight, 0, &up, &down, scale, v, dx, threads)) return -1;
  float *turned;
#if defined(TILES)
  if (dtype == BF16 && m > FEW_MOST) {
    float *made = turned_product(v, scale, m, r, &entered, threads);
    if (!made) return -1;
    memcpy(dA, made, sizeof(float) * (size_t)(r * inner));
    turned = turned_product(u, scale, m, r, &left, threads);
  } else
#endif
  {
    turned = scratch_of(&across_rank, sizeof(float) * (size_t)(r * n + 1));
    if (!turned || multiply(&of_A, 1, r, inner, 0, 0, dA, FP32, inner, threads) ||
        multiply(&of_B, 1, r, n, 0, 0, turned, FP32, n, threads))
      return -1;
  }
  if (!turned) return -1;
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < r; k++) dB[i * r + k] = turned[k * n + i];
  return 0;
}
