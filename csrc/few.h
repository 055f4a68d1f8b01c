// Few rows times a weight: y (m, rows) = x (m, columns) W^T for the handful of rows that are decoded together.
//
// Such a product is one pass over the weight's memory. Each thread reads a contiguous part of the rows, and
// every 32 weights are taken from their codes into registers once for up to 8 rows of x. Codes come out of their
// bytes in another order than that of the columns, so x is put into that order before.
//
// The sum of a row does not depend on the other rows of x, nor on threads: a chunk of columns is summed in one
// chain, times its scale, into VW partial sums.

#define FEW 8          // rows of x that share one decoding
#define FEW_MOST 16    // rows for which this beats the product of panels
#define FEW_TILE 16    // rows of W between two visits of the same part of x
#define FEW_CACHED 4096  // numbers of x that are worked on at one time: 16 KiB
#define GROUP 32       // weights that are decoded together
#define CHUNK 64       // columns whose sum is one chain: the usual block
#define AHEAD 1024     // bytes

// What a row of codes is made of.
enum { F_FP32, F_BF16, F_FP16, F_NIBBLE, F_SHORT, F_INT8, F_UINT8, F_KINDS };

// Levels of 4 bits, ready to be looked up.
typedef struct {
#if defined(AVX512)
  __m512 all;
#elif defined(AVX2)
  __m256i byte[4];  // the lowest, ..., the highest byte of each level, in both halves
#else
  float all[16];
#endif
} nibbles;

INLINE nibbles nibbles_of(const float *levels) {
  nibbles t;
#if defined(AVX512)
  t.all = _mm512_loadu_ps(levels);
#elif defined(AVX2)
  uint8_t bytes[4][16];
  for (int i = 0; i < 16; i++)
    for (int b = 0; b < 4; b++) bytes[b][i] = ((const uint8_t *)(levels + i))[b];
  for (int b = 0; b < 4; b++)
    t.byte[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes[b]));
#else
  memcpy(t.all, levels, sizeof t.all);
#endif
  return t;
}

// Where column c of 32 stands when 4-bit codes have been decoded.
INLINE int nibble_place(int c) {
#if defined(AVX512)
  return c % 2 * 16 + c / 2;
#elif defined(AVX2)
  return c / 8 * 8 + c % 2 * 4 + c % 8 / 2;
#else
  return c;
#endif
}

INLINE int64_t few_bytes(int kind, int64_t columns) {
  return kind == F_FP32 ? 4 * columns
         : kind == F_BF16 || kind == F_FP16 ? 2 * columns
         : kind == F_NIBBLE || kind == F_SHORT ? columns / 2
                                               : columns;
}

// 32 weights without their scale. F_SHORT: the lower half of every level's bits is 0.
INLINE void values32(int kind, const nibbles *t, const uint8_t *codes, vf w[GROUP / VW]) {
  if (kind <= F_FP16) {
    for (int j = 0; j < GROUP / VW; j++) w[j] = load_as(codes, j * VW, kind);
    return;
  }
  if (kind == F_INT8 || kind == F_UINT8) {
    for (int j = 0; j < GROUP / VW; j++) {
#if defined(AVX512)
      __m128i bytes = _mm_loadu_si128((const __m128i *)(codes + j * VW));
      w[j] = vf_float((vi)(kind == F_INT8 ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes)));
#elif defined(AVX2)
      __m128i bytes = _mm_loadl_epi64((const __m128i *)(codes + j * VW));
      w[j] = vf_float((vi)(kind == F_INT8 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)));
#else
      vi whole = {0};
      for (int i = 0; i < VW; i++) whole[i] = kind == F_INT8 ? (int8_t)codes[j * VW + i] : codes[j * VW + i];
      w[j] = vf_float(whole);
#endif
    }
    return;
  }
#if defined(AVX512)
  __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
  w[0] = (vf)_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), t->all);  // looks at 4 bits of each index
  w[1] = (vf)_mm512_permutexvar_ps(bytes, t->all);
#elif defined(AVX2)
  __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codes));
  bytes = _mm256_srlv_epi32(bytes, _mm256_setr_epi32(4, 4, 4, 4, 0, 0, 0, 0));  // even columns | odd ones
  bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
  __m256i low = _mm256_setzero_si256(), low2 = low;
  __m256i c = _mm256_shuffle_epi8(t->byte[2], bytes), d = _mm256_shuffle_epi8(t->byte[3], bytes);
  if (kind == F_NIBBLE) {
    __m256i a = _mm256_shuffle_epi8(t->byte[0], bytes), b = _mm256_shuffle_epi8(t->byte[1], bytes);
    low = _mm256_unpacklo_epi8(a, b), low2 = _mm256_unpackhi_epi8(a, b);
  }
  __m256i high = _mm256_unpacklo_epi8(c, d), high2 = _mm256_unpackhi_epi8(c, d);
  w[0] = (vf)_mm256_unpacklo_epi16(low, high);
  w[1] = (vf)_mm256_unpackhi_epi16(low, high);
  w[2] = (vf)_mm256_unpacklo_epi16(low2, high2);
  w[3] = (vf)_mm256_unpackhi_epi16(low2, high2);
#else
  for (int j = 0; j < GROUP / VW; j++) {
    float found[VW];
    for (int i = 0; i < VW; i += 2) {
      uint8_t byte = codes[(j * VW + i) / 2];
      found[i] = t->all[byte >> 4], found[i + 1] = t->all[byte & 15];
    }
    w[j] = vf_load(found);
  }
#endif
}

// total[i] += row i of x times a row of codes, chunk by chunk, each times its scale (NULL: 1).
// x: CHUNK columns of each row; `step` numbers further the next CHUNK columns.  columns: a multiple of CHUNK.
INLINE void few_chunks(int kind, int m, int chunk, const nibbles *t, const uint8_t *codes, const float *scales,
                       const float *x, int64_t step, int64_t columns, vf *total) {
  vf all[FEW];
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) all[i] = total[i];
  for (int64_t c = 0; c < columns; c += CHUNK, x += step) {
    __builtin_prefetch(codes + AHEAD);
    if (few_bytes(kind, CHUNK) > 64) __builtin_prefetch(codes + AHEAD + 64);
#pragma GCC unroll 2
    for (int from = 0; from < CHUNK; from += chunk) {
      vf sum[FEW];
#pragma GCC unroll 2
      for (int g = 0; g < chunk; g += GROUP) {
        vf w[GROUP / VW];
        values32(kind, t, codes, w);
        codes += few_bytes(kind, GROUP);
#pragma GCC unroll 8
        for (int j = 0; j < GROUP / VW; j++)
#pragma GCC unroll 8
          for (int i = 0; i < m; i++) {
            vf of = vf_load(x + i * CHUNK + from + g + j * VW);
            sum[i] = g + j ? vf_fma(w[j], of, sum[i]) : w[j] * of;
          }
      }
      vf scale = vf_set(scales ? *scales++ : 1.0f);
#pragma GCC unroll 8
      for (int i = 0; i < m; i++) all[i] = vf_fma(scale, sum[i], all[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) total[i] = all[i];
}

typedef void few_function(const nibbles *t, const uint8_t *codes, const float *scales, const float *x,
                          int64_t step, int64_t columns, vf *total);

#define FEW_OF(kind, chunk, m)                                                                                \
  static void few_##kind##_##chunk##_##m(const nibbles *t, const uint8_t *codes, const float *scales,         \
                                         const float *x, int64_t step, int64_t columns, vf *total) {          \
    few_chunks(kind, m, chunk, t, codes, scales, x, step, columns, total);                                    \
  }
#define FEW_ALL(kind, chunk)                                                                                  \
  FEW_OF(kind, chunk, 1) FEW_OF(kind, chunk, 2) FEW_OF(kind, chunk, 3) FEW_OF(kind, chunk, 4)                 \
  FEW_OF(kind, chunk, 5) FEW_OF(kind, chunk, 6) FEW_OF(kind, chunk, 7) FEW_OF(kind, chunk, 8)
#define FEW_LIST(kind, chunk)                                                                                 \
  {few_##kind##_##chunk##_1, few_##kind##_##chunk##_2, few_##kind##_##chunk##_3, few_##kind##_##chunk##_4,     \
   few_##kind##_##chunk##_5, few_##kind##_##chunk##_6, few_##kind##_##chunk##_7, few_##kind##_##chunk##_8}

FEW_ALL(F_FP32, 64) FEW_ALL(F_BF16, 64) FEW_ALL(F_FP16, 64) FEW_ALL(F_INT8, 64)
FEW_ALL(F_NIBBLE, 64) FEW_ALL(F_SHORT, 64) FEW_ALL(F_UINT8, 64)
FEW_ALL(F_NIBBLE, 32) FEW_ALL(F_SHORT, 32) FEW_ALL(F_UINT8, 32)

static few_function *const few_functions[2][F_KINDS][FEW] = {
    {[F_NIBBLE] = FEW_LIST(F_NIBBLE, 32), [F_SHORT] = FEW_LIST(F_SHORT, 32), [F_UINT8] = FEW_LIST(F_UINT8, 32)},
    {FEW_LIST(F_FP32, 64), FEW_LIST(F_BF16, 64), FEW_LIST(F_FP16, 64), FEW_LIST(F_NIBBLE, 64),
     FEW_LIST(F_SHORT, 64), FEW_LIST(F_INT8, 64), FEW_LIST(F_UINT8, 64)}};

// How a weight is read.
typedef struct {
  const graft_weight *weight;
  int kind, chunk;
  int decoded;         // no kind fits: its rows are decoded to floats first
  int64_t row_bytes;
  const float *levels; // of `table`
  nibbles table;
} few_plan;

// like: the plan of another weight, whose tables are taken over where they are the same; or NULL.
static few_plan few_planned(const graft_weight *w, const few_plan *like) {
  static const float whole[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  few_plan p = {.weight = w, .chunk = CHUNK};
  int packed = w->kind == W_LEVELS4 || w->kind == W_GROUPS, nibble = w->kind == W_LEVELS4 || w->bits == 4;
  p.decoded = packed && (w->block % GROUP || !(nibble || w->bits == 8));
  if (p.decoded) {
    p.row_bytes = 4 * w->columns;
    return p;
  }
  if (packed && w->block % CHUNK) p.chunk = GROUP;
  if (w->kind <= W_FP16) p.kind = w->kind;
  else if (w->kind == W_INT8) p.kind = F_INT8;
  else if (!nibble) p.kind = F_UINT8;
  else {
    p.levels = w->kind == W_LEVELS4 ? w->levels : whole;
    if (like && like->levels == p.levels) {
      p.table = like->table, p.kind = like->kind;
    } else {
      p.table = nibbles_of(p.levels), p.kind = F_SHORT;
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
  int64_t m, padded;
} few_x;

INLINE int64_t few_padded(int64_t columns) { return (columns + CHUNK - 1) / CHUNK * CHUNK; }

// Where a column of a row stands.
INLINE int64_t few_at(const few_x *x, int64_t row, int64_t column) {
  int64_t top = row / FEW * FEW, rows = least(FEW, x->m - top);
  return top * x->padded + column / CHUNK * CHUNK * rows + (row - top) * CHUNK + column % CHUNK;
}

// Make the other orders of columns [from, to) of one row; from and to are multiples of GROUP.
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

// Write the scale of every chunk of a row, and the minimum of every 32 columns (0 beyond the columns).
static void few_constants(const few_plan *p, int64_t row, int64_t groups, float *scales, float *minima) {
  const graft_weight *w = p->weight;
  int64_t blocks = (w->columns + w->block - 1) / w->block, first = row * blocks, times = w->block / p->chunk;
  if (w->kind == W_GROUPS) {
    int64_t filled = least(groups, blocks * (w->block / GROUP));
    few_halves(w->scale + first, blocks, times, blocks * times, scales);
    few_halves(w->minimum + first, blocks, w->block / GROUP, filled, minima);
    memset(minima + filled, 0, sizeof(float) * (size_t)(groups - filled));
    return;
  }
  float *out = times == 1 ? scales : scales + blocks * (times - 1);  // spread from behind
  if (!w->nested_levels) memcpy(out, (const float *)w->absmax + first, sizeof(float) * (size_t)blocks);
  const uint8_t *codes = (const uint8_t *)w->absmax + first;
  for (int64_t b = 0; b < blocks && w->nested_levels;) {
    int64_t group = (first + b) / w->nested_group, end = least(blocks, (group + 1) * w->nested_group - first);
    float absmax = w->nested_absmax[group];
    for (; b < end; b++) out[b] = w->nested_levels[codes[b]] * absmax + w->nested_offset;
  }
  for (int64_t b = 0; b < blocks && times > 1; b++)
    for (int64_t i = 0; i < times; i++) scales[b * times + i] = out[b];
}

// vf_sum, by the same additions, with less on the way.
INLINE float few_sum(vf a) {
#if defined(AVX512) || defined(AVX2)
  __m256 whole;
#if defined(AVX512)
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

// Where the constants of some rows of W lie.  chunks, groups: scales and minima of a row.
typedef struct {
  float *scales, *minima, *decoded;
  int64_t chunks, groups;
} few_space;

// The partial sums of rows [top, top + m) of x, of one group, with up to FEW_TILE rows of W: (count, m).
static void few_tile(const few_plan *p, const few_x *x, int64_t top, int m, int64_t first, int count, const few_space *s,
                     vf *total) {
  const graft_weight *w = p->weight;
  const float *rows = (few_nibbles(p) ? x->nibbles : x->plain) + few_at(x, top, 0);
  int64_t together = least(FEW, x->m - top / FEW * FEW);
  few_function *run = few_functions[p->chunk == CHUNK][p->kind][m - 1];
  int64_t whole = w->columns / CHUNK * CHUNK, part = FEW_CACHED / m / CHUNK * CHUNK;
  memset(total, 0, sizeof(vf) * (size_t)(m * count));
  for (int64_t from = 0; !from || from < whole; from += part)
    for (int r = 0; r < count; r++) {
      const uint8_t *codes = p->decoded ? (const uint8_t *)s->decoded
                                        : (const uint8_t *)w->codes + (first + r) * p->row_bytes;
      const float *scales = s->scales ? s->scales + r * s->chunks : 0;
      int64_t to = least(from + part, whole);
      run(&p->table, codes + few_bytes(p->kind, from), scales ? scales + from / p->chunk : 0, rows + from * together,
          together * CHUNK, to - from, total + r * m);
      if (to < whole || whole == w->columns) continue;
      uint8_t rest[4 * CHUNK] = {0};  // the rest of a row, as a whole chunk
      memcpy(rest, codes + few_bytes(p->kind, whole), (size_t)(p->row_bytes - few_bytes(p->kind, whole)));
      run(&p->table, rest, scales ? scales + whole / p->chunk : 0, rows + whole * together, CHUNK, CHUNK,
          total + r * m);
    }
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

// y[i * stride + row - first] = or += row i of x, of a span, times rows [first, last) of W.
// Returns 0, or -1 without memory.
static int few_rows(const few_plan *p, const few_x *x, few_span span, int64_t first, int64_t last, float *y,
                    int64_t stride, int add) {
  const graft_weight *w = p->weight;
  int scaled = !p->decoded && (w->kind == W_LEVELS4 || w->kind == W_GROUPS), grouped = scaled && w->kind == W_GROUPS;
  few_space s = {0};
  if (scaled) s.chunks = ((w->columns + w->block - 1) / w->block) * (w->block / GROUP);  // a last block is seen whole
  if (grouped) s.groups = (x->padded / GROUP + VW - 1) / VW * VW;
  size_t numbers = (size_t)(FEW_TILE * (s.chunks + s.groups) + x->padded);
  float *own = scratch_of(&few_own, sizeof(float) * numbers + sizeof(vf) * FEW * FEW_TILE);
  if (!own) return -1;
  vf *total = (vf *)own;
  float *scales = own + VW * FEW * FEW_TILE, *minima = scales + FEW_TILE * s.chunks;
  s.decoded = minima + FEW_TILE * s.groups;
  if (scaled) s.scales = scales;
  if (grouped) s.minima = minima;
  int tile = p->decoded ? 1 : FEW_TILE;
  for (int64_t at = first; at < last; at += tile) {
    int count = (int)least(tile, last - at);
    if (p->decoded) decode_row(w, at, 0, w->columns, s.decoded);
    for (int r = 0; r < count && scaled; r++)
      few_constants(p, at + r, s.groups, scales + r * s.chunks, minima + r * s.groups);
    for (int64_t top = span.top, end; top < span.end; top = end) {
      end = least(span.end, (top / FEW + 1) * FEW);
      int m = (int)(end - top);
      few_tile(p, x, top, m, at, count, &s, total);
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
    plans[t] = few_planned(terms[t].weight, t ? &plans[t - 1] : 0);
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
    finish(sums, m, width, bias ? bias + first : 0, onto, y, dtype, first, stride);
  }
  return failed ? -1 : 0;
}
