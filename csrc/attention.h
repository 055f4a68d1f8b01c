// Flash attention, forward and backward:  O = softmax(scale Q K^T) V  without a matrix of all scores.
//
// Each query sees one range of keys. Causal order, a window, padding and documents that share a row are all such
// ranges, so keys that none of a panel's queries sees are skipped. Scores are held as (keys, NR queries): a
// softmax then runs along vectors, and its result is at once the panel of the next product. Forward keeps the
// logarithm of each query's sum; backward makes the probabilities anew.
// After Dao 2023, FlashAttention-2, arXiv 2307.08691. Backward is in attention_backward.h.

#if VW == 16
#define AR 8                    // rows of a tile: 8 divides the usual widths of heads
#else
#define AR MR
#endif
#define KEYS (96 / AR * AR)     // keys of a block: a multiple of AR and of NR
#define QUERIES 64              // queries of a block: a multiple of NR

typedef struct {
  void *at;                     // NULL: absent
  int64_t batch, head, row;     // strides in numbers; the numbers of a row lie side by side
} graft_heads;

typedef struct {
  graft_heads q, k, v, o;       // (batch, heads or kv_heads, queries or keys, width or value_width)
  graft_heads d_o, dq, dk, dv;  // of backward
  float *lse;                   // (batch, heads, queries): logarithm of the sum of e^score; infinite for no key
  const int32_t *ranges;        // (batch or 1, queries, 2): keys [first, stop) of each query; or NULL
  int64_t ranges_batch;         // stride of a batch in `ranges`
  int64_t batch, heads, kv_heads, queries, keys, width, value_width;
  int64_t window;               // a causal query sees so many keys, itself included; 0: all
  float scale;
  int32_t dtype, causal;        // causal: the last query stands at the last key
} graft_attention;

static _Thread_local arena attention_own;

INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The keys that each query of a panel sees, and what they have in common. Queries that are missing see none.
typedef struct {
  int32_t first[NR], stop[NR];
  int64_t low, high;            // some query sees keys from `low` to before `high`
  int64_t from, to;             // every query sees these
} sights;

static void look(const graft_attention *a, int64_t b, int64_t query, sights *s) {
  s->low = a->keys, s->high = 0, s->from = 0, s->to = a->keys;
  for (int i = 0; i < NR; i++) {
    int64_t first = 0, stop = a->keys, at = query + i;
    if (a->causal) {
      stop = at + a->keys - a->queries + 1;
      if (a->window) first = most(0, stop - a->window);
    }
    if (at >= a->queries) first = stop = 0;
    else if (a->ranges) {
      const int32_t *range = a->ranges + b * a->ranges_batch + 2 * at;
      first = most(first, range[0]), stop = least(stop, range[1]);
    }
    if (stop <= first) first = stop = 0;
    else s->low = least(s->low, first), s->high = most(s->high, stop);
    s->from = most(s->from, first), s->to = least(s->to, stop);
    s->first[i] = (int32_t)first, s->stop[i] = (int32_t)stop;
  }
}

INLINE int64_t head_at(const graft_heads *t, int64_t b, int64_t h) { return b * t->batch + h * t->head; }

// Copy `count` rows into floats (up to `padded` rows, `wide`), times a factor; the rest is 0.
static void rows_of(const graft_heads *t, int64_t at, int64_t count, int64_t padded, int64_t width, int64_t wide,
                    float factor, int dtype, float *out) {
  vf times = vf_set(factor);
  for (int64_t r = 0; r < count; r++, at += t->row, out += wide) {
    int64_t i = 0;
    for (; i + VW <= width; i += VW) vf_store(out + i, load_as(t->at, at + i, dtype) * times);
    if (i < width) vf_store_n(out + i, load_n_as(t->at, at + i, width - i, dtype) * times, width - i);
    memset(out + width, 0, sizeof(float) * (size_t)(wide - width));
  }
  memset(out, 0, sizeof(float) * (size_t)((padded - count) * wide));
}

// Make panels (width, NR) of rows (count, wide); `count` is a multiple of NR.
static void panels_of(const float *rows, int64_t count, int64_t width, int64_t wide, float *out) {
  for (int64_t r = 0; r < count; r += VW) {
    const float *from = rows + r * wide;
    float *panel = out + r / NR * NR * width + r % NR;
    int64_t k = 0;
    for (; k + VW <= width; k += VW) {
      vf tile[VW];
      for (int i = 0; i < VW; i++) tile[i] = vf_load(from + i * wide + k);
      vf_transpose(tile);
      for (int i = 0; i < VW; i++) vf_store(panel + (k + i) * NR, tile[i]);
    }
    for (; k < width; k++)
      for (int i = 0; i < VW; i++) panel[k * NR + i] = from[i * wide + k];
  }
}

// Write `count` columns of a panel (width, NR) as rows of t, column i times factor[i].
static void write_panel(const float *panel, int64_t count, int64_t width, const float *factor,
                        const graft_heads *t, int64_t at, int dtype) {
  for (int64_t c = 0; c < count; c += VW) {
    vf times = vf_load(factor + c);
    for (int64_t k = 0; k < width; k += VW) {
      int64_t n = least(VW, width - k);
      vf tile[VW];
      for (int i = 0; i < VW; i++) tile[i] = i < n ? vf_load(panel + (k + i) * NR + c) * times : vf_zero();
      vf_transpose(tile);
      for (int i = 0; i < least(VW, count - c); i++) {
        if (n == VW) store_as(t->at, at + (c + i) * t->row + k, tile[i], dtype);
        else store_n_as(t->at, at + (c + i) * t->row + k, tile[i], n, dtype);
      }
    }
  }
}

// y (AR, NR) = or += the sum over `inner` of x's AR numbers times a panel's NR; x: `by_row` and `by_inner` apart.
INLINE void cross(const float *x, int64_t by_row, int64_t by_inner, const float *panel, int64_t inner, float *y,
                  int add) {
  vf sum[AR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < AR; i++)
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) sum[i][j] = add ? vf_load(y + i * NR + j * VW) : vf_zero();
  for (int64_t k = 0; k < inner; k++, x += by_inner, panel += NR) {
    vf w[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) w[j] = vf_load(panel + j * VW);
#pragma GCC unroll 8
    for (int i = 0; i < AR; i++) {
      vf a = vf_set(x[i * by_row]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; j++) sum[i][j] = vf_fma(a, w[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < AR; i++)
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++) vf_store(y + i * NR + j * VW, sum[i][j]);
}

// Scores (count, NR): rows of x (count, wide) against a panel (width, NR).
static void scores(const float *x, int64_t count, int64_t width, int64_t wide, const float *panel, float *out) {
  for (int64_t r = 0; r < count; r += AR) cross(x + r * wide, wide, 1, panel, width, out + r * NR, 0);
}

// out (wide, NR) += columns of x (count, wide) against a panel (count, NR).
static void gather(const float *x, int64_t count, int64_t wide, const float *panel, float *out) {
  for (int64_t c = 0; c < wide; c += AR) cross(x + c, 1, wide, panel, count, out + c * NR, 1);
}

// Set what is not seen to -infinity. s: (count, NR), keys from `key` on.
static void hide(float *s, int64_t key, int64_t count, const sights *see) {
  for (int j = 0; j < NR; j += VW) {
    vi first, stop;
    memcpy(&first, see->first + j, sizeof first);
    memcpy(&stop, see->stop + j, sizeof stop);
    for (int64_t r = 0; r < count; r++) {
      vi at = (vi){0} + (int32_t)(key + r);
      vi seen = (at >= first) & (at < stop), lost = (vi)vf_set(-INFINITY);
      vf_store(s + r * NR + j, (vf)(((vi)vf_load(s + r * NR + j) & seen) | (lost & ~seen)));
    }
  }
}

// e^x for x <= 0 or little more; exactly 0 from where the result is no normal number.
INLINE vf exp_down(vf x) {
  vi large = x > vf_set(-87.0f);
  x = vf_max(x, vf_set(-87.0f));
  vi whole = vf_round(x * vf_set(1.44269504f));
  vf n = vf_float(whole), r = vf_fma(n, vf_set(-0.693359375f), x);
  r = vf_fma(n, vf_set(2.12194440e-4f), r);
  vf p = vf_set(1.9875691500e-4f);
  p = vf_fma(p, r, vf_set(1.3981999507e-3f));
  p = vf_fma(p, r, vf_set(8.3334519073e-3f));
  p = vf_fma(p, r, vf_set(4.1665795894e-2f));
  p = vf_fma(p, r, vf_set(1.6666665459e-1f));
  p = vf_fma(p, r, vf_set(5.0000001201e-1f));
  p = vf_fma(p, r * r, r + vf_set(1.0f));
  return (vf)((vi)(p * (vf)((whole + 127) << 23)) & large);
}

// Scale what was summed so far, `sum` and columns of `o` (wide, NR), to the new top, and add the total of a block.
INLINE void scale_down(vf before, vf peak, vf total, float *top, float *sum, float *o, int64_t wide) {
  vf shrink = exp_down(before - peak);
  vf_store(top, peak);
  vf_store(sum, vf_fma(vf_load(sum), shrink, total));
  int grew = 0;
  for (int i = 0; i < VW; i++) grew |= peak[i] != before[i];
  if (grew)
    for (int64_t c = 0; c < wide; c++) vf_store(o + c * NR, vf_load(o + c * NR) * shrink);
}

// Take a block of scores (count, NR) into the running softmax: they become e^(score - top); `o` (wide, NR) and
// `sum` are scaled to the new top.
static void soften(float *s, int64_t count, float *top, float *sum, float *o, int64_t wide) {
  for (int j = 0; j < NR; j += VW) {
    vf before = vf_load(top + j), peak = before, total = vf_zero();
    for (int64_t r = 0; r < count; r++) peak = vf_max(peak, vf_load(s + r * NR + j));
    for (int64_t r = 0; r < count; r++) {
      vf p = exp_down(vf_load(s + r * NR + j) - peak);
      total += p;
      vf_store(s + r * NR + j, p);
    }
    scale_down(before, peak, total, top + j, sum + j, o + j, wide);
  }
}

typedef struct {
  float *k, *v, *q, *panel, *s, *o;
  int64_t held;                 // whose keys and values these are
} forward_scratch;

// One panel of queries from `query` on, against rows k and v.
static void attend_panel(const graft_attention *a, const forward_scratch *m, int64_t b, int64_t h, int64_t query) {
  int64_t wide = up(a->width, AR), tall = up(a->value_width, AR), count = least(NR, a->queries - query);
  float top[NR], sum[NR];
  sights see;
  look(a, b, query, &see);
  for (int i = 0; i < NR; i++) top[i] = -1e30f, sum[i] = 0;
  memset(m->o, 0, sizeof(float) * (size_t)(tall * NR));
  for (int64_t key = see.low / AR * AR; key < see.high; key += KEYS) {
    int64_t n = least(KEYS, up(see.high - key, AR));
    scores(m->k + key * wide, n, a->width, wide, m->panel, m->s);
    if (key < see.from || key + n > see.to) hide(m->s, key, n, &see);
    soften(m->s, n, top, sum, m->o, tall);
    gather(m->v + key * tall, n, tall, m->s, m->o);
  }
  float *lse = a->lse + (b * a->heads + h) * a->queries + query;
  for (int i = 0; i < count; i++) lse[i] = sum[i] > 0 ? top[i] + logf(sum[i]) : INFINITY;
  for (int i = 0; i < NR; i++) sum[i] = sum[i] > 0 ? 1 / sum[i] : 0;
  write_panel(m->o, count, a->value_width, sum, &a->o, head_at(&a->o, b, h) + query * a->o.row, a->dtype);
}

// The sum of a query's output times its gradient.
static float output_times_gradient(const graft_attention *a, int64_t b, int64_t h, int64_t query) {
  int64_t at = head_at(&a->o, b, h) + query * a->o.row, of = head_at(&a->d_o, b, h) + query * a->d_o.row;
  vf sum = vf_zero();
  for (int64_t i = 0; i < a->value_width; i += VW) {
    int64_t n = least(VW, a->value_width - i);
    sum = vf_fma(load_n_as(a->o.at, at + i, n, a->dtype), load_n_as(a->d_o.at, of + i, n, a->dtype), sum);
  }
  return vf_sum(sum);
}

#include "attention_tiles.h"

// Write o and lse. Returns 0, or -1 without memory.
int KERNEL(attention)(const graft_attention *a, int threads) {
  if (by_tiles(a)) return attention_by_tiles(a, threads);
  int64_t blocks = (a->queries + QUERIES - 1) / QUERIES, group = a->heads / a->kv_heads;
  int64_t wide = up(a->width, AR), tall = up(a->value_width, AR), keys = up(a->keys, AR);
  int64_t size = keys * (wide + tall) + QUERIES * wide + NR * wide + KEYS * NR + NR * tall;
  int failed = 0;
#pragma omp parallel num_threads(crew(threads, a->batch * a->heads * a->queries * a->keys))
  {
    forward_scratch m = {.k = scratch_of(&attention_own, sizeof(float) * (size_t)size), .held = -1};
    if (!m.k) failed = 1;
    m.v = m.k + keys * wide, m.q = m.v + keys * tall, m.panel = m.q + QUERIES * wide;
    m.s = m.panel + NR * wide, m.o = m.s + KEYS * NR;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < a->batch * a->heads * blocks; task++) {
      if (failed) continue;
      int64_t b = task / (a->heads * blocks), h = task / blocks % a->heads, from = task % blocks * QUERIES;
      int64_t count = least(QUERIES, a->queries - from), kv = h / group, padded = up(count, NR);
      if (m.held != b * a->kv_heads + kv) {
        m.held = b * a->kv_heads + kv;
        rows_of(&a->k, head_at(&a->k, b, kv), a->keys, keys, a->width, wide, 1, a->dtype, m.k);
        rows_of(&a->v, head_at(&a->v, b, kv), a->keys, keys, a->value_width, tall, 1, a->dtype, m.v);
      }
      rows_of(&a->q, head_at(&a->q, b, h) + from * a->q.row, count, padded, a->width, wide, a->scale, a->dtype,
              m.q);
      for (int64_t p = 0; p < count; p += NR) {
        panels_of(m.q + p * wide, NR, a->width, wide, m.panel);
        attend_panel(a, &m, b, h, from + p);
      }
    }
  }
  return failed ? -1 : 0;
}

// Turn a dense mask (rows, keys) of bytes into ranges (rows, 2): the keys [first, stop) that a query sees. Returns 0
// if some row has a gap, which no range stands for.
int KERNEL(ranges_of_mask)(const uint8_t *mask, int64_t rows, int64_t keys, int32_t *ranges, int threads) {
  int whole = 1;
#pragma omp parallel for num_threads(crew(threads, rows * keys)) reduction(&& : whole)
  for (int64_t r = 0; r < rows; r++) {
    const uint8_t *row = mask + r * keys, *first = memchr(row, 1, (size_t)keys);
    const uint8_t *stop = first ? memchr(first, 0, (size_t)(row + keys - first)) : 0;
    if (first && !stop) stop = row + keys;
    ranges[2 * r] = first ? (int32_t)(first - row) : 0;
    ranges[2 * r + 1] = first ? (int32_t)(stop - row) : 0;
    whole = whole && !(first && memchr(stop, 1, (size_t)(row + keys - stop)));
  }
  return whole;
}
