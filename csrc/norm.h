// RMSNorm and LayerNorm in one pass over each row, forward and backward.
//
//   z = (x - mean) * rate        rate = 1 / sqrt(mean of (x - mean)^2 + eps); of RMSNorm mean is 0
//   y = z * (weight + plus) + bias
//   dx = rate * (g - mean(g) - z * mean(g * z))     g = dy * (weight + plus); of RMSNorm without mean(g)

#define ROWS 32  // rows whose share of the weight's gradient is added up apart: sums have one order

typedef struct {
  const void *x, *weight, *bias;  // (rows, width), (width,), (width,) or NULL, all of `dtype`
  void *y;
  float *mean, *rate;             // (rows,); mean is NULL for RMSNorm
  const void *dy;                 // of backward, as dx; dweight and dbias (width,) float, or NULL
  void *dx;
  float *dweight, *dbias;
  int64_t rows, width;
  float eps, plus;
  int32_t dtype;
} graft_norm;

INLINE vf some(const void *p, int64_t at, int64_t n, int dtype) {
  return n >= VW ? load_as(p, at, dtype) : load_n_as(p, at, n, dtype);
}
INLINE void put(void *p, int64_t at, vf v, int64_t n, int dtype) {
  if (n >= VW) store_as(p, at, v, dtype);
  else store_n_as(p, at, v, n, dtype);
}

void KERNEL(norm)(const graft_norm *a, int threads) {
  int64_t n = a->width;
#pragma omp parallel for num_threads(crew(threads, a->rows * n)) schedule(static)
  for (int64_t r = 0; r < a->rows; r++) {
    vf sum = vf_zero(), square = vf_zero();
    float mean = 0;
    if (a->mean) {
      for (int64_t i = 0; i < n; i += VW) sum += some(a->x, r * n + i, n - i, a->dtype);
      a->mean[r] = mean = vf_sum(sum) / (float)n;
    }
    int64_t i = 0;
    for (; i + VW <= n; i += VW) {
      vf d = load_as(a->x, r * n + i, a->dtype) - vf_set(mean);
      square = vf_fma(d, d, square);
    }
    float total = vf_sum(square);
    if (i < n) {
      vf d = load_n_as(a->x, r * n + i, n - i, a->dtype) - vf_set(mean);
      for (int64_t j = 0; j < n - i; j++) total += d[j] * d[j];
    }
    float rate = a->rate[r] = 1 / sqrtf(total / (float)n + a->eps);
    for (i = 0; i < n; i += VW) {
      vf z = (some(a->x, r * n + i, n - i, a->dtype) - vf_set(mean)) * vf_set(rate);
      vf y = z * (some(a->weight, i, n - i, a->dtype) + vf_set(a->plus));
      if (a->bias) y += some(a->bias, i, n - i, a->dtype);
      put(a->y, r * n + i, y, n - i, a->dtype);
    }
  }
}

// Write dx of one row, and add its share to dweight and dbias.
static void norm_row_backward(const graft_norm *a, int64_t r, float *dweight, float *dbias) {
  int64_t n = a->width;
  vf mean = vf_set(a->mean ? a->mean[r] : 0), rate = vf_set(a->rate[r]), gz = vf_zero(), gs = vf_zero();
  for (int64_t i = 0; i < n; i += VW) {
    vf z = (some(a->x, r * n + i, n - i, a->dtype) - mean) * rate, dy = some(a->dy, r * n + i, n - i, a->dtype);
    vf g = dy * (some(a->weight, i, n - i, a->dtype) + vf_set(a->plus));
    gz = vf_fma(g, z, gz);  // beyond the row's end dy is 0
    gs += g;
    int64_t left = least(VW, n - i);
    if (dweight) vf_store_n(dweight + i, vf_fma(dy, z, vf_load_n(dweight + i, left)), left);
    if (dbias) vf_store_n(dbias + i, vf_load_n(dbias + i, left) + dy, left);
  }
  vf along = vf_set(vf_sum(gz) / (float)n), common = vf_set(a->mean ? vf_sum(gs) / (float)n : 0);
  for (int64_t i = 0; i < n; i += VW) {
    vf z = (some(a->x, r * n + i, n - i, a->dtype) - mean) * rate;
    vf g = some(a->dy, r * n + i, n - i, a->dtype) * (some(a->weight, i, n - i, a->dtype) + vf_set(a->plus));
    put(a->dx, r * n + i, (g - common - z * along) * rate, n - i, a->dtype);
  }
}

// Returns 0, or -1 without memory.
int KERNEL(norm_backward)(const graft_norm *a, int threads) {
  int64_t n = a->width, blocks = (a->rows + ROWS - 1) / ROWS;
  float *parts = 0;
  if (a->dweight || a->dbias) {
    parts = calloc((size_t)(2 * blocks * n + 1), sizeof(float));
    if (!parts) return -1;
  }
#pragma omp parallel for num_threads(crew(threads, a->rows * n)) schedule(static)
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t r = b * ROWS; r < least(a->rows, (b + 1) * ROWS); r++)
      norm_row_backward(a, r, a->dweight ? parts + 2 * b * n : 0, a->dbias ? parts + (2 * b + 1) * n : 0);
  for (int64_t i = 0; parts && i < n; i++) {
    float weight = 0, bias = 0;
    for (int64_t b = 0; b < blocks; b++) weight += parts[2 * b * n + i], bias += parts[(2 * b + 1) * n + i];
    if (a->dweight) a->dweight[i] = weight;
    if (a->dbias) a->dbias[i] = bias;
  }
  free(parts);
  return 0;
}
