// Gated activations and rotary positions, in one pass each, forward and backward.

enum { SILU = 0, GELU_TANH = 1, GELU = 2, RELU = 3 };

INLINE vf sigmoid(vf x) { return vf_set(1) / (vf_set(1) + vf_exp(-x)); }

// A quotient of polynomials on [-4, 4], within 4e-7; as Eigen and XLA have it.
INLINE vf error_function(vf x) {
  x = vf_max(vf_min(x, vf_set(4)), vf_set(-4));
  static const float up[] = {-2.72614225801306e-10f, 2.77068142495902e-08f,  -2.10102402082508e-06f,
                             -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                             -1.60960333262415e-02f};
  static const float down[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                               -7.37332916720468e-03f, -1.42647390514189e-02f};
  vf square = x * x, p = vf_set(up[0]), q = vf_set(down[0]);
  for (int i = 1; i < 7; i++) p = vf_fma(p, square, vf_set(up[i]));
  for (int i = 1; i < 5; i++) q = vf_fma(q, square, vf_set(down[i]));
  return x * p / q;
}

// Return act(g), and its slope.
INLINE vf activate(vf g, int kind, vf *slope) {
  if (kind == RELU) {
    vf on = (vf)((g > vf_zero()) & (vi)vf_set(1));
    *slope = on;
    return vf_max(g, vf_zero());
  }
  if (kind == GELU) {
    vf share = vf_set(0.5f) * (vf_set(1) + error_function(g * vf_set(0.70710678f)));
    *slope = share + g * vf_set(0.39894228f) * vf_exp(vf_set(-0.5f) * g * g);
    return g * share;
  }
  // g times the sigmoid of z: 1 + tanh(z / 2) = 2 sigmoid(z)
  vf z = g, dz = vf_set(1);
  if (kind == GELU_TANH) {
    vf square = g * g;
    z = vf_set(1.5957691216f) * g * vf_fma(vf_set(0.044715f), square, vf_set(1));
    dz = vf_set(1.5957691216f) * vf_fma(vf_set(3 * 0.044715f), square, vf_set(1));
  }
  vf s = sigmoid(z);
  *slope = s * vf_fma(g * dz, vf_set(1) - s, vf_set(1));
  return g * s;
}

// y = act(gate) * up, of n numbers.
void KERNEL(gate)(const void *gate, const void *up_, void *y, int64_t n, int kind, int dtype, int threads) {
#pragma omp parallel for num_threads(crew(threads, n)) schedule(static)
  for (int64_t i = 0; i < n; i += VW) {
    vf slope, of = activate(some(gate, i, n - i, dtype), kind, &slope);
    put(y, i, of * some(up_, i, n - i, dtype), n - i, dtype);
  }
}

void KERNEL(gate_backward)(const void *gate, const void *up_, const void *dy, void *dgate, void *dup, int64_t n,
                           int kind, int dtype, int threads) {
#pragma omp parallel for num_threads(crew(threads, n)) schedule(static)
  for (int64_t i = 0; i < n; i += VW) {
    vf slope, of = activate(some(gate, i, n - i, dtype), kind, &slope), d = some(dy, i, n - i, dtype);
    put(dgate, i, d * some(up_, i, n - i, dtype) * slope, n - i, dtype);
    put(dup, i, d * of, n - i, dtype);
  }
}

typedef struct {
  graft_heads x, y;          // (batch, heads, length, width)
  const void *cos, *sin;     // (batch or 1, length, width), contiguous
  int64_t tables_batch;      // stride of a batch in them
  int64_t batch, heads, length, width;
  int32_t dtype, tables_dtype, back;  // back: multiply by the transpose, which is what a gradient wants
} graft_rotary;

// y = x cos + [-x2, x1] sin, where x1 and x2 are the halves of a row: rotation of pairs (i, i + width / 2).
void KERNEL(rotary)(const graft_rotary *a, int threads) {
  int64_t half = a->width / 2;
#pragma omp parallel for num_threads(crew(threads, a->batch * a->length * a->heads * a->width)) collapse(2)
  for (int64_t b = 0; b < a->batch; b++)
    for (int64_t t = 0; t < a->length; t++) {
      int64_t table = b * a->tables_batch + t * a->width;
      for (int64_t h = 0; h < a->heads; h++) {
        int64_t from = head_at(&a->x, b, h) + t * a->x.row, to = head_at(&a->y, b, h) + t * a->y.row;
        for (int64_t i = 0; i < half; i += VW) {
          int64_t n = half - i;
          vf x1 = some(a->x.at, from + i, n, a->dtype), x2 = some(a->x.at, from + half + i, n, a->dtype);
          vf c1 = some(a->cos, table + i, n, a->tables_dtype), s1 = some(a->sin, table + i, n, a->tables_dtype);
          vf c2 = some(a->cos, table + half + i, n, a->tables_dtype);
          vf s2 = some(a->sin, table + half + i, n, a->tables_dtype);
          put(a->y.at, to + i, a->back ? x1 * c1 + x2 * s2 : x1 * c1 - x2 * s1, n, a->dtype);
          put(a->y.at, to + half + i, a->back ? x2 * c2 - x1 * s1 : x2 * c2 + x1 * s2, n, a->dtype);
        }
      }
    }
}
