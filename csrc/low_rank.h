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
static _Thread_local arena halves_of;

// A weight of an adapter in fp32 as the sum of two in bf16, which has 16 bits of its fraction.
static void in_halves(const float *of, int64_t rows, int64_t columns, uint16_t *memory, graft_weight halves[2]) {
  int64_t count = rows * columns;
  for (int64_t i = 0; i < count; i++) {
    memory[i] = float_to_bf16(of[i]);
    memory[count + i] = float_to_bf16(of[i] - bf16_to_float(memory[i]));
  }
  for (int half = 0; half < 2; half++) halves[half] = plain(memory + half * count, W_BF16, rows, columns);
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
    uint16_t *memory = scratch_of(&halves_of, 4 * (size_t)(r * inner + 1));
    if (!memory) return -1;
    in_halves(enters->codes, enters->rows, enters->columns, memory, halves);
    for (parts = 0; parts < 2; parts++) {
      down[parts] = down[0];
      down[parts].weight = &halves[parts];
    }
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
    wide[1].x = narrow + top * r;
    if (multiply_packed(down, ready, parts, rows, r, 0, 0, narrow + top * r, FP32, r, threads)) return -1;
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
  float *turned = scratch_of(&across_rank, sizeof(float) * (size_t)(r * n + 1));
  if (!turned ||
      narrow_and_wide(dy, dtype, 1, m, n, inner, weight, 0, &up, &down, scale, v, dx, threads) ||
      multiply(&of_A, 1, r, inner, 0, 0, dA, FP32, inner, threads) ||
      multiply(&of_B, 1, r, n, 0, 0, turned, FP32, n, threads))
    return -1;
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < r; k++) dB[i * r + k] = turned[k * n + i];
  return 0;
}
