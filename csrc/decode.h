// From packed weights to floats: value = level * absmax, rounded once, as the reference has it.

INLINE float absmax_at(const graft_weight *w, int64_t place) {
  if (!w->nested_levels) return ((const float *)w->absmax)[place];
  float level = w->nested_levels[((const uint8_t *)w->absmax)[place]];
  int64_t group = w->nested_group == 256 ? place >> 8 : place / w->nested_group;
  return level * w->nested_absmax[group] + w->nested_offset;
}

// Sixteen levels times one scale, ready to be looked up VW at a time.
typedef struct {
#if defined(AVX512)
  __m512 all;
#elif defined(AVX2)
  __m256 low, high;
#else
  float all[16];
#endif
} table16;

INLINE table16 table_scaled(const float *levels, float scale) {
  table16 t;
#if defined(AVX512)
  t.all = _mm512_mul_ps(_mm512_loadu_ps(levels), _mm512_set1_ps(scale));
#elif defined(AVX2)
  t.low = _mm256_mul_ps(_mm256_loadu_ps(levels), _mm256_set1_ps(scale));
  t.high = _mm256_mul_ps(_mm256_loadu_ps(levels + 8), _mm256_set1_ps(scale));
#else
  for (int i = 0; i < 16; i++) t.all[i] = levels[i] * scale;
#endif
  return t;
}

// Sixteen weights from eight bytes.
INLINE void decode16(const table16 *t, const uint8_t *codes, float *out) {
#if defined(AVX512) || defined(AVX2)
  __m128i bytes = _mm_loadl_epi64((const __m128i *)codes);
  __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
  __m128i both = _mm_unpacklo_epi8(high, _mm_and_si128(bytes, _mm_set1_epi8(15)));
#endif
#if defined(AVX512)
  _mm512_storeu_ps(out, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(both), t->all));
#elif defined(AVX2)
  for (int i = 0; i < 2; i++) {
    __m256i index = _mm256_cvtepu8_epi32(i ? _mm_srli_si128(both, 8) : both);
    __m256 from = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 chooses the half
    __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(t->low, index),
                                    _mm256_permutevar8x32_ps(t->high, index), from);
    _mm256_storeu_ps(out + 8 * i, value);
  }
#else
  for (int i = 0; i < 8; i++) {
    out[2 * i] = t->all[codes[i] >> 4];
    out[2 * i + 1] = t->all[codes[i] & 15];
  }
#endif
}

INLINE float table_at(const table16 *t, int code) {
  float all[16];
  memcpy(all, t, sizeof all);
  return all[code];
}

// One block of 4-bit codes, columns [from, to) of a row; `from` is even.
INLINE void decode_levels4(const table16 *t, const uint8_t *row, int64_t from, int64_t to, float *out) {
  int64_t at = from;
  for (; at + 16 <= to; at += 16) decode16(t, row + at / 2, out + (at - from));
  for (; at < to; at++) {
    uint8_t byte = row[at / 2];
    out[at - from] = table_at(t, at & 1 ? byte & 15 : byte >> 4);
  }
}

INLINE int group_code(const uint8_t *row, int64_t column, int bits) {
  int64_t bit = column * bits, byte = bit >> 3;
  int shift = 16 - bits - (int)(bit & 7);  // the first column lies in the highest bits
  int word = row[byte] << 8 | ((bit & 7) + bits > 8 ? row[byte + 1] : 0);
  return word >> shift & ((1 << bits) - 1);
}

static void decode_group(const graft_weight *w, const uint8_t *row, float scale, float minimum, int64_t from,
                         int64_t to, float *out) {
  int64_t at = from;
  if (w->bits == 4 && !(from & 1)) {
    float values[16];
    for (int code = 0; code < 16; code++) values[code] = scale * (float)code + minimum;
    table16 t = table_scaled(values, 1.0f);
    decode_levels4(&t, row, from, to, out);
    return;
  }
  if (w->bits == 8)
    for (; at < to; at++) out[at - from] = scale * (float)row[at] + minimum;
  for (; at < to; at++) out[at - from] = scale * (float)group_code(row, at, w->bits) + minimum;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Write columns [from, to) of a row into `out`.
static void decode_row(const graft_weight *w, int64_t row, int64_t from, int64_t to, float *out) {
  int64_t n = w->columns, blocks = w->block ? (n + w->block - 1) / w->block : 0;
  if (w->kind <= W_FP16) {
    int64_t at = row * n + from, count = to - from, i = 0;
    for (; i + VW <= count; i += VW) vf_store(out + i, load_as(w->codes, at + i, w->kind));
    if (i < count) vf_store_n(out + i, load_n_as(w->codes, at + i, count - i, w->kind), count - i);
  } else if (w->kind == W_INT8) {
    const int8_t *codes = (const int8_t *)w->codes + row * n;
    float scale = absmax_at(w, row) / 127;
    for (int64_t i = from; i < to; i++) out[i - from] = (float)codes[i] * scale;
  } else if (w->kind == W_LEVELS4) {
    const uint8_t *codes = (const uint8_t *)w->codes + row * ((n + 1) / 2);
    if (from & 1) {  // begins in the middle of a byte
      table16 t = table_scaled(w->levels, absmax_at(w, row * blocks + from / w->block));
      *out++ = table_at(&t, codes[from / 2] & 15);
      from++;
    }
    while (from < to) {
      int64_t stop = least(to, (from / w->block + 1) * w->block);
      table16 t = table_scaled(w->levels, absmax_at(w, row * blocks + from / w->block));
      decode_levels4(&t, codes, from, stop, out);
      out += stop - from;
      from = stop;
    }
  } else {
    int64_t bytes = w->bits == 3 ? (n + 7) / 8 * 3 : (n * w->bits + 7) / 8;
    const uint8_t *codes = (const uint8_t *)w->codes + row * bytes;
    while (from < to) {
      int64_t place = row * blocks + from / w->block, stop = least(to, (from / w->block + 1) * w->block);
      decode_group(w, codes, fp16_to_float(w->scale[place]), fp16_to_float(w->minimum[place]), from, stop, out);
      out += stop - from;
      from = stop;
    }
  }
}

// Write all values into out (rows, columns) of `dtype`.
void KERNEL(dequantise)(const graft_weight *w, void *out, int dtype, int threads) {
  int64_t n = w->columns;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < w->rows; row++) {
    if (dtype == FP32) {
      decode_row(w, row, 0, n, (float *)out + row * n);
      continue;
    }
    float part[512];
    for (int64_t from = 0; from < n; from += 512) {
      int64_t count = least(512, n - from), i = 0;
      decode_row(w, row, from, from + count, part);
      for (; i + VW <= count; i += VW) store_as(out, row * n + from + i, vf_load(part + i), dtype);
      if (i < count) store_n_as(out, row * n + from + i, vf_load_n(part + i, count - i), count - i, dtype);
    }
  }
}
