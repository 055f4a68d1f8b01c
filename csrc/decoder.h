// One step of a decoder of Llama's kind, over all its layers: tokens of several texts in, logits out.
//
//   h = E[token];   for each layer:  h += W_o attention(norm(h));   h += W_down (act(W_gate x) * W_up x), x = norm(h)
//
// Each row has its own text (a slot of the cache), position and low-rank update. The threads go through the step
// together, in one parallel region, with a barrier between its parts; every number is computed by one thread in one
// order, so results depend neither on threads nor on the other rows.

#include <sched.h>

// Linears of a layer, in this order.
enum { Q, K, V, O, GATE, UP, DOWN, LINEARS };

typedef struct {
  graft_weight weight[LINEARS];
  const float *bias[LINEARS];        // or NULL
  const float *attention_norm, *mlp_norm;              // of what enters
  const float *after_attention_norm, *after_mlp_norm;  // of what leaves, or NULL
  const float *q_norm, *k_norm;      // of each head, or NULL
  int64_t window;                    // positions that a query sees, its own included; 0 for all
  int64_t rotary;                    // which table of angles
} graft_layer;

typedef struct {
  int64_t layers, width, inner, vocabulary, heads, kv_heads, dim;
  int64_t half;                      // columns of a rotary table: the first 2 * half numbers of a head turn
  int64_t gelu;                      // 0: silu, 1: gelu by tanh
  int64_t fixed;                     // whether 4-bit weights may be multiplied in fixed point
  float epsilon, embed_scale, attention_scale, attention_cap, logit_cap;  // a cap of 0 is none
  const graft_layer *layer;
  const graft_weight *embed, *head;
  const graft_weight *rough;         // the head in 8 bits, to estimate logits with; or NULL
  const float *head_bias, *norm;
  const float *cos, *sin;            // (tables, capacity, half)
} graft_decoder;

// s * B A x: r = 0 where there is none.
typedef struct {
  const void *A, *B;                 // (r, in), and B transposed, (r, out)
  int32_t dtype, r;
  float scale;
} graft_low_rank;

typedef struct {
  int64_t rows, wanted;
  const int64_t *tokens, *slots, *positions;  // (rows,); rows of one slot stand in the order of their positions
  const int64_t *answers;                     // (wanted,): rows whose logits are asked for
  const graft_low_rank *const *updates;       // (rows,): LINEARS for each layer; or NULL
  void *keys, *values;                        // (layers, slots, kv_heads, capacity, padded dim) in `dtype`
  int64_t dtype, cache_slots, capacity;
} graft_batch;

#define CHOSEN 128  // logits of a row that are computed again after an estimate

#include "decoder_parts.h"
#include "logits.h"

// One layer. after, pending: of the layer before, whose output has not been added yet.
static void layer_step(decoding *s, decoding_thread *t, int64_t layer) {
  const graft_decoder *d = s->d;
  const graft_layer *of = &d->layer[layer];
  int64_t first = part_of(s->m, 1, t->me, t->all), last = part_of(s->m, 1, t->me + 1, t->all);
  int64_t q = d->heads * d->dim, kv = d->kv_heads * d->dim, stride = q + 2 * kv, low = layer * LINEARS;
  const float *after = layer ? d->layer[layer - 1].after_mlp_norm : 0;
  for (int64_t row = first; row < last; row++) enter(s, row, after, layer > 0, of->attention_norm, &s->x, row);
  meet(s, t);
  if (shrink(s, t, &s->x, d->width, low + Q, 3)) meet(s, t);
  linear(s, t, &s->x, layer, Q, s->qkv, stride);
  linear(s, t, &s->x, layer, K, s->qkv + q, stride);
  linear(s, t, &s->x, layer, V, s->qkv + q + kv, stride);
  meet(s, t);
  place_heads(s, t, layer);
  meet(s, t);
  attention(s, t, layer);
  meet(s, t);
  int64_t chunks = s->mixed.padded / CHUNK;
  for (int64_t i = part_of(s->m * chunks, 1, t->me, t->all); i < part_of(s->m * chunks, 1, t->me + 1, t->all); i++)
    few_arrange(&s->mixed, i / chunks, i % chunks * CHUNK, (i % chunks + 1) * CHUNK);
  shrink(s, t, &s->mixed, q, low + O, 1);
  meet(s, t);
  linear(s, t, &s->mixed, layer, O, s->out, d->width);
  meet(s, t);
  for (int64_t row = first; row < last; row++) enter(s, row, of->after_attention_norm, 1, of->mlp_norm, &s->x, row);
  meet(s, t);
  if (shrink(s, t, &s->x, d->width, low + GATE, 2)) meet(s, t);
  linear(s, t, &s->x, layer, GATE, s->gate, d->inner);
  linear(s, t, &s->x, layer, UP, s->up, d->inner);
  gated(s, t);
  meet(s, t);
  if (shrink(s, t, &s->mid, d->inner, low + DOWN, 1)) meet(s, t);
  linear(s, t, &s->mid, layer, DOWN, s->out, d->width);
  meet(s, t);
}

static void whole_step(decoding *s, decoding_thread *t, float *logits) {
  const graft_decoder *d = s->d;
  for (int64_t row = part_of(s->m, 1, t->me, t->all); row < part_of(s->m, 1, t->me + 1, t->all); row++) {
    float *h = s->h + row * d->width;
    decode_row(d->embed, s->b->tokens[row], 0, d->width, h);
    for (int64_t i = 0; i < d->width; i++) h[i] *= d->embed_scale;
  }
  for (int64_t layer = 0; layer < d->layers; layer++) layer_step(s, t, layer);
  int64_t wanted = s->b->wanted;
  for (int64_t i = part_of(wanted, 1, t->me, t->all); i < part_of(wanted, 1, t->me + 1, t->all); i++)
    enter(s, s->b->answers[i], d->layer[d->layers - 1].after_mlp_norm, 1, d->norm, &s->last, i);
  meet(s, t);
  project(s, t, logits);
}

// Orders of x, as bits.
enum { ORDER_NIBBLES = 1, ORDER_SUMS = 2, ORDER_FIXED = 4, ORDER_WHOLE = 8, ORDER_LEVELS = 16 };

// Rows of x with all orders that some weight may want.
static float *few_room(few_x *x, int64_t m, int64_t columns, int orders, float *memory) {
  int64_t numbers = m * few_padded(columns);
  *x = (few_x){.plain = memory, .m = m, .padded = few_padded(columns)};
  if (orders & ORDER_NIBBLES) x->nibbles = memory + numbers;
  if (orders & ORDER_SUMS) x->sums = memory + 2 * numbers;
  // The sums take a 32nd part of the last third, the units a 64th, numbers in fixed point a half, or that of
  // nibbles, which fixed point has no use for.
  if (orders & (ORDER_FIXED | ORDER_WHOLE)) x->units = memory + 2 * numbers + numbers / GROUP;
  if (orders & ORDER_FIXED) x->fixed = (int16_t *)(memory + 2 * numbers + numbers / 4);
  if (orders & ORDER_WHOLE) x->whole = (int16_t *)(memory + numbers);
  x->levels = orders & ORDER_LEVELS;
  if (memory && x->padded > columns) memset(memory, 0, sizeof(float) * 3 * (size_t)numbers);
  return memory + 3 * numbers;
}

// Which orders of x a weight wants.
INLINE int orders_of(const graft_decoder *d, const graft_weight *w) {
  int nibble = w->kind == W_LEVELS4 || (w->kind == W_GROUPS && w->bits == 4);
  int fixed = FIXED && d->fixed, order = !nibble ? 0 : fixed ? ORDER_FIXED : ORDER_NIBBLES;
  if (fixed && w->kind == W_INT8) order = ORDER_WHOLE;
  if (fixed && w->kind == W_LEVELS4) order |= ORDER_LEVELS;
  return order | (w->kind == W_GROUPS ? ORDER_SUMS : 0);
}

static _Thread_local arena decoder_shared, decoder_own;

// Write logits (wanted, vocabulary). Returns 0, or -1 without memory.
int KERNEL(decoder_step)(const graft_decoder *d, const graft_batch *b, float *logits, int threads) {
  int64_t m = b->rows, q = d->heads * d->dim, kv = d->kv_heads * d->dim, low = 0;
  int orders = 0;
  for (int64_t l = 0; l < d->layers; l++)
    for (int i = 0; i < LINEARS; i++) orders |= orders_of(d, &d->layer[l].weight[i]);
  for (int64_t row = 0; b->updates && row < m; row++)
    for (int64_t l = 0; b->updates[row] && l < d->layers * LINEARS; l++)
      if (b->updates[row][l].r > low) low = b->updates[row][l].r;
  decoding s = {.d = d, .b = b, .m = m, .padded_dim = (d->dim + DIM - 1) / DIM * DIM, .low_stride = low};
  int64_t plain = m * (2 * d->width + q + 2 * kv + 2 * d->inner + LINEARS * low);
  if (d->rough) plain += b->wanted * (1 + CHOSEN);
  int64_t ordered = 3 * m * (2 * few_padded(d->width) + few_padded(q) + few_padded(d->inner));
  plain = (plain + 15) / 16 * 16;  // what follows is aligned to a cache line
  float *memory = scratch_of(&decoder_shared, sizeof(float) * (size_t)(plain + ordered));
  if (!memory) return -1;
  s.h = memory, s.out = s.h + m * d->width, s.qkv = s.out + m * d->width, s.gate = s.qkv + m * (q + 2 * kv);
  s.up = s.gate + m * d->inner, s.low = s.up + m * d->inner;
  s.chosen = (int32_t *)(s.low + m * LINEARS * low);
  memory = few_room(&s.x, m, d->width, orders, memory + plain);
  memory = few_room(&s.mixed, m, q, orders, memory);
  memory = few_room(&s.mid, m, d->inner, orders, memory);
  few_room(&s.last, b->wanted, d->width, orders_of(d, d->rough ? d->rough : d->head), memory);
  int missing = 0;
#pragma omp parallel num_threads(threads)
  {
    decoding_thread t = {.all = 1};
#if defined(_OPENMP)
    t.me = omp_get_thread_num(), t.all = omp_get_num_threads();
#endif
    t.q = scratch_of(&decoder_own, sizeof(float) * (size_t)(2 * s.padded_dim + b->capacity + VW));
    if (t.q) t.scores = t.q + 2 * s.padded_dim;
    else missing = 1;
    meet(&s, &t);
    if (!missing) {
      memset(t.q, 0, sizeof(float) * (size_t)s.padded_dim);
      whole_step(&s, &t, logits);
    }
  }
  return missing || s.failed ? -1 : 0;
}
