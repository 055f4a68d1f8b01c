// A frozen linear layer with a trained low-rank update, in one pass over y and one over dx:
//
//   u = x A^T          y = x W^T + s u B^T + b          A (r, inner), B (n, r)
//   v = s dy B         dx = dy W + v A          dA = v^T x          dB = s dy^T u

static graft_weight plain(const void *of, int kind, int64_t rows, int64_t columns) {
  return (graft_weight){.kind = kind, .rows = rows, .columns = columns, .codes = of};
}

// x (m, inner) and y (m, n) in `dtype`; u (m, r) is kept for backward.
// weight: NULL if y holds x W^T + b already, and the update is added to it.
int KERNEL(low_rank)(const void *x, int dtype, int64_t m, int64_t inner, int64_t n, const graft_weight *weight,
                     const float *bias, const float *A, const float *B, int64_t r, float scale, float *u, void *y,
                     int threads) {
  graft_weight down = plain(A, W_FP32, r, inner), up = plain(B, W_FP32, n, r);
  graft_term narrow = {x, dtype, 0, inner, 1, 1.0f, &down};
  graft_term terms[2] = {{x, dtype, 0, inner, 1, 1.0f, weight}, {u, FP32, 0, r, 1, scale, &up}};
  int own = weight != 0;
  return multiply(&narrow, 1, m, r, 0, 0, u, FP32, r, threads) ||
         multiply(terms + !own, 1 + own, m, n, bias, !own, y, dtype, n, threads);
}

// dx (m, inner) in `dtype`, or NULL; dA (r, inner); dB (n, r); v (m, r) is scratch.
// weight: NULL if dx holds dy W already.
int KERNEL(low_rank_backward)(const void *x, const void *dy, int dtype, int64_t m, int64_t inner, int64_t n,
                              const graft_weight *weight, const float *A, const float *B, int64_t r, float scale,
                              const float *u, float *v, void *dx, float *dA, float *dB, int threads) {
  graft_weight down = plain(A, W_FP32, r, inner), up = plain(B, W_FP32, n, r), states = plain(u, W_FP32, m, r);
  graft_weight entered = plain(x, dtype, m, inner);
  graft_term wide = {dy, dtype, 1, n, 1, scale, &up};
  graft_term terms[2] = {{dy, dtype, 1, n, 1, 1.0f, weight}, {v, FP32, 1, r, 1, 1.0f, &down}};
  graft_term of_A = {v, FP32, 1, 1, r, 1.0f, &entered}, of_B = {dy, dtype, 1, 1, n, scale, &states};
  int own = weight != 0;
  return multiply(&wide, 1, m, r, 0, 0, v, FP32, r, threads) ||
         (dx && multiply(terms + !own, 1 + own, m, inner, 0, !own, dx, dtype, inner, threads)) ||
         multiply(&of_A, 1, r, inner, 0, 0, dA, FP32, inner, threads) ||
         multiply(&of_B, 1, n, r, 0, 0, dB, FP32, r, threads);
}
