// Products of bf16 in pairs: one instruction adds two products of bf16 to a float. A word is a pair of numbers that
// lie side by side in the inner dimension; an odd one at the end has 0 beside it.
//
// Weights are rounded to bf16 once, as they are decoded, like those that torch would multiply.

#if defined(AVX512) && defined(__AVX512BF16__)
#define PAIRS

// Whether a term is multiplied so. Adapters keep fp32.
INLINE int paired(const graft_term *t) {
  int kind = t->weight->kind;
  return t->dtype == BF16 && t->step == 1 && t->scale == 1.0f && kind != W_FP32 && kind != W_FP16;
}

INLINE vf vf_dot(vf a, vf b, vf sum) {
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Write columns [from, to) of a row as bf16.
static void decode_bf16(const graft_weight *w, int64_t row, int64_t from, int64_t to, uint16_t *out) {
  int64_t n = w->columns;
  if (w->kind == W_BF16) {
    memcpy(out, (const uint16_t *)w->codes + row * n + from, 2 * (size_t)(to - from));
    return;
  }
  if (w->kind == W_LEVELS4 && from % 32 == 0 && w->block % 32 == 0) {
    int64_t blocks = (n + w->block - 1) / w->block, whole = from + (to - from) / 32 * 32;
    const uint8_t *codes = (const uint8_t *)w->codes + row * ((n + 1) / 2);
    __m512 levels = _mm512_loadu_ps(w->levels);
    while (from < whole) {
      int64_t block = from / w->block, stop = least(whole, (block + 1) * w->block);
      __m512 scale = _mm512_set1_ps(absmax_at(w, row * blocks + block));
      __m256i few = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(levels, scale));
      __m512i table = _mm512_castsi256_si512(few);
      for (; from < stop; from += 32, out += 32) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(codes + from / 2)), fifteen = _mm_set1_epi8(15);
        __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), fifteen), low = _mm_and_si128(bytes, fifteen);
        __m256i index = _mm256_set_m128i(_mm_unpackhi_epi8(high, low), _mm_unpacklo_epi8(high, low));
        _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(index), table));
      }
    }
  }
  float part[256];
  while (from < to) {
    int64_t count = least(256, to - from), i = 0;
    decode_row(w, row, from, from + count, part);
    for (; i + VW <= count; i += VW) vh_store(out + i, vf_to_bf16(vf_load(part + i)));
    for (; i < count; i++) out[i] = float_to_bf16(part[i]);
    from += count;
    out += count;
  }
}

#if defined(TILES)
#define pack_pairs pack_tiles
#else
// Pack rows [first, first + count) of x: for each word, MR rows side by side; rows that are missing are 0.
static void pack_pairs(const graft_term *t, int64_t inner, int64_t first, int64_t count, float *out) {
  const uint16_t *x = t->x;
  for (int64_t from = 0; from < inner; from += 2 * VW) {
    int64_t n = least(2 * VW, inner - from), words = (n + 1) / 2;
    vf tile[VW];
    for (int64_t r = 0; r < VW; r++) {
      tile[r] = vf_zero();
      if (r < least(count, MR)) memcpy(&tile[r], x + (first + r) * t->stride + from, 2 * (size_t)n);
    }
    vf_transpose(tile);
    for (int64_t k = 0; k < words; k++, out += MR) vf_store_n(out, tile[k], MR);
  }
}
#endif

// W^T: as panels_of_rows, with words [from, to) of the inner dimension.
static void pairs_of_rows(const graft_weight *w, int64_t first, int64_t count, int64_t from, int64_t to,
                          float *out) {
  uint16_t rows[VW][2 * INNER];
  int64_t end = least(2 * to, w->columns), n = end - 2 * from;
  for (int64_t c = 0; c < (count + NR - 1) / NR * NR; c += VW) {
    for (int64_t r = 0; r < VW; r++) {
      if (c + r < count) decode_bf16(w, first + c + r, 2 * from, end, rows[r]);
      else memset(rows[r], 0, 2 * (size_t)n);
      memset(rows[r] + n, 0, 2 * (size_t)(2 * (to - from) - n));
    }
    float *panel = out + c / NR * NR * INNER + c % NR;
    for (int64_t k = 0; k < to - from; k += VW) {
      vf tile[VW];
      for (int r = 0; r < VW; r++) tile[r] = vf_load((const float *)(rows[r] + 2 * k));
      vf_transpose(tile);
      for (int64_t r = 0; r < least(VW, to - from - k); r++) vf_store(panel + (k + r) * NR, tile[r]);
    }
  }
}

// W: as panels_of_columns, with words [from, to) of the inner dimension.
static void pairs_of_columns(const graft_weight *w, int64_t first, int64_t count, int64_t from, int64_t to,
                             float *out) {
  int64_t inner = w->rows;
  uint16_t decoded[2][WIDEST] = {{0}};
  for (int64_t k = 2 * from; k < least(2 * to, inner); k += 2) {
    const uint16_t *upper = decoded[0], *lower = decoded[1];
    if (w->kind == W_BF16 && count % VW == 0 && k + 1 < inner) {  // as they lie
      upper = (const uint16_t *)w->codes + k * w->columns + first;
      lower = upper + w->columns;
    } else {
      decode_bf16(w, k, first, first + count, decoded[0]);
      if (k + 1 < inner) decode_bf16(w, k + 1, first, first + count, decoded[1]);
      else memset(decoded[1], 0, sizeof decoded[1]);
    }
    for (int64_t c = 0; c < count; c += VW) {
      __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(upper + c)));
      __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(lower + c)));
      vf word = (vf)_mm512_or_si512(a, _mm512_slli_epi32(b, 16));
      vf_store(out + c / NR * NR * INNER + (k / 2 - from) * NR + c % NR, word);
    }
  }
  for (int64_t k = (inner + 1) / 2; k < to; k++)
    for (int64_t c = 0; c < count; c += NR) memset(out + c * INNER + (k - from) * NR, 0, sizeof(float) * NR);
}

#else
#define paired(t) 0
#define vf_dot vf_fma
#define pack_pairs(...) (void)0
#define pairs_of_rows(...) (void)0
#define pairs_of_columns(...) (void)0
#endif
