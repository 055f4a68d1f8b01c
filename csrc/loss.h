// The loss of a chunk of logits, and its gradient in their place.
//
//   z = cap tanh(scale x / cap), or scale x        log p = z[label] - log sum e^z
//   d log p / dx = (onehot - p) scale (1 - (z / cap)^2)

#define NO_LABEL (-100)
#define RUN 1024  // numbers that are read twice, for their maximum and their sum, while they are in the first cache

INLINE vf vf_either(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

// Within 2 units in the last place. After Cephes: a polynomial near 0, 1 - 2 / (e^2|x| + 1) elsewhere.
INLINE vf vf_tanh(vf x) {
  vf size = vf_abs(x), square = x * x;
  vf p = vf_set(-5.70498872745e-3f);
  p = vf_fma(p, square, vf_set(2.06390887954e-2f));
  p = vf_fma(p, square, vf_set(-5.37397155531e-2f));
  p = vf_fma(p, square, vf_set(1.33314422036e-1f));
  p = vf_fma(p, square, vf_set(-3.33332819422e-1f));
  p = vf_fma(p * square, x, x);
  vf far = vf_set(1.0f) - vf_set(2.0f) / (vf_exp(size + size) + vf_set(1.0f));
  far = (vf)((vi)far | ((vi)x & (int32_t)0x80000000));
  return vf_either(size < vf_set(0.625f), p, far);
}

// Numbers at [at, at + left) of a row; those beyond its end are `missing`.
INLINE vf logits_at(const void *row, int64_t at, int64_t left, float missing, int dtype) {
  if (left >= VW) return load_as(row, at, dtype);
  vf v = load_n_as(row, at, left, dtype);
  for (int64_t i = left; i < VW; i++) v[i] = missing;
  return v;
}

INLINE void put_logits(void *row, int64_t at, int64_t left, vf v, int dtype) {
  if (left >= VW) store_as(row, at, v, dtype);
  else store_n_as(row, at, v, left, dtype);
}

INLINE float logit_at(const void *row, int64_t at, int dtype) { return load_n_as(row, at, 1, dtype)[0]; }

// Transform a row in place, and find its maximum and the sum of e^(z - maximum), which is NaN if the row has a NaN
// or its maximum is infinite.
INLINE void row_sums(void *row, int64_t n, float scale, float cap, int dtype, float *most, float *sum) {
  vf top = vf_set(-INFINITY), total = vf_zero();
  vi bad = {0};
  float held = -INFINITY;  // the maximum that `total` is relative to
  for (int64_t from = 0; from < n; from += RUN) {
    int64_t to = least(n, from + RUN);
    for (int64_t i = from; i < to; i += VW) {
      vf z = logits_at(row, i, to - i, -INFINITY, dtype);
      if (scale != 1 || cap > 0) {
        z *= vf_set(scale);
        if (cap > 0) z = vf_set(cap) * vf_tanh(z * vf_set(1 / cap));
        put_logits(row, i, to - i, z, dtype);
      }
      bad |= z != z;
      top = vf_max(top, z);
    }
    float now = vf_top(top);
    if (now > held) {
      total *= vf_exp(vf_set(held - now));
      held = now;
    }
    for (int64_t i = from; i < to; i += VW)
      total += vf_exp(logits_at(row, i, to - i, -INFINITY, dtype) - vf_set(held));
  }
  int broken = !(held < INFINITY && held > -INFINITY);
  for (int i = 0; i < VW; i++) broken |= bad[i] != 0;
  *most = held;
  *sum = broken ? NAN : vf_sum(total);
}

// Whether the label is the first of the row's largest numbers.
static int label_is_first(const void *row, int64_t label, float most, int dtype) {
  if (logit_at(row, label, dtype) != most) return 0;
  for (int64_t i = 0; i < label; i += VW) {
    vi equal = logits_at(row, i, label - i, -INFINITY, dtype) == vf_set(most);
    for (int j = 0; j < VW; j++)
      if (equal[j]) return 0;
  }
  return 1;
}

INLINE void row_gradient(void *row, int64_t n, int64_t label, float scale, float cap, float most, float sum,
                         int dtype) {
  vf factor = vf_set(-1 / sum);
  float at_label = cap > 0 ? logit_at(row, label, dtype) / cap : 0;
  for (int64_t i = 0; i < n; i += VW) {
    vf z = logits_at(row, i, n - i, 0, dtype);
    vf g = vf_exp(z - vf_set(most)) * factor * vf_set(scale);
    if (cap > 0) g *= vf_set(1.0f) - z * vf_set(1 / cap) * (z * vf_set(1 / cap));
    put_logits(row, i, n - i, g, dtype);
    if (label >= i && label < i + VW) {
      float p = g[label - i] + scale * (1 - at_label * at_label);
      put_logits(row, label, 1, vf_set(p), dtype);
    }
  }
}

// logits (m, n) in `dtype`, changed in place: to d log p / dx if `gradient`, else to z.
// labels (m,): -100 for none, whose log p and gradient are 0.  hits (m,): whether the label is the argmax.
// Returns 0, or -1 if a label is not in [0, n).
int KERNEL(token_logprobs)(void *logits, int dtype, int64_t m, int64_t n, float scale, float cap,
                           const int64_t *labels, int gradient, float *logprobs, uint8_t *hits, int threads) {
  int failed = 0;
  size_t width = (size_t)n * (dtype == FP32 ? 4 : 2);
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (int64_t r = 0; r < m; r++) {
    void *row = (char *)logits + (size_t)r * width;
    int64_t label = labels[r];
    logprobs[r] = 0;
    hits[r] = 0;
    if (label < 0 || label >= n) {
      failed |= label != NO_LABEL;
      if (gradient) memset(row, 0, width);
      continue;
    }
    float most, sum;
    row_sums(row, n, scale, cap, dtype, &most, &sum);
    logprobs[r] = logit_at(row, label, dtype) - most - logf(sum);
    hits[r] = (uint8_t)label_is_first(row, label, most, dtype);
    if (gradient) row_gradient(row, n, label, scale, cap, most, sum, dtype);
  }
  return failed ? -1 : 0;
}

static _Thread_local arena across_x, across_w, across_sums;

// One row of W (n,) as row `k` of the panels of all strips.
INLINE void panels_of_row(const float *row, int64_t n, int64_t k, float *panels) {
  for (int64_t c = 0; c < n; c += NR) {
    float *to = panels + c / COLUMNS * INNER * COLUMNS + c % COLUMNS / NR * NR * INNER + k * NR;
    if (c + NR <= n) {
      memcpy(to, row + c, sizeof(float) * NR);
    } else {
      memset(to, 0, sizeof(float) * NR);
      memcpy(to, row + c, sizeof(float) * (size_t)(n - c));
    }
  }
}

// y (m, n) = x W for a W (V, n) of many more rows than columns: INNER rows at a time are decoded, in one pass over
// W's memory, and added to sums of all of y in fp32.  y in `y_dtype`. Returns 0, or -1 without memory.
int KERNEL(product_across)(const void *x, int dtype, int64_t m, const graft_weight *w, void *y, int y_dtype,
                           int threads) {
  int64_t inner = w->rows, n = w->columns, tiles = (m + MR - 1) / MR, strips = (n + COLUMNS - 1) / COLUMNS;
  int64_t parts = least((threads + strips - 1) / strips, tiles);  // of the rows: so that all threads have work
  int64_t strip_size = tiles * MR * COLUMNS;
  float *packed = scratch_of(&across_x, sizeof(float) * (size_t)(tiles * MR * INNER));
  float *panels = scratch_of(&across_w, sizeof(float) * (size_t)(strips * INNER * COLUMNS));
  float *sums = scratch_of(&across_sums, sizeof(float) * (size_t)(strips * strip_size));
  if (!packed || !panels || !sums) return -1;
  int failed = 0;
#pragma omp parallel num_threads(threads)
  {
    float *row = malloc(sizeof(float) * (size_t)n);
    if (!row) failed = 1;
    for (int64_t start = 0; start < inner; start += INNER) {
      int64_t depth = least(INNER, inner - start);
      size_t before = (size_t)start * (dtype == FP32 ? 4 : 2);
      graft_term t = {.x = (const char *)x + before, .dtype = dtype, .stride = inner, .step = 1, .scale = 1};
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < tiles; i++)
        pack_rows(&t, depth, i * MR, least(MR, m - i * MR), packed + i * MR * INNER);
#pragma omp for schedule(static)
      for (int64_t k = 0; k < depth; k++) {
        if (!row) continue;
        decode_row(w, start + k, 0, n, row);
        panels_of_row(row, n, k, panels);
      }
#pragma omp for collapse(2) schedule(static)
      for (int64_t strip = 0; strip < strips; strip++)
        for (int64_t part = 0; part < parts; part++) {
          int64_t begin = tiles * part / parts, end = tiles * (part + 1) / parts;
          strip_product(packed + begin * MR * INNER, MR * INNER, end - begin, panels + strip * INNER * COLUMNS,
                        least(COLUMNS, n - strip * COLUMNS), depth, 0,
                        sums + strip * strip_size + begin * MR * COLUMNS, COLUMNS, start > 0);
        }
    }
#pragma omp for schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
      int64_t first = strip * COLUMNS;
      finish(sums + strip * strip_size, COLUMNS, m, least(COLUMNS, n - first), 0, 0, y, y_dtype, first, n);
    }
    free(row);
  }
  return failed ? -1 : 0;
}
