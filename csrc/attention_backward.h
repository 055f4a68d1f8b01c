// Backward of flash attention: probabilities are made anew, tile by tile, from the scores and their log-sums.
//
//   dV = P^T dO     dS = P * (dO V^T - sum(dO * O))     dQ = scale dS K     dK = scale dS^T Q
//
// A head is a task of its own: blocks of keys one after another, and for each the blocks of queries that see it.
// So nothing is added by two threads, and sums have one order.

// What backward holds of one head. Rows of queries are padded to whole panels, rows of keys to a whole block.
typedef struct {
  float *q, *g, *q_panels, *g_panels;  // queries times scale, and the gradient of the output
  float *dq;                           // panels (wide, NR)
  float *lse, *delta;                  // (queries,)
  sights *see;                         // one a panel
  float *k, *v, *dk, *dv;              // of one block: rows (KEYS, wide); panels (wide, NR)
  float *p, *ds;                       // one panel (KEYS, NR)
  float *p_rows, *ds_rows;             // panels (QUERIES, NR keys), KEYS / NR of them
} backward_scratch;

static size_t backward_size(const graft_attention *a, int64_t queries) {
  int64_t wide = up(a->width, AR), tall = up(a->value_width, AR);
  int64_t floats = queries * (2 * wide + tall + a->width + a->value_width + 2)
                 + KEYS * (2 * wide + 2 * tall + 2 * NR + 2 * QUERIES);
  return sizeof(float) * (size_t)floats + sizeof(sights) * (size_t)(queries / NR);
}

static int backward_memory(const graft_attention *a, int64_t queries, backward_scratch *m) {
  int64_t wide = up(a->width, AR), tall = up(a->value_width, AR);
  float *at = scratch_of(&attention_own, backward_size(a, queries));
  if (!at) return -1;
  m->q = at, at += queries * wide;
  m->g = at, at += queries * tall;
  m->dq = at, at += queries * wide;
  m->q_panels = at, at += queries * a->width;
  m->g_panels = at, at += queries * a->value_width;
  m->lse = at, at += queries;
  m->delta = at, at += queries;
  m->k = at, at += KEYS * wide;
  m->dk = at, at += KEYS * wide;
  m->v = at, at += KEYS * tall;
  m->dv = at, at += KEYS * tall;
  m->p = at, at += KEYS * NR;
  m->ds = at, at += KEYS * NR;
  m->p_rows = at, at += KEYS * QUERIES;
  m->ds_rows = at, at += KEYS * QUERIES;
  m->see = (sights *)at;
  return 0;
}

// Read the queries of a head, the gradient of its output, and delta = the sum of gradient times output.
static void read_queries(const graft_attention *a, int64_t b, int64_t h, int64_t queries, backward_scratch *m) {
  int64_t wide = up(a->width, AR), tall = up(a->value_width, AR);
  rows_of(&a->q, head_at(&a->q, b, h), a->queries, queries, a->width, wide, a->scale, a->dtype, m->q);
  rows_of(&a->d_o, head_at(&a->d_o, b, h), a->queries, queries, a->value_width, tall, 1, a->dtype, m->g);
  panels_of(m->q, queries, a->width, wide, m->q_panels);
  panels_of(m->g, queries, a->value_width, tall, m->g_panels);
  memset(m->dq, 0, sizeof(float) * (size_t)(queries * wide));
  for (int64_t i = 0; i < queries; i++) {
    m->lse[i] = i < a->queries ? a->lse[(b * a->heads + h) * a->queries + i] : INFINITY;
    m->delta[i] = i < a->queries ? output_times_gradient(a, b, h, i) : 0;
    if (i % NR == 0) look(a, b, i, &m->see[i / NR]);
  }
}

// From scores and their gradients (count, NR) to probabilities p and ds = p * (dp - delta).
static void harden(float *p, float *ds, int64_t count, const float *lse, const float *delta) {
  for (int j = 0; j < NR; j += VW) {
    vf log_sum = vf_load(lse + j), mean = vf_load(delta + j);
    for (int64_t r = 0; r < count; r++) {
      vf probability = exp_down(vf_load(p + r * NR + j) - log_sum);
      vf_store(p + r * NR + j, probability);
      vf_store(ds + r * NR + j, probability * (vf_load(ds + r * NR + j) - mean));
    }
  }
}

// Turn a panel (count keys, NR queries) into rows of panels (QUERIES, NR keys), from row `query` of these on.
static void turn(const float *panel, int64_t count, int64_t query, float *out) {
  for (int64_t key = 0; key < count; key += VW)
    for (int j = 0; j < NR; j += VW) {
      vf tile[VW];
      for (int i = 0; i < VW; i++) tile[i] = vf_load(panel + (key + i) * NR + j);
      vf_transpose(tile);
      float *to = out + key / NR * NR * QUERIES + (query + j) * NR + key % NR;
      for (int i = 0; i < VW; i++) vf_store(to + i * NR, tile[i]);
    }
}

// Add what a block of queries from `query` on, and a block of `n` keys from `key` on, have to do with each other.
static void backward_block(const graft_attention *a, backward_scratch *m, int64_t query, int64_t count, int64_t key,
                           int64_t n) {
  int64_t wide = up(a->width, AR), tall = up(a->value_width, AR);
  int64_t begin[KEYS / NR], end[KEYS / NR];  // which queries of the block see keys of a panel
  const sights *sees = &m->see[query / NR];
  int met = 0;
  for (int64_t i = 0; i * NR < count; i++) met |= sees[i].low < key + n && sees[i].high > key;
  if (!met) return;
  for (int i = 0; i < KEYS / NR; i++) begin[i] = QUERIES, end[i] = 0;
  for (int64_t i = 0; i < count; i += NR) {
    const sights *see = &sees[i / NR];
    int64_t from = most(0, see->low - key) / AR * AR, to = least(n, up(most(0, see->high - key), AR));
    memset(m->p, 0, sizeof(float) * KEYS * NR);
    memset(m->ds, 0, sizeof(float) * KEYS * NR);
    if (from < to) {
      const float *q = m->q_panels + (query + i) * a->width, *g = m->g_panels + (query + i) * a->value_width;
      float *p = m->p + from * NR, *ds = m->ds + from * NR;
      scores(m->k + from * wide, to - from, a->width, wide, q, p);
      scores(m->v + from * tall, to - from, a->value_width, tall, g, ds);
      if (key + from < see->from || key + to > see->to) hide(p, key + from, to - from, see);
      harden(p, ds, to - from, m->lse + query + i, m->delta + query + i);
      gather(m->k + from * wide, to - from, wide, ds, m->dq + (query + i) * wide);
      for (int64_t panel = from / NR; panel * NR < to; panel++)
        begin[panel] = least(begin[panel], i), end[panel] = i + NR;
    }
    turn(m->p, KEYS, i, m->p_rows);
    turn(m->ds, KEYS, i, m->ds_rows);
  }
  for (int64_t panel = 0; panel < KEYS / NR; panel++) {
    int64_t from = begin[panel], rows = end[panel] - from, at = (panel * QUERIES + from) * NR;
    if (rows <= 0) continue;
    gather(m->g + (query + from) * tall, rows, tall, m->p_rows + at, m->dv + panel * NR * tall);
    gather(m->q + (query + from) * wide, rows, wide, m->ds_rows + at, m->dk + panel * NR * wide);
  }
}

// One head: write dq, and dk and dv as rows of the given tensors. Returns 0, or -1 without memory.
static int backward_head(const graft_attention *a, int64_t b, int64_t h, int64_t queries, const graft_heads *dk,
                         const graft_heads *dv, int64_t dk_at, int64_t dv_at, int dtype) {
  if (by_tiles(a)) return backward_head_by_tiles(a, b, h, queries, dk, dv, dk_at, dv_at, dtype);
  backward_scratch memory, *m = &memory;
  if (backward_memory(a, queries, m)) return -1;
  int64_t wide = up(a->width, AR), tall = up(a->value_width, AR), kv = h / (a->heads / a->kv_heads);
  float ones[NR], scale[NR];
  for (int i = 0; i < NR; i++) ones[i] = 1, scale[i] = a->scale;
  read_queries(a, b, h, queries, m);
  for (int64_t key = 0; key < a->keys; key += KEYS) {
    int64_t n = least(KEYS, a->keys - key);
    rows_of(&a->k, head_at(&a->k, b, kv) + key * a->k.row, n, KEYS, a->width, wide, 1, a->dtype, m->k);
    rows_of(&a->v, head_at(&a->v, b, kv) + key * a->v.row, n, KEYS, a->value_width, tall, 1, a->dtype, m->v);
    memset(m->dk, 0, sizeof(float) * (size_t)(KEYS * wide));
    memset(m->dv, 0, sizeof(float) * (size_t)(KEYS * tall));
    for (int64_t query = 0; query < a->queries; query += QUERIES)
      backward_block(a, m, query, least(QUERIES, a->queries - query), key, up(n, AR));
    for (int64_t c = 0; c < n; c += NR) {
      int64_t count = least(NR, n - c);
      write_panel(m->dk + c * wide, count, a->width, ones, dk, dk_at + (key + c) * dk->row, dtype);
      write_panel(m->dv + c * tall, count, a->value_width, ones, dv, dv_at + (key + c) * dv->row, dtype);
    }
  }
  for (int64_t query = 0; query < a->queries; query += NR)
    write_panel(m->dq + query * wide, least(NR, a->queries - query), a->width, scale, &a->dq,
                head_at(&a->dq, b, h) + query * a->dq.row, a->dtype);
  return 0;
}

// Write the sum over a group's heads; parts: (heads, keys, width).
static void sum_heads(const float *parts, int64_t group, int64_t keys, int64_t width, const graft_heads *t,
                      int64_t at, int dtype) {
  for (int64_t r = 0; r < keys; r++, at += t->row)
    for (int64_t c = 0; c < width; c += VW) {
      int64_t n = least(VW, width - c);
      vf sum = vf_zero();
      for (int64_t h = 0; h < group; h++) sum += vf_load_n(parts + (h * keys + r) * width + c, n);
      store_n_as(t->at, at + c, sum, n, dtype);
    }
}

// Write dq, dk and dv. Returns 0, or -1 without memory.
// Heads that share keys leave their parts in scratch memory, which are then added in order.
int KERNEL(attention_backward)(const graft_attention *a, int threads) {
  static _Thread_local arena shared;
  int64_t group = a->heads / a->kv_heads, tasks = a->batch * a->heads, queries = up(a->queries, NR);
  int64_t width = a->width, values = a->value_width, each = a->keys * (width + values);
  float *parts = group > 1 ? scratch_of(&shared, sizeof(float) * (size_t)(tasks * each + 1)) : 0;
  if (group > 1 && !parts) return -1;
  int failed = 0;
#pragma omp parallel num_threads(crew(threads, tasks * a->queries * a->keys))
  {
    tiles_begin();
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; task++) {
      int without = 0;
      int64_t b = task / a->heads, h = task % a->heads;
      graft_heads dk = {parts, 0, 0, width}, dv = {parts, 0, 0, values};
      if (parts)
        without = backward_head(a, b, h, queries, &dk, &dv, task * a->keys * width,
                                tasks * a->keys * width + task * a->keys * values, FP32);
      else
        without = backward_head(a, b, h, queries, &a->dk, &a->dv, head_at(&a->dk, b, h), head_at(&a->dv, b, h),
                                a->dtype);
      if (without) failed = 1;
    }
    tiles_end();
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (parts ? a->batch * a->kv_heads : 0); task++) {
      if (failed) continue;
      int64_t b = task / a->kv_heads, kv = task % a->kv_heads, first = task * group;
      sum_heads(parts + first * a->keys * width, group, a->keys, width, &a->dk, head_at(&a->dk, b, kv), a->dtype);
      sum_heads(parts + tasks * a->keys * width + first * a->keys * values, group, a->keys, values, &a->dv,
                head_at(&a->dv, b, kv), a->dtype);
    }
  }
  return failed ? -1 : 0;
}
