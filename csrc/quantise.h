// From floats to codes, to the same bits as the reference: absmax, x * (1 / absmax), the nearest level.

// How many midpoints lie below x, which is the nearest level's place in ascending order; at a midpoint the lower
// one. midpoints: 15 ascending numbers, and infinity.
INLINE vi places16(vf x, const float *midpoints) {
#if defined(AVX512)
  __m512 table = _mm512_loadu_ps(midpoints);
  __m512i at = _mm512_setzero_si512();
  for (int step = 8; step; step /= 2) {
    __m512 middle = _mm512_permutexvar_ps(_mm512_add_epi32(at, _mm512_set1_epi32(step - 1)), table);
    at = _mm512_mask_add_epi32(at, _mm512_cmp_ps_mask((__m512)x, middle, _CMP_GT_OQ), at, _mm512_set1_epi32(step));
  }
  return (vi)at;
#elif defined(AVX2)
  const float *m = midpoints;
  __m256 eighths = _mm256_setr_ps(m[0], m[2], m[4], m[6], m[8], m[10], m[12], m[14]);
  __m256 quarters = _mm256_setr_ps(m[1], m[5], m[9], m[13], 0, 0, 0, 0);
  vi high = x > vf_set(m[7]);
  vi at = high & 8;
  at += (x > (vf)_mm256_blendv_ps(_mm256_set1_ps(m[3]), _mm256_set1_ps(m[11]), (__m256)high)) & 4;
  at += (x > (vf)_mm256_permutevar8x32_ps(quarters, (__m256i)(at >> 2))) & 2;
  return at + ((x > (vf)_mm256_permutevar8x32_ps(eighths, (__m256i)(at >> 1))) & 1);
#else
  vi at = {0};
  for (int i = 0; i < 15; i++) at -= x > vf_set(midpoints[i]);  // a true comparison is -1
  return at;
#endif
}

// Write VW codes below 16 as VW / 2 bytes.
INLINE void pack16(vi code, uint8_t *out) {
#if defined(AVX2)
  __m256i pairs = _mm256_or_si256(_mm256_slli_epi64((__m256i)code, 4), _mm256_srli_epi64((__m256i)code, 32));
  __m256i first = _mm256_set1_epi64x(0x8080808080800800);  // bytes 0 and 8 of each half
  __m256i bytes = _mm256_shuffle_epi8(pairs, first);
  uint32_t packed = (uint32_t)(_mm256_extract_epi16(bytes, 0) & 0xffff) |
                    (uint32_t)(_mm256_extract_epi16(bytes, 8) & 0xffff) << 16;
  memcpy(out, &packed, 4);
#else
  for (int j = 0; j < VW; j += 2) out[j / 2] = (uint8_t)(code[j] << 4 | code[j + 1]);
#endif
}

// The largest magnitude of `count` numbers; NaN if there is one among them.
INLINE float largest(const void *x, int dtype, int64_t at, int64_t count) {
  vf top = vf_zero();
  vi bad = {0};
  for (int64_t i = 0; i < count; i += VW) {
    vf v = vf_abs(load_n_as(x, at + i, least(VW, count - i), dtype));
    bad |= (vi)v > 0x7f800000;  // a NaN, which max would hide
    top = vf_max(top, v);
  }
  for (int j = 0; j < VW; j++)
    if (bad[j]) return NAN;
  return vf_top(top);
}

// Quantise x (rows, n) of `dtype` to packed codes and absmax (rows, blocks).
// order: (16,) the code of each place, where levels do not ascend; else NULL.
void KERNEL(quantise_4bit)(const void *x, int dtype, int64_t rows, int64_t n, int64_t block,
                           const float *midpoints, const uint8_t *order, uint8_t *codes, float *absmax,
                           int threads) {
  int64_t blocks = (n + block - 1) / block, width = (n + 1) / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t b = 0; b < blocks; b++) {
      int64_t from = b * block, count = least(block, n - from);
      float most = largest(x, dtype, row * n + from, count);
      absmax[row * blocks + b] = most;
      vf inverse = vf_set(1.0f / (most > 1e-38f ? most : 1e-38f));
      for (int64_t i = 0; i < count; i += VW) {
        int64_t left = least(VW, count - i), at = row * width + (from + i) / 2;
        vf v = load_n_as(x, row * n + from + i, left, dtype) * inverse;
        vi place = places16(vf_max(vf_min(v, vf_set(1.0f)), vf_set(-1.0f)), midpoints);
        if (order)
          for (int j = 0; j < VW; j++) place[j] = order[place[j]];
        if (left == VW) {
          pack16(place, codes + at);
          continue;
        }
        uint8_t packed[VW / 2];
        pack16(place, packed);
        memcpy(codes + at, packed, (size_t)(left + 1) / 2);
      }
    }
  }
}

// Quantise x (rows, n) of `dtype` to codes (rows, n) in +-127 and absmax (rows, 1).
void KERNEL(quantise_int8)(const void *x, int dtype, int64_t rows, int64_t n, int8_t *codes, float *absmax,
                           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    float most = largest(x, dtype, row * n, n);
    absmax[row] = most;
    vf factor = vf_set(127.0f / (most > 1e-38f ? most : 1e-38f));
    for (int64_t i = 0; i < n; i += VW) {
      int64_t left = least(VW, n - i);
      vf v = load_n_as(x, row * n + i, left, dtype), scaled = v * factor;
      vi whole = vf_round(vf_max(vf_min(scaled, vf_set(127.0f)), vf_set(-127.0f)));
      whole &= v != 0.0f;  // the factor of a row of almost nothing is infinite
      for (int j = 0; j < left; j++) codes[row * n + i + j] = (int8_t)whole[j];
    }
  }
}
