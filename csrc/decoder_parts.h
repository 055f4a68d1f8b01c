// The parts of a decoding step: norms, low-rank updates, linears, heads and their attention, the gated MLP. The logits
// are in logits.h.

#define DIM 16         // heads are padded to a multiple of it
#define WIDE 4         // vectors that one pass over a low-rank update makes

// What the threads share.
typedef struct {
  const graft_decoder *d;
  const graft_batch *b;
  int64_t m, padded_dim, low_stride;
  float *h, *out;      // (m, width): the residual stream, and what is added to it next
  float *qkv;          // (m, (heads + 2 kv_heads) * dim)
  float *gate, *up;    // (m, inner)
  float *low;          // (m, LINEARS, low_stride): A x
  few_x x, mixed, mid, last;  // what enters q k v, gate, up; o; down; the head
  int32_t *chosen;     // (wanted, 1 + CHOSEN): how many tokens of a row are computed again, and which
  int failed;
  int arrived __attribute__((aligned(64)));  // at all barriers together
} decoding;

// One thread of it.
typedef struct {
  int me, all, met;    // met: barriers that it has passed
  few_plan plan;       // the last one, for its tables
  float *scores;
  float *q;
} decoding_thread;

// Wait until every thread is here. OpenMP's own barrier spins long: two threads that the system has put on one core
// would keep each other from working.
static void meet(decoding *s, decoding_thread *t) {
  if (t->all == 1) return;
  int goal = ++t->met * t->all;
  __atomic_add_fetch(&s->arrived, 1, __ATOMIC_ACQ_REL);
  for (int turns = 0; __atomic_load_n(&s->arrived, __ATOMIC_ACQUIRE) < goal; turns++) {
    if (turns > 4000) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
  }
}

// The part of n things that a thread takes, in whole units.
INLINE int64_t part_of(int64_t n, int64_t unit, int place, int all) {
  int64_t units = (n + unit - 1) / unit;
  return least(n, units * place / all * unit);
}

INLINE float root_mean_square(const float *x, int64_t n, float epsilon) {
  vf sum = vf_zero();
  for (int64_t i = 0; i < n; i += VW) {
    vf v = vf_load_n(x + i, least(VW, n - i));
    sum = vf_fma(v, v, sum);
  }
  return 1.0f / sqrtf(vf_sum(sum) / (float)n + epsilon);
}

// x = x / rms(x) * weight
INLINE void normalise(float *x, const float *weight, int64_t n, float epsilon) {
  vf factor = vf_set(root_mean_square(x, n, epsilon));
  for (int64_t i = 0; i < n; i += VW) {
    int64_t count = least(VW, n - i);
    vf_store_n(x + i, vf_load_n(x + i, count) * factor * vf_load_n(weight + i, count), count);
  }
}

// Add what the last part left (after a norm of its own), and write norm(h) of a row as row `to` of x.
static void enter(const decoding *s, int64_t row, const float *after, int pending, const float *weight,
                  const few_x *x, int64_t to) {
  int64_t n = s->d->width;
  float *h = s->h + row * n, *out = s->out + row * n;
  if (pending && after) normalise(out, after, n, s->d->epsilon);
  if (pending)
    for (int64_t i = 0; i < n; i += VW) {
      int64_t count = least(VW, n - i);
      vf_store_n(h + i, vf_load_n(h + i, count) + vf_load_n(out + i, count), count);
    }
  vf factor = vf_set(root_mean_square(h, n, s->d->epsilon));
  for (int64_t i = 0; i < x->padded; i += VW) {
    int64_t count = n - i < 0 ? 0 : least(VW, n - i);
    vf_store(x->plain + few_at(x, to, i), vf_load_n(h + i, count) * factor * vf_load_n(weight + i, count));
  }
  few_arrange(x, to, 0, x->padded);
}

INLINE const graft_low_rank *update_of(const decoding *s, int64_t row, int64_t which) {
  const graft_low_rank *all = s->b->updates ? s->b->updates[row] : 0;
  return all && all[which].r ? &all[which] : 0;
}

// The rows from `row` on that have the same update.
INLINE int64_t run_end(const decoding *s, int64_t row) {
  int64_t end = row + 1;
  while (s->b->updates && end < s->m && s->b->updates[end] == s->b->updates[row]) end++;
  return end;
}

// A x of some linears that read the same x. Returns whether there are any.
static int shrink(decoding *s, decoding_thread *t, const few_x *x, int64_t columns, int64_t which, int count) {
  int64_t whole = 0, before = 0;
  for (int64_t row = 0; s->b->updates && row < s->m; row = run_end(s, row))
    for (int l = 0; l < count; l++) whole += update_of(s, row, which + l) ? update_of(s, row, which + l)->r : 0;
  if (!whole) return 0;
  int64_t from = part_of(whole, 1, t->me, t->all), to = part_of(whole, 1, t->me + 1, t->all);
  for (int64_t row = 0; row < s->m; row = run_end(s, row))
    for (int l = 0; l < count; l++) {
      const graft_low_rank *u = update_of(s, row, which + l);
      if (!u) continue;
      int64_t first = from > before ? from - before : 0, last = least(u->r, to - before);
      before += u->r;
      if (first >= last) continue;
      graft_weight A = {.kind = u->dtype, .rows = u->r, .columns = columns, .codes = u->A};
      few_plan plan = few_planned(&A, 0, 0);
      float *low = s->low + l * s->low_stride + first;  // of row 0
      few_span span = {row, run_end(s, row)};
      if (few_rows(&plan, x, span, first, last, low, LINEARS * s->low_stride, 0)) s->failed = 1;
    }
  return 1;
}

// Columns [first, last) of y += s * B (A x), and the bias: of one row, `WIDE` vectors or fewer.
INLINE void expand_part(const graft_low_rank *u, const float *low, const float *bias, int64_t columns, int64_t first,
                        int64_t last, int dtype, float *y) {
  vf update[WIDE] = {{0}};
  if (u && last - first == WIDE * VW)
    for (int64_t j = 0; j < u->r; j++)
#pragma GCC unroll 4
      for (int k = 0; k < WIDE; k++)
        update[k] = vf_fma(vf_set(low[j]), load_as(u->B, j * columns + first + k * VW, dtype), update[k]);
  else
    for (int64_t j = 0; u && j < u->r; j++)
      for (int64_t k = 0, c = first; c < last; k++, c += VW)
        update[k] = vf_fma(vf_set(low[j]), load_n_as(u->B, j * columns + c, least(VW, last - c), dtype), update[k]);
  for (int64_t k = 0, c = first; c < last; k++, c += VW) {
    int64_t n = least(VW, last - c);
    vf sum = vf_load_n(y + c, n);
    if (bias) sum += vf_load_n(bias + c, n);
    if (u) sum = vf_fma(vf_set(u->scale), update[k], sum);
    vf_store_n(y + c, sum, n);
  }
}

// The same of all rows. Rows of one adapter take a part of B one after the other, while it is in the cache.
static void expand(const decoding *s, int64_t which, int l, const float *bias, int64_t columns, int64_t first, int64_t last,
                   float *y, int64_t stride) {
  for (int64_t row = 0, end; row < s->m; row = end) {
    const graft_low_rank *u = update_of(s, row, which);
    end = run_end(s, row);
    for (int64_t c = first; c < last && (u || bias); c += WIDE * VW)
      for (int64_t i = row; i < end; i++) {
        const float *low = s->low + (i * LINEARS + l) * s->low_stride;
        int64_t to = least(c + WIDE * VW, last);
        if (!u || u->dtype == FP32) expand_part(u, low, bias, columns, c, to, FP32, y + i * stride);
        else if (u->dtype == BF16) expand_part(u, low, bias, columns, c, to, BF16, y + i * stride);
        else expand_part(u, low, bias, columns, c, to, FP16, y + i * stride);
      }
  }
}

// This thread's columns of x W^T, whole chunks, with bias and updates.
static void linear(decoding *s, decoding_thread *t, const few_x *x, int64_t layer, int l, float *y, int64_t stride) {
  const graft_layer *of = &s->d->layer[layer];
  const graft_weight *w = &of->weight[l];
  int64_t first = part_of(w->rows, CHUNK, t->me, t->all), last = part_of(w->rows, CHUNK, t->me + 1, t->all);
  if (first >= last) return;
  t->plan = few_planned(w, &t->plan, (int)s->d->fixed);
  if (few_rows(&t->plan, x, (few_span){0, s->m}, first, last, y + first, stride, 0)) s->failed = 1;
  int place = l >= O && l != UP ? 0 : l == UP ? 1 : l;  // among the linears that read the same x
  expand(s, layer * LINEARS + l, place, of->bias[l], w->rows, first, last, y, stride);
}

// Turn the first 2 * half numbers of a head by the angles of its position.
INLINE void rotate(float *x, const float *cosine, const float *sine, int64_t half) {
  for (int64_t i = 0; i < half; i += VW) {
    int64_t n = least(VW, half - i);
    vf a = vf_load_n(x + i, n), b = vf_load_n(x + half + i, n);
    vf c = vf_load_n(cosine + i, n), d = vf_load_n(sine + i, n);
    vf_store_n(x + i, a * c - b * d, n);
    vf_store_n(x + half + i, b * c + a * d, n);
  }
}

// Where the keys or values of a head begin, in numbers.
INLINE int64_t cache_at(const decoding *s, int64_t layer, int64_t row, int64_t head) {
  const graft_batch *b = s->b;
  return ((layer * b->cache_slots + b->slots[row]) * s->d->kv_heads + head) * b->capacity * s->padded_dim;
}

INLINE void append(void *cache, int64_t at, const float *x, int64_t n, int dtype) {
  int64_t i = 0;
  for (; i + VW <= n; i += VW) store_as(cache, at + i, vf_load(x + i), dtype);
  if (i < n) store_n_as(cache, at + i, vf_load_n(x + i, n - i), n - i, dtype);
}

// Norm and rotation of queries and keys; keys and values go into the cache. One head of one row at a time.
static void place_heads(const decoding *s, const decoding_thread *t, int64_t layer) {
  const graft_decoder *d = s->d;
  const graft_layer *of = &d->layer[layer];
  int64_t all = d->heads + d->kv_heads, dim = d->dim, stride = (d->heads + 2 * d->kv_heads) * dim;
  for (int64_t i = part_of(s->m * all, 1, t->me, t->all); i < part_of(s->m * all, 1, t->me + 1, t->all); i++) {
    int64_t row = i / all, head = i % all, key = head - d->heads, position = s->b->positions[row];
    float *x = s->qkv + row * stride + head * dim;
    const float *norm = key < 0 ? of->q_norm : of->k_norm;
    if (norm) normalise(x, norm, dim, d->epsilon);
    int64_t angle = (of->rotary * s->b->capacity + position) * d->half;
    rotate(x, d->cos + angle, d->sin + angle, d->half);
    if (key < 0) continue;
    int64_t at = cache_at(s, layer, row, key) + position * s->padded_dim;
    append(s->b->keys, at, x, dim, (int)s->b->dtype);
    append(s->b->values, at, x + d->kv_heads * dim, dim, (int)s->b->dtype);
  }
}

INLINE vf capped(vf x, float cap) {
  vf twice = x * vf_set(2.0f / cap);
  return vf_set(cap) * (vf_set(2.0f) * sigmoid(twice) - vf_set(1.0f));  // cap * tanh(x / cap)
}

// Scores of VW keys, of which `count` are there.
INLINE vf score(const float *q, const void *keys, int64_t at, int64_t count, int64_t dim, int dtype) {
  vf sums[VW];
  for (int j = 0; j < VW; j++) {
    vf sum = vf_zero(), other = vf_zero();
    if (j < count) {
      for (int64_t i = 0; i + 2 * VW <= dim; i += 2 * VW) {
        sum = vf_fma(vf_load(q + i), load_as(keys, at + j * dim + i, dtype), sum);
        other = vf_fma(vf_load(q + i + VW), load_as(keys, at + j * dim + i + VW, dtype), other);
      }
      if (dim % (2 * VW)) sum = vf_fma(vf_load(q + dim - VW), load_as(keys, at + j * dim + dim - VW, dtype), sum);
    }
    sums[j] = sum + other;
  }
  vf_transpose(sums);
  for (int half = VW / 2; half; half /= 2)
    for (int j = 0; j < half; j++) sums[j] += sums[j + half];
  return sums[0];
}

// out (dim,) = softmax(scale * q K^T) V over `count` positions.
INLINE void attend(const graft_decoder *d, const float *q, const void *keys, const void *values, int64_t at, int64_t count,
                   int64_t dim, int dtype, float *scores, float *out) {
  vf top = vf_set(-INFINITY), sum = vf_zero();
  for (int64_t p = 0; p < count; p += VW) {
    vf found = score(q, keys, at + p * dim, count - p, dim, dtype) * vf_set(d->attention_scale);
    if (d->attention_cap > 0) found = capped(found, d->attention_cap);
    vf_store(scores + p, found);
    for (int64_t j = count - p; j < VW; j++) scores[p + j] = -INFINITY;
    top = vf_max(top, vf_load(scores + p));
  }
  vf most = vf_set(vf_top(top));
  for (int64_t p = 0; p < count; p += VW) {
    vf_store(scores + p, vf_exp(vf_load(scores + p) - most));
    for (int64_t j = count - p; j < VW; j++) scores[p + j] = 0;
    sum += vf_load(scores + p);
  }
  vf share = vf_set(1.0f / vf_sum(sum));
  for (int64_t i = 0; i < dim; i += 4 * VW) {
    int parts = (int)least(4, (dim - i) / VW);
    vf all[4] = {{0}, {0}, {0}, {0}};
    for (int64_t p = 0; p < count; p++) {
      vf weight = vf_set(scores[p]);
      int64_t from = at + p * dim + i;
      if (parts == 4)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) all[j] = vf_fma(weight, load_as(values, from + j * VW, dtype), all[j]);
      else
        for (int j = 0; j < parts; j++) all[j] = vf_fma(weight, load_as(values, from + j * VW, dtype), all[j]);
    }
    for (int j = 0; j < parts; j++) vf_store(out + i + j * VW, all[j] * share);
  }
}

// Attention of this thread's heads; what they see is written as columns of `mixed`.
static void attention(const decoding *s, const decoding_thread *t, int64_t layer) {
  const graft_decoder *d = s->d;
  int64_t dim = d->dim, padded = s->padded_dim, stride = (d->heads + 2 * d->kv_heads) * dim, dtype = s->b->dtype;
  int64_t window = d->layer[layer].window;
  float *out = t->q + padded;
  for (int64_t i = part_of(s->m * d->heads, 1, t->me, t->all); i < part_of(s->m * d->heads, 1, t->me + 1, t->all); i++) {
    int64_t row = i / d->heads, head = i % d->heads, count = s->b->positions[row] + 1, first = 0;
    if (window && count > window) first = count - window;
    int64_t at = cache_at(s, layer, row, head / (d->heads / d->kv_heads)) + first * padded;
    memcpy(t->q, s->qkv + row * stride + head * dim, sizeof(float) * (size_t)dim);
    if (dtype == FP32) attend(d, t->q, s->b->keys, s->b->values, at, count - first, padded, FP32, t->scores, out);
    else if (dtype == BF16) attend(d, t->q, s->b->keys, s->b->values, at, count - first, padded, BF16, t->scores, out);
    else attend(d, t->q, s->b->keys, s->b->values, at, count - first, padded, FP16, t->scores, out);
    for (int64_t c = 0; c < dim; c++) s->mixed.plain[few_at(&s->mixed, row, head * dim + c)] = out[c];
  }
}

// act(gate) * up of this thread's columns, as columns of `mid`.
static void gated(const decoding *s, const decoding_thread *t) {
  int64_t n = s->d->inner, first = part_of(n, CHUNK, t->me, t->all), last = part_of(n, CHUNK, t->me + 1, t->all);
  for (int64_t row = 0; row < s->m; row++)
    for (int64_t c = first; c < last; c += CHUNK) {
      for (int64_t i = c; i < least(last, c + CHUNK); i += VW) {
        int64_t count = least(VW, last - i);
        vf g = vf_load_n(s->gate + row * n + i, count), z = g;
        if (s->d->gelu) z = g * vf_fma(g * g, vf_set(2 * 0.7978845608f * 0.044715f), vf_set(2 * 0.7978845608f));
        vf all = g * sigmoid(z) * vf_load_n(s->up + row * n + i, count);
        vf_store_n(s->mid.plain + few_at(&s->mid, row, i), all, count);
      }
      few_arrange(&s->mid, row, c, c + CHUNK);
    }
}
