// Flash attention of bf16 by tiles: the same blocks as in attention.h, whose products are made of tiles.
//
// Scores, probabilities and sums stay floats; probabilities and their gradients are rounded to bf16 for the next
// product, as every attention in bf16 rounds them. An operand on the left lies in rows; one on the right in words
// that hold two numbers of the inner dimension:
//
//   S^T (keys, queries) = K Q^T            O^T (width, queries) += V^T P^T
//   dP^T = V dO^T                          dQ^T (width, queries) += K^T dS^T
//   dV (keys, width) += P^T dO             dK (keys, width) += dS^T Q

#if defined(TILES)
#define SIDE 32  // of a square that tiles make at one time: rows, columns, and numbers of a step

// A factor that is not above 0 would turn the order of scores around.
static int by_tiles(const graft_attention *a) { return a->dtype == BF16 && a->scale > 0; }

// c (rows, columns) = or += x (rows, inner) times words w (inner / 2, columns); all sizes are multiples of SIDE.
static void multiply_tiles(const uint16_t *x, int64_t x_row, int64_t rows, const uint32_t *w, int64_t w_row,
                           int64_t columns, int64_t inner, float *c, int64_t c_row, int add) {
  for (int64_t r = 0; r < rows; r += SIDE)
    for (int64_t j = 0; j < columns; j += SIDE) {
      tiled left = {x + r * x_row, 2 * x_row, 2 * SIDE}, right = {w + j, 4 * w_row, 2 * SIDE * w_row};
      tiles_product(left, right, inner / SIDE, 1, c + r * c_row + j, 4 * c_row, add);
    }
}

// Copy `count` rows of bf16, `padded` rows of `wide` numbers; the rest is 0.
static void copy_rows(const graft_heads *t, int64_t at, int64_t count, int64_t padded, int64_t width, int64_t wide,
                      uint16_t *out) {
  for (int64_t r = 0; r < padded; r++, out += wide) {
    int64_t n = r < count ? width : 0;
    memcpy(out, (const uint16_t *)t->at + at + r * t->row, 2 * (size_t)n);
    memset(out + n, 0, 2 * (size_t)(wide - n));
  }
}

// Rows (count, wide) as words (wide / 2, row): pairs of a row, one row's beside the other's.
static void words_of_rows(const uint16_t *rows, int64_t count, int64_t wide, uint32_t *out, int64_t row) {
  for (int64_t r = 0; r < count; r += VW)
    for (int64_t k = 0; k < wide; k += 2 * VW) {
      vf tile[VW];
      for (int i = 0; i < VW; i++) memcpy(&tile[i], rows + (r + i) * wide + k, sizeof tile[i]);
      vf_transpose(tile);
      for (int i = 0; i < VW; i++) memcpy(out + (k / 2 + i) * row + r, &tile[i], sizeof tile[i]);
    }
}

// Two vectors of numbers in bf16 as one of words.
INLINE __m512i words(__m256i upper, __m256i lower) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(upper), _mm512_slli_epi32(_mm512_cvtepu16_epi32(lower), 16));
}
INLINE __m256i rounded(vf a) { return (__m256i)_mm512_cvtneps_pbh((__m512)a); }

// Rows (count, wide) as words (count / 2, wide): pairs of a column.
static void words_of_columns(const uint16_t *rows, int64_t count, int64_t wide, uint32_t *out) {
  for (int64_t r = 0; r < count; r += 2, rows += 2 * wide, out += wide)
    for (int64_t k = 0; k < wide; k += VW) {
      __m256i a = _mm256_loadu_si256((const __m256i *)(rows + k));
      __m256i b = _mm256_loadu_si256((const __m256i *)(rows + wide + k));
      _mm512_storeu_si512(out + k, words(a, b));
    }
}

// Rows (count, wide) turned: (wide, stride).
static void turn_rows(const uint16_t *rows, int64_t count, int64_t wide, uint16_t *out, int64_t stride) {
  for (int64_t r = 0; r < count; r += 2 * VW)
    for (int64_t k = 0; k < wide; k += VW) {
      vf tile[VW];
      for (int i = 0; i < VW; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(rows + (r + 2 * i) * wide + k));
        __m256i b = _mm256_loadu_si256((const __m256i *)(rows + (r + 2 * i + 1) * wide + k));
        tile[i] = (vf)words(a, b);
      }
      vf_transpose(tile);
      for (int i = 0; i < VW; i++) memcpy(out + (k + i) * stride + r, &tile[i], sizeof tile[i]);
    }
}

// As `soften`, of scores that are not scaled yet. Writes e^(score - top) as words (count / 2, NR).
static void soften_to_words(const float *s, int64_t count, float scale, float *top, float *sum, float *o, int64_t tall,
                            uint32_t *out) {
  for (int j = 0; j < NR; j += VW) {
    vf before = vf_load(top + j), peak = vf_set(-INFINITY), total = vf_zero(), factor = vf_set(scale);
    for (int64_t r = 0; r < count; r++) peak = vf_max(peak, vf_load(s + r * NR + j));
    peak = vf_max(before, peak * factor);
    for (int64_t r = 0; r < count; r += 2) {
      vf a = exp_down(vf_fma(vf_load(s + r * NR + j), factor, -peak));
      vf b = exp_down(vf_fma(vf_load(s + (r + 1) * NR + j), factor, -peak));
      total += a + b;
      _mm512_storeu_si512(out + r / 2 * NR + j, words(rounded(a), rounded(b)));
    }
    scale_down(before, peak, total, top + j, sum + j, o + j, tall);
  }
}

static _Thread_local arena tiles_own;

typedef struct {
  uint16_t *k, *v, *turned, *rows;  // keys (keys, wide); values, and turned (tall, keys); queries (NR, wide)
  uint32_t *q, *p;                  // words (wide / 2, NR), (KEYS / 2, NR)
  float *s, *o;                     // (KEYS, NR), (tall, NR)
} tiles_forward;

// Scratch memory is handed out in whole cache lines.
static void *part(char **at, int64_t bytes) {
  void *found = *at;
  *at += (bytes + 63) & ~(int64_t)63;
  return found;
}

static int tiles_forward_memory(int64_t keys, int64_t wide, int64_t tall, tiles_forward *m) {
  char *at = scratch_of(&tiles_own, (size_t)(2 * keys * (wide + 2 * tall) + NR * 4 * (wide + 2 * KEYS + tall) + 1024));
  if (!at) return -1;
  m->k = part(&at, 2 * keys * wide), m->v = part(&at, 2 * keys * tall), m->turned = part(&at, 2 * keys * tall);
  m->rows = part(&at, 2 * NR * wide), m->q = part(&at, 2 * NR * wide), m->p = part(&at, 2 * NR * KEYS);
  m->s = part(&at, 4 * NR * KEYS), m->o = part(&at, 4 * NR * tall);
  return 0;
}

static void attend_by_tiles(const graft_attention *a, const tiles_forward *m, int64_t b, int64_t h, int64_t query,
                            int64_t keys, int64_t wide, int64_t tall) {
  int64_t count = least(NR, a->queries - query);
  float top[NR], sum[NR];
  sights see;
  look(a, b, query, &see);
  copy_rows(&a->q, head_at(&a->q, b, h) + query * a->q.row, count, NR, a->width, wide, m->rows);
  words_of_rows(m->rows, NR, wide, m->q, NR);
  for (int i = 0; i < NR; i++) top[i] = -1e30f, sum[i] = 0;
  memset(m->o, 0, sizeof(float) * (size_t)(tall * NR));
  for (int64_t key = see.low / SIDE * SIDE; key < see.high; key += KEYS) {
    int64_t n = least(KEYS, up(see.high - key, SIDE));
    multiply_tiles(m->k + key * wide, wide, n, m->q, NR, NR, wide, m->s, NR, 0);
    if (key < see.from || key + n > see.to) hide(m->s, key, n, &see);
    soften_to_words(m->s, n, a->scale, top, sum, m->o, tall, m->p);
    multiply_tiles(m->turned + key, keys, tall, m->p, NR, NR, n, m->o, NR, 1);
  }
  float *lse = a->lse + (b * a->heads + h) * a->queries + query;
  for (int i = 0; i < count; i++) lse[i] = sum[i] > 0 ? top[i] + logf(sum[i]) : INFINITY;
  for (int i = 0; i < NR; i++) sum[i] = sum[i] > 0 ? 1 / sum[i] : 0;
  write_panel(m->o, count, a->value_width, sum, &a->o, head_at(&a->o, b, h) + query * a->o.row, a->dtype);
}

static int attention_by_tiles(const graft_attention *a, int threads) {
  int64_t blocks = (a->queries + NR - 1) / NR, group = a->heads / a->kv_heads, keys = up(a->keys, SIDE);
  int64_t wide = up(a->width, SIDE), tall = up(a->value_width, SIDE);
  int failed = 0;
#pragma omp parallel num_threads(crew(threads, a->batch * a->heads * a->queries * a->keys))
  {
    tiles_forward m = {0};
    int64_t held = -1;
    if (tiles_forward_memory(keys, wide, tall, &m)) failed = 1;
    tiles_begin();
#pragma omp for schedule(dynamic, 2)
    for (int64_t task = 0; task < a->batch * a->heads * blocks; task++) {
      if (failed) continue;
      int64_t b = task / (a->heads * blocks), h = task / blocks % a->heads, kv = h / group;
      if (held != b * a->kv_heads + kv) {
        held = b * a->kv_heads + kv;
        copy_rows(&a->k, head_at(&a->k, b, kv), a->keys, keys, a->width, wide, m.k);
        copy_rows(&a->v, head_at(&a->v, b, kv), a->keys, keys, a->value_width, tall, m.v);
        turn_rows(m.v, keys, tall, m.turned, keys);
      }
      attend_by_tiles(a, &m, b, h, task % blocks * NR, keys, wide, tall);
    }
    tiles_end();
  }
  return failed ? -1 : 0;
}

// What backward holds of one head. Queries are padded to whole panels, keys to a whole block.
typedef struct {
  uint16_t *rows;                   // of whatever is read
  uint32_t *q, *g;                  // queries and the gradient of the output: words (wide / 2, NR) of each panel
  uint32_t *q_pairs, *g_pairs;      // and words (NR / 2, wide) of each panel
  float *dq;                        // (wide, NR) of each panel
  float *lse, *delta;               // (queries,)
  sights *see;                      // one a panel
  uint16_t *k, *v, *turned;         // of one block: (KEYS, wide), (KEYS, tall), keys turned (wide, KEYS)
  float *dk, *dv;                   // (KEYS, wide), (KEYS, tall)
  float *s, *dp;                    // (KEYS, NR)
  uint16_t *p, *ds;                 // rows (KEYS, NR)
  uint32_t *ds_words;               // (KEYS / 2, NR)
} tiles_backward;

static int tiles_backward_memory(int64_t queries, int64_t wide, int64_t tall, tiles_backward *m) {
  int64_t both = wide + tall, most_rows = most(queries, KEYS) * most(wide, tall);
  int64_t bytes = 2 * most_rows + 4 * queries * both + 4 * queries * (wide + 2) + KEYS * (4 * wide + 2 * tall) +
                  4 * KEYS * both + KEYS * NR * 14 + queries / NR * (int64_t)sizeof(sights) + 2048;
  char *at = scratch_of(&tiles_own, (size_t)bytes);
  if (!at) return -1;
  m->rows = part(&at, 2 * most_rows);
  m->q = part(&at, 2 * queries * wide), m->g = part(&at, 2 * queries * tall);
  m->q_pairs = part(&at, 2 * queries * wide), m->g_pairs = part(&at, 2 * queries * tall);
  m->dq = part(&at, 4 * queries * wide), m->lse = part(&at, 4 * queries), m->delta = part(&at, 4 * queries);
  m->k = part(&at, 2 * KEYS * wide), m->v = part(&at, 2 * KEYS * tall), m->turned = part(&at, 2 * KEYS * wide);
  m->dk = part(&at, 4 * KEYS * wide), m->dv = part(&at, 4 * KEYS * tall);
  m->s = part(&at, 4 * KEYS * NR), m->dp = part(&at, 4 * KEYS * NR);
  m->p = part(&at, 2 * KEYS * NR), m->ds = part(&at, 2 * KEYS * NR), m->ds_words = part(&at, 2 * KEYS * NR);
  m->see = part(&at, queries / NR * (int64_t)sizeof(sights));
  return 0;
}

// Read rows of queries, or of a gradient, in both forms.
static void read_panels(const graft_heads *t, int64_t at, int64_t count, int64_t queries, int64_t width, int64_t wide,
                        uint16_t *rows, uint32_t *panels, uint32_t *pairs) {
  copy_rows(t, at, count, queries, width, wide, rows);
  for (int64_t i = 0; i < queries; i += NR) words_of_rows(rows + i * wide, NR, wide, panels + i * wide / 2, NR);
  words_of_columns(rows, queries, wide, pairs);
}

// From scores and the gradients of probabilities, both (count, NR), to p and ds = p * (dp - delta) in bf16.
static void harden_to_rows(const tiles_backward *m, int64_t from, int64_t to, float scale, const float *lse,
                           const float *delta) {
  vf factor = vf_set(scale);
  for (int j = 0; j < NR; j += VW) {
    vf log_sum = vf_load(lse + j), mean = vf_load(delta + j);
    for (int64_t r = from; r < to; r += 2) {
      __m256i ds[2];
      for (int64_t i = 0; i < 2; i++) {
        int64_t at = (r + i) * NR + j;
        vf p = exp_down(vf_fma(vf_load(m->s + at), factor, -log_sum));
        ds[i] = rounded(p * (vf_load(m->dp + at) - mean));
        _mm256_storeu_si256((__m256i *)(m->p + at), rounded(p));
        _mm256_storeu_si256((__m256i *)(m->ds + at), ds[i]);
      }
      _mm512_storeu_si512(m->ds_words + r / 2 * NR + j, words(ds[0], ds[1]));
    }
  }
}

// Write `count` rows (., wide) of floats times a factor.
static void write_rows(const float *rows, int64_t count, int64_t width, int64_t wide, float factor,
                       const graft_heads *t, int64_t at, int dtype) {
  for (int64_t r = 0; r < count; r++, rows += wide, at += t->row)
    for (int64_t i = 0; i < width; i += VW) {
      int64_t n = least(VW, width - i);
      vf v = vf_load(rows + i) * vf_set(factor);
      if (n == VW) store_as(t->at, at + i, v, dtype);
      else store_n_as(t->at, at + i, v, n, dtype);
    }
}

// As `backward_head`.
static int backward_head_by_tiles(const graft_attention *a, int64_t b, int64_t h, int64_t queries,
                                  const graft_heads *dk, const graft_heads *dv, int64_t dk_at, int64_t dv_at,
                                  int dtype) {
  int64_t wide = up(a->width, SIDE), tall = up(a->value_width, SIDE), kv = h / (a->heads / a->kv_heads);
  tiles_backward memory, *m = &memory;
  if (tiles_backward_memory(queries, wide, tall, m)) return -1;
  read_panels(&a->q, head_at(&a->q, b, h), a->queries, queries, a->width, wide, m->rows, m->q, m->q_pairs);
  read_panels(&a->d_o, head_at(&a->d_o, b, h), a->queries, queries, a->value_width, tall, m->rows, m->g, m->g_pairs);
  memset(m->dq, 0, sizeof(float) * (size_t)(queries * wide));
  for (int64_t i = 0; i < queries; i++) {
    m->lse[i] = i < a->queries ? a->lse[(b * a->heads + h) * a->queries + i] : INFINITY;
    m->delta[i] = i < a->queries ? output_times_gradient(a, b, h, i) : 0;
    if (i % NR == 0) look(a, b, i, &m->see[i / NR]);
  }
  for (int64_t key = 0; key < a->keys; key += KEYS) {
    int64_t n = least(KEYS, a->keys - key), padded = up(n, SIDE);
    copy_rows(&a->k, head_at(&a->k, b, kv) + key * a->k.row, n, padded, a->width, wide, m->k);
    copy_rows(&a->v, head_at(&a->v, b, kv) + key * a->v.row, n, padded, a->value_width, tall, m->v);
    turn_rows(m->k, padded, wide, m->turned, KEYS);
    memset(m->dk, 0, sizeof(float) * (size_t)(KEYS * wide));
    memset(m->dv, 0, sizeof(float) * (size_t)(KEYS * tall));
    for (int64_t i = 0; i < queries; i += NR) {
      const sights *see = &m->see[i / NR];
      int64_t from = most(0, see->low - key) / SIDE * SIDE;
      int64_t to = least(padded, up(most(0, see->high - key), SIDE)), seen = to - from;
      if (seen <= 0) continue;
      float *s = m->s + from * NR, *dp = m->dp + from * NR;
      multiply_tiles(m->k + from * wide, wide, seen, m->q + i * wide / 2, NR, NR, wide, s, NR, 0);
      multiply_tiles(m->v + from * tall, tall, seen, m->g + i * tall / 2, NR, NR, tall, dp, NR, 0);
      if (key + from < see->from || key + to > see->to) hide(s, key + from, seen, see);
      harden_to_rows(m, from, to, a->scale, m->lse + i, m->delta + i);
      multiply_tiles(m->turned + from, KEYS, wide, m->ds_words + from / 2 * NR, NR, NR, seen, m->dq + i * wide, NR, 1);
      multiply_tiles(m->p + from * NR, NR, seen, m->g_pairs + i * tall / 2, tall, tall, NR, m->dv + from * tall, tall,
                     1);
      multiply_tiles(m->ds + from * NR, NR, seen, m->q_pairs + i * wide / 2, wide, wide, NR, m->dk + from * wide, wide,
                     1);
    }
    write_rows(m->dk, n, a->width, wide, a->scale, dk, dk_at + key * dk->row, dtype);
    write_rows(m->dv, n, a->value_width, tall, 1, dv, dv_at + key * dv->row, dtype);
  }
  float scale[NR];
  for (int i = 0; i < NR; i++) scale[i] = a->scale;
  for (int64_t query = 0; query < queries; query += NR)
    write_panel(m->dq + query * wide, least(NR, a->queries - query), a->width, scale, &a->dq,
                head_at(&a->dq, b, h) + query * a->dq.row, a->dtype);
  return 0;
}

#else
#define by_tiles(a) 0
#define attention_by_tiles(...) 0
#define backward_head_by_tiles(...) 0
#endif
