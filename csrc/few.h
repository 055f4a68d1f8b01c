// Few rows times a weight: y (m, rows) = x (m, columns) W^T for the handful of rows that are decoded together.
//
// Such a product is one pass over the weight's memory. Each thread reads a contiguous part of the rows, and
// every 32 weights are taken from their codes into registers once for up to 8 rows of x. Codes come out of their
// bytes in another order than that of the columns, so x is put into that order before.
//
// The sum of a row does not depend on the other rows of x, nor on threads: a chunk of columns is summed in one
// chain, times its scale, into VW partial sums.

#include "few_chunks.h"

// How a weight is read.
typedef struct {
  const graft_weight *weight;
  int kind, chunk;
  int decoded;         // no kind fits: its rows are decoded to floats first
  int fixed;           // codes of 4 or 8 bits times x in fixed point
  int64_t row_bytes;
  const float *levels; // of `table`
  nibbles table;
} few_plan;

// like: the plan of another weight, whose tables are taken over where they are the same; or NULL.
// fixed: whether fixed point will do.
static few_plan few_planned(const graft_weight *w, const few_plan *like, int fixed) {
  static const float whole[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static const float around_0[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  few_plan p = {.weight = w, .chunk = CHUNK};
  int packed = w->kind == W_LEVELS4 || w->kind == W_GROUPS, nibble = w->kind == W_LEVELS4 || w->bits == 4;
  p.decoded = packed && (w->block % GROUP || !(nibble || w->bits == 8));
  if (p.decoded) {
    p.row_bytes = 4 * w->columns;
    return p;
  }
  if (packed && w->block % CHUNK) p.chunk = GROUP;
  if (w->kind <= W_FP16) p.kind = w->kind;
  else if (w->kind == W_INT8) p.kind = F_INT8, p.fixed = FIXED && fixed;
  else if (!nibble) p.kind = F_UINT8;
  else {
    p.fixed = FIXED && fixed;
    p.levels = w->kind == W_LEVELS4 ? w->levels : p.fixed ? around_0 : whole;
    if (like && like->levels == p.levels) {
      p.table = like->table, p.kind = like->kind;
    } else {
      p.table = nibbles_of(p.levels, w->kind == W_LEVELS4 ? LEVEL_MOST : 8), p.kind = F_SHORT;
      for (int i = 0; i < 16; i++)
        if (bf16_to_float(float_to_bf16(p.levels[i])) != p.levels[i]) p.kind = F_NIBBLE;
    }
  }
  p.row_bytes = few_bytes(p.kind, w->columns + (w->columns & (nibble && packed)));
  return p;
}

INLINE int few_nibbles(const few_plan *p) { return p->kind == F_NIBBLE || p->kind == F_SHORT; }

// x in the orders that weights want: groups of up to FEW rows, in each of them CHUNK columns of every row, then the
// next CHUNK columns; 0 beyond the columns.
typedef struct {
  float *plain;       // the columns as they are
  float *nibbles;     // in the order in which 4-bit codes are decoded, or NULL
  float *sums;        // (m, padded / GROUP): of every 32 columns, or NULL
  int16_t *fixed;     // in fixed point and the order of 4-bit codes in it, or NULL
  int16_t *whole;     // in fixed point and the order of the columns, or NULL
  float *units;       // of both: of the rows of a group, (padded / CHUNK, rows)
  int levels;         // whether some weight of `fixed` has levels, not whole codes
  int64_t m, padded;
} few_x;

INLINE int64_t few_padded(int64_t columns) { return (columns + CHUNK - 1) / CHUNK * CHUNK; }

// Where a column of a row stands.
INLINE int64_t few_at(const few_x *x, int64_t row, int64_t column) {
  int64_t top = row / FEW * FEW, rows = least(FEW, x->m - top);
  return top * x->padded + column / CHUNK * CHUNK * rows + (row - top) * CHUNK + column % CHUNK;
}

// Where the unit of a chunk of a row stands.
INLINE int64_t few_unit_at(const few_x *x, int64_t row, int64_t chunk) {
  int64_t top = row / FEW * FEW, rows = least(FEW, x->m - top);
  return top * (x->padded / CHUNK) + chunk * rows + row - top;
}

// vf_sum, by the same additions, with less on the way.
INLINE float few_sum(vf a) {
#if defined(AVX512) || defined(AVX2)
  __m256 whole;
#if defined(LANES)
  float parts[VW];
  vf_store(parts, a);
  whole = _mm256_add_ps(_mm256_loadu_ps(parts), _mm256_loadu_ps(parts + 8));
#else
  whole = (__m256)a;
#endif
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(whole), _mm256_extractf128_ps(whole, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
#else
  return vf_sum(a);
#endif
}

// A chunk in fixed point.
static void few_fix(const few_x *x, int64_t row, int64_t from) {
  int64_t at = few_at(x, row, from);
  vi top = {0};  // bits: those of a NaN are the largest, and make the unit one
  for (int i = 0; i < CHUNK; i += VW) top = vi_max(top, (vi)vf_abs(vf_load(x->plain + at + i)));
  float most = vi_top_float(top), units = most > 0 ? X_MOST / most : 0;
#if defined(LANES)
  for (int g = 0; g < CHUNK && x->levels; g += GROUP) {
    float sum = few_sum(vf_abs(vf_load(x->plain + at + g)) + vf_abs(vf_load(x->plain + at + g + VW)));
    if (sum * units > SUM_MOST) units = SUM_MOST / sum;
  }
  for (int i = 0; i < CHUNK; i += VW) {
    vi whole = vf_round(vf_load(x->plain + at + i) * vf_set(units));
    if (x->fixed) lanes_store(x->fixed + at + i, whole, 4);
    if (x->whole) lanes_store(x->whole + at + i, whole, 2);
  }
#else
  for (int i = 0; i < CHUNK; i += VW) {
    vi whole = vf_round(vf_load(x->plain + at + i) * vf_set(units));
    for (int j = 0; j < VW; j++) {
      if (x->fixed) x->fixed[at + fixed_place(i + j)] = (int16_t)whole[j];
      if (x->whole) x->whole[at + i + j] = (int16_t)whole[j];
    }
  }
#endif
  x->units[few_unit_at(x, row, from / CHUNK)] = units > 0 ? 1 / units : most;
}

// Make the other orders of columns [from, to) of one row; from and to are multiples of CHUNK.
static void few_arrange(const few_x *x, int64_t row, int64_t from, int64_t to) {
  for (int64_t c = from; c < to; c += GROUP) {
    int64_t at = few_at(x, row, c);
    const float *plain = x->plain + at;
    if (x->nibbles)
      for (int i = 0; i < GROUP; i++) x->nibbles[at + nibble_place(i)] = plain[i];
    if (x->sums) {
      vf sum = vf_load(plain);
      for (int i = VW; i < GROUP; i += VW) sum += vf_load(plain + i);
      x->sums[(row * x->padded + c) / GROUP] = vf_sum(sum);
    }
    if ((x->fixed || x->whole) && c % CHUNK == 0) few_fix(x, row, c);
  }
}

static _Thread_local arena few_own;

// Write n halves as floats, each `times` times, but `room` of them at most.
INLINE void few_halves(const uint16_t *halves, int64_t n, int64_t times, int64_t room, float *out) {
  if (times == 1) {
    int64_t i = 0;
    for (; i + VW <= n; i += VW) vf_store(out + i, load_as(halves, i, FP16));
    for (; i < n; i++) out[i] = fp16_to_float(halves[i]);
    return;
  }
  for (int64_t i = 0, at = 0; i < n; i++) {
    float value = fp16_to_float(halves[i]);
    for (int64_t j = 0; j < times && at < room; j++) out[at++] = value;
  }
}

// How often a block's scale counts: for so many chunks.
INLINE int64_t few_times(const few_plan *p) { return p->weight->block / p->chunk; }

// Write the scales of every chunk of `count` rows, few_times of each block, and the minimum of every 32 columns (0
// beyond the columns), `groups` of a row. In fixed point codes are 8 less, so that the rounding of x counts less, and
// minima 8 scales more.
static void few_constants(const few_plan *p, int64_t row, int64_t count, int64_t groups, float *scales, float *minima) {
  const graft_weight *w = p->weight;
  int64_t blocks = (w->columns + w->block - 1) / w->block, first = row * blocks, n = count * blocks;
  int64_t times = few_times(p);
  if (w->kind == W_GROUPS) {
    few_halves(w->scale + first, n, times, n * times, scales);
    int64_t filled = least(groups, blocks * (w->block / GROUP));
    for (int64_t r = 0; r < count; r++, minima += groups, scales += blocks * times) {
      few_halves(w->minimum + first + r * blocks, blocks, w->block / GROUP, filled, minima);
      for (int64_t g = 0; g < filled && p->fixed && few_nibbles(p); g++) minima[g] += 8 * scales[g * GROUP / p->chunk];
      memset(minima + filled, 0, sizeof(float) * (size_t)(groups - filled));
    }
    return;
  }
  float *out = scales + n * (times - 1);  // spread from behind
  if (!w->nested_levels) memcpy(out, (const float *)w->absmax + first, sizeof(float) * (size_t)n);
  const uint8_t *codes = (const uint8_t *)w->absmax + first;
  for (int64_t b = 0; b < n && w->nested_levels;) {
    int64_t group = (first + b) / w->nested_group, end = least(n, (group + 1) * w->nested_group - first);
    float absmax = w->nested_absmax[group], offset = w->nested_offset;
    for (; b < end; b++) out[b] = w->nested_levels[codes[b]] * absmax + offset;
  }
  for (int64_t b = 0; b < n && times > 1; b++)
    for (int64_t i = 0; i < times; i++) scales[b * times + i] = out[b];
}

// Some rows of W: their codes, but for those that are decoded, and where their constants lie.
// chunks, groups: scales and minima of a row.  down, along: see `few_run`.
typedef struct {
  const uint8_t *codes;
  const float *scales, *minima;
  float *decoded;
  int64_t chunks, groups, down, along;
} few_space;

// x from `at` on, in the order that a weight wants.
INLINE const void *few_numbers(const few_plan *p, const few_x *x, int64_t at) {
  if (p->fixed) return (p->kind == F_INT8 ? x->whole : x->fixed) + at;
  return (few_nibbles(p) ? x->nibbles : x->plain) + at;
}

#if defined(LANES)
// Rows [top, top + m) of x, of one group, times up to LANES rows of W: (m, LANES).
static void lanes_tile(const few_plan *p, const few_x *x, int64_t top, int m, int64_t first, int count, const few_space *s,
                       vf *total) {
  const graft_weight *w = p->weight;
  int64_t together = least(FEW, x->m - top / FEW * FEW);
  few_run run = {
      .rows = LANES, .row_bytes = p->row_bytes, .codes = s->codes, .scales = s->scales, .down = LANES * s->chunks,
      .x = few_numbers(p, x, few_at(x, top, 0)), .units = x->units + few_unit_at(x, top, 0), .step = together * CHUNK,
      .apart = together, .columns = w->columns, .total = total};
  memset(total, 0, sizeof(vf) * (size_t)m);
  fixed_functions[p->kind == F_INT8 ? 2 : p->chunk == CHUNK][m - 1](&p->table, &run);
  vf factor = vf_set(p->kind == F_INT8 ? 1.0f / 127 : p->table.unit);
  if (p->kind == F_INT8) factor *= vf_load_n((const float *)w->absmax + first, count);
  for (int i = 0; i < m; i++) total[i] *= factor;
  for (int64_t g = 0; g < x->padded / GROUP && s->minima; g++)
    for (int i = 0; i < m; i++)
      total[i] = vf_fma(vf_load(s->minima + g * LANES), vf_set(x->sums[(top + i) * x->padded / GROUP + g]), total[i]);
}
#endif

// The partial sums of rows [top, top + m) of x, of one group, with up to FEW_TILE rows of W: (count, m).
static void few_tile(const few_plan *p, const few_x *x, int64_t top, int m, int count, const few_space *s, vf *total) {
  const graft_weight *w = p->weight;
  int64_t together = least(FEW, x->m - top / FEW * FEW);
  int64_t part = FEW_CACHED / m / CHUNK * CHUNK;
  const uint8_t *codes = p->decoded ? (const uint8_t *)s->decoded : s->codes;
  few_function *run = few_functions[p->chunk == CHUNK][p->kind][m - 1];
#if FIXED && !defined(LANES)
  if (p->fixed) run = fixed_functions[p->kind == F_INT8 ? 2 : p->chunk == CHUNK][m - 1];
#endif
  memset(total, 0, sizeof(vf) * (size_t)(m * count));
  for (int64_t from = 0; from < w->columns; from += part) {
    int64_t to = least(from + part, w->columns), even = to / CHUNK * CHUNK;
    few_run of = {
        .rows = count, .row_bytes = p->row_bytes, .down = s->down, .along = s->along,
        .codes = codes + few_bytes(p->kind, from), .scales = s->scales ? s->scales + from / p->chunk * s->along : 0,
        .step = together * CHUNK, .apart = together, .columns = even - from, .total = total,
        .x = few_numbers(p, x, few_at(x, top, from))};
    if (p->fixed) of.units = x->units + few_unit_at(x, top, from / CHUNK);
    run(&p->table, &of);
    if (even == to) continue;
    uint8_t rest[4 * CHUNK] = {0};  // the rest of a row, as a whole chunk
    few_run last = of;
    last.rows = 1, last.columns = CHUNK, last.codes = rest;
    last.x = few_numbers(p, x, few_at(x, top, even));
    if (p->fixed) last.units = x->units + few_unit_at(x, top, even / CHUNK);
    for (int r = 0; r < count; r++, last.total += m) {
      int64_t before = few_bytes(p->kind, even);
      memcpy(rest, codes + r * p->row_bytes + before, (size_t)(p->row_bytes - before));
      float scales[2] = {0};  // of the parts of this chunk; a row may end before the second
      for (int64_t c = even / p->chunk, i = 0; s->scales && c + i < s->chunks && i < 2; i++)
        scales[i] = s->scales[r * s->down + (c + i) * s->along];
      if (s->scales) last.scales = scales, last.along = 1;
      run(&p->table, &last);
    }
  }
#if FIXED && !defined(LANES)
  for (int i = 0; i < m * count && p->fixed && few_nibbles(p); i++) total[i] *= vf_set(p->table.unit);
#endif
  for (int r = 0; r < count && s->minima; r++)
    for (int i = 0; i < m; i++)
      for (int64_t g = 0; g < s->groups; g += VW) {
        const float *sums = x->sums + (top + i) * x->padded / GROUP + g;
        int64_t left = x->padded / GROUP - g;
        vf of = left >= VW ? vf_load(sums) : vf_load_n(sums, left), minimum = vf_load(s->minima + r * s->groups + g);
        total[r * m + i] = vf_fma(minimum, of, total[r * m + i]);
      }
}

// Some rows of x, [top, end).
typedef struct {
  int64_t top, end;
} few_span;

#if defined(LANES)
// y[i * stride + r] = row i of x, of a span, times row first + r of W, of up to LANES.  room: for the constants.
static void lanes_rows(const few_plan *p, const few_x *x, few_span span, int64_t first, int count, const few_space *s,
                       float *room, float *y, int64_t stride) {
  few_space beside = {.codes = s->codes, .chunks = s->chunks};  // the constants of each row in a lane
  if (s->scales) beside.scales = p->weight->tiled ? s->scales : lanes_apart(s->scales, count, s->chunks, room);
  if (s->minima) beside.minima = lanes_apart(s->minima, count, s->groups, room + LANES * few_padded(s->chunks));
  for (int64_t top = span.top, end; top < span.end; top = end) {
    end = least(span.end, (top / FEW + 1) * FEW);
    vf total[FEW];
    lanes_tile(p, x, top, (int)(end - top), first, count, &beside, total);
    for (int64_t i = top; i < end; i++) vf_store_n(y + i * stride, total[i - top], count);
  }
}
#endif

// y[i * stride + row - first] = or += row i of x, of a span, times rows [first, last) of W; in fixed point it is =.
// Of a weight in tiles, `first` is the first row of one. Returns 0, or -1 without memory.
static int few_rows(const few_plan *p, const few_x *x, few_span span, int64_t first, int64_t last, float *y,
                    int64_t stride, int add) {
  const graft_weight *w = p->weight;
  int scaled = !p->decoded && (w->kind == W_LEVELS4 || w->kind == W_GROUPS), grouped = scaled && w->kind == W_GROUPS;
  few_space s = {0};
  if (scaled) s.chunks = (w->columns + w->block - 1) / w->block * few_times(p);  // a last block is seen whole
  if (w->tiled) s.chunks = x->padded / p->chunk;
  s.down = w->tiled ? 1 : s.chunks, s.along = w->tiled ? FEW_TILE : 1;
  if (grouped) s.groups = (x->padded / GROUP + VW - 1) / VW * VW;
  int64_t beside = p->fixed ? few_padded(s.chunks) + s.groups : 0;  // the constants of a row once more, for `lanes_rows`
  int64_t rest = p->fixed && (last - first) % FEW_TILE ? FEW_TILE * p->row_bytes / 4 : 0;  // codes of a last tile
  size_t numbers = (size_t)(FEW_TILE * (s.chunks + s.groups + beside) + x->padded + rest);
  float *own = scratch_of(&few_own, sizeof(float) * numbers + sizeof(vf) * FEW * FEW_TILE);
  if (!own) return -1;
  vf *total = (vf *)own;
  float *scales = own + VW * FEW * FEW_TILE, *minima = scales + FEW_TILE * s.chunks;
  s.decoded = minima + FEW_TILE * s.groups;
  if (scaled) s.scales = scales;
  if (grouped) s.minima = minima;
  int tile = p->decoded ? 1 : FEW_TILE, plain = !grouped && !w->nested_levels && few_times(p) == 1;
  int ready = scaled && (w->tiled || plain);
  for (int64_t at = first; at < last; at += tile) {
    int count = (int)least(tile, last - at);
    s.codes = (const uint8_t *)w->codes + at * p->row_bytes;
    if (p->decoded) decode_row(w, at, 0, w->columns, s.decoded);
    if (ready) s.scales = (const float *)w->absmax + at * s.chunks;
    else if (scaled) few_constants(p, at, count, s.groups, scales, minima);
#if defined(LANES)
    if (p->fixed) {
      float *room = s.decoded + x->padded;
      if (count < LANES) s.codes = memcpy(room + FEW_TILE * beside, s.codes, (size_t)(count * p->row_bytes));
      lanes_rows(p, x, span, at, count, &s, room, y + at - first, stride);
      continue;
    }
#endif
    for (int64_t top = span.top, end; top < span.end; top = end) {
      end = least(span.end, (top / FEW + 1) * FEW);
      int m = (int)(end - top);
      few_tile(p, x, top, m, count, &s, total);
      for (int r = 0; r < count; r++) {
        float factor = w->kind == W_INT8 ? ((const float *)w->absmax)[at + r] / 127 : 1.0f;
        for (int i = 0; i < m; i++) {
          float sum = few_sum(total[r * m + i]) * factor, *out = y + (top + i) * stride + at + r - first;
          *out = add ? *out + sum : sum;
        }
      }
    }
  }
  return 0;
}

// Up to VW numbers of x that stand `step` apart.
static vf load_apart(const graft_term *t, int64_t at, int64_t count) {
  float row[VW] = {0};
  for (int64_t i = 0; i < count; i++) row[i] = load_n_as(t->x, at + i * t->step, 1, t->dtype)[0];
  return vf_load(row);
}

// Put the rows of a term into the orders that its weight wants; returns the memory behind them.
static float *few_order(const graft_term *t, const few_plan *p, int64_t m, float *memory, few_x *x) {
  int64_t n = t->weight->columns, numbers = m * few_padded(n);
  *x = (few_x){.plain = memory, .m = m, .padded = few_padded(n)};
  memory += numbers;
  if (few_nibbles(p)) x->nibbles = memory, memory += numbers;
  if (t->weight->kind == W_GROUPS) x->sums = memory, memory += numbers / GROUP;
  for (int64_t r = 0; r < m; r++) {
    for (int64_t c = 0; c < x->padded; c += VW) {
      vf v = c >= n          ? vf_zero()
             : t->step == 1 ? load_n_as(t->x, r * t->stride + c, least(VW, n - c), t->dtype)
                             : load_apart(t, r * t->stride + c * t->step, least(VW, n - c));
      vf_store(x->plain + few_at(x, r, c), v * vf_set(t->scale));
    }
    few_arrange(x, r, 0, x->padded);
  }
  return memory;
}

// `product` of few rows: x is put in order once, then each thread takes a contiguous part of y's columns.
static _Thread_local arena few_ordered;

static int few_product(const graft_term *terms, int count, int64_t m, int64_t n, const float *bias, int onto,
                       void *y, int dtype, int64_t stride, int threads) {
  few_plan plans[8];
  few_x x[8];
  int64_t numbers = 0;
  for (int t = 0; t < count; t++) numbers += m * few_padded(terms[t].weight->columns) * 3;
  float *own = scratch_of(&few_ordered, sizeof(float) * (size_t)numbers);
  if (!own) return -1;
  for (int t = 0; t < count; t++) {
    plans[t] = few_planned(terms[t].weight, t ? &plans[t - 1] : 0, 0);
    own = few_order(&terms[t], &plans[t], m, own, &x[t]);
  }
  int64_t strips = (n + COLUMNS - 1) / COLUMNS;
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t strip = 0; strip < strips; strip++) {
    float sums[FEW_MOST * COLUMNS];
    int64_t first = strip * COLUMNS, width = least(COLUMNS, n - first);
    for (int t = 0; t < count; t++)
      if (few_rows(&plans[t], &x[t], (few_span){0, m}, first, first + width, sums, COLUMNS, t > 0)) failed = 1;
    finish(sums, COLUMNS, m, width, bias ? bias + first : 0, onto, y, dtype, first, stride);
  }
  return failed ? -1 : 0;
}
