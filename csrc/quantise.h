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
#else
  vi at = {0};
  for (int i = 0; i < 15; i++) at -= (vi)(x > vf_set(midpoints[i]));  // a true comparison is -1
  return at;
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
      uint8_t found[VW];
      for (int64_t i = 0; i < count; i += VW) {
        int64_t left = least(VW, count - i), at = row * width + (from + i) / 2;
        vf v = load_n_as(x, row * n + from + i, left, dtype) * inverse;
        v = vf_max(vf_min(v, vf_set(1.0f)), vf_set(-1.0f));
        vi place = places16(v, midpoints);
        for (int j = 0; j < VW; j++) found[j] = order ? order[place[j] & 15] : (uint8_t)place[j];
        for (int j = 0; j < left; j += 2)
          codes[at + j / 2] = (uint8_t)(found[j] << 4 | (j + 1 < VW ? found[j + 1] : 0));
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
