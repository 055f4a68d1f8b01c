// Sixteen rows of W times a few rows of x in fixed point, each row of W in a lane of its own (AVX-512).
//
// The codes of 16 rows are loaded and change places: then a vector holds 4 bytes of every row. Two columns of 16 rows
// become a vector of 16-bit numbers, which two numbers of a row of x are multiplied with in one instruction. A lane has
// the whole sum of its 32 columns, so nothing is added across lanes, and 8 rows of x share what one row costs in loads,
// shuffles and table lookups.

#define LANES 16

// sum + the products of two columns with two numbers of x, in every lane.
INLINE __m512i lanes_add(__m512i sum, __m512i w, const int16_t *x) {
  int32_t two;
  memcpy(&two, x, sizeof two);
#if defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sum, w, _mm512_set1_epi32(two));
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(w, _mm512_set1_epi32(two)));
#endif
}

// Write 16 columns of x in 16 bits, those that stand `apart` from each other side by side.
INLINE void lanes_store(int16_t *to, vi x, int apart) {
  __m512i four = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  __m512i two = _mm512_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  __m512i placed = _mm512_permutexvar_epi32(apart == 4 ? four : two, (__m512i)x);
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(placed));
}

// Two columns of 4 bytes of every lane: of 8 columns those 4 apart, 2 apart of 4 with 8 bits.  which: of these pairs.
INLINE __m512i lanes_pair(int bits, int which, const nibbles *t, __m512i bytes) {
  if (bits == 8) return _mm512_srai_epi16(which ? bytes : _mm512_slli_epi16(bytes, 8), 8);
  // The lookup sees 5 bits of an index, and finds a level in both halves of its table.
  const int shift[4] = {4, 0, 12, 8};
  return _mm512_permutexvar_epi16(shift[which] ? _mm512_srli_epi16(bytes, shift[which]) : bytes, t->fixed);
}

// 64 bytes of every row, or the `left` ones that it has, as 16 vectors of 4 bytes of every row.
INLINE void lanes_load(const uint8_t *rows, int64_t row_bytes, int64_t left, vf codes[LANES]) {
  __mmask64 there = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
#pragma GCC unroll 16
  for (int r = 0; r < LANES; r++) {
    __builtin_prefetch(rows + (LANES + r) * row_bytes, 0, 2);
    const uint8_t *row = rows + r * row_bytes;
    codes[r] = (vf)(left >= 64 ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi8(there, row));
  }
  vf_transpose(codes);
}

// The sum of a GROUP of columns, or of a CHUNK with 8 bits, for each of m rows of x.
INLINE void lanes_sum(int bits, int m, const nibbles *t, const vf *codes, const int16_t *x, __m512i all[FEW]) {
  const int pairs = 16 / bits, words = bits == 8 ? CHUNK / 4 : GROUP / 8;
  const int chains = m == 1 ? pairs : 2;  // sums that do not wait for each other
  __m512i sum[FEW][4];
#pragma GCC unroll 8
  for (int i = 0; i < m; i++)
#pragma GCC unroll 4
    for (int k = 0; k < chains; k++) sum[i][k] = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int word = 0; word < words; word++, x += 2 * pairs) {
    __m512i bytes = (__m512i)codes[word];
    IN_REGISTER(bytes);  // or every pair loads it again
#pragma GCC unroll 4
    for (int k = 0; k < pairs; k++) {
      __m512i w = lanes_pair(bits, k, t, bytes);
#pragma GCC unroll 8
      for (int i = 0; i < m; i++) sum[i][k % chains] = lanes_add(sum[i][k % chains], w, x + i * CHUNK + 2 * k);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) {
    all[i] = sum[i][0];
#pragma GCC unroll 4
    for (int k = 1; k < chains; k++) all[i] = _mm512_add_epi32(all[i], sum[i][k]);
  }
}

// `few_chunks` for LANES rows of W.  total: (m,).  bits: of a code; those of 8 have no scales.
INLINE void fixed_chunks(int bits, int m, int chunk, const nibbles *t, const few_run *run) {
  const int group = bits == 8 ? CHUNK : GROUP, block = 512 / bits;  // columns of a sum, and of a whole vector
  const float *scales = run->scales, *units = run->units;
  const int16_t *x = run->x;
  for (int64_t c = 0; c < run->columns; c += block) {
    vf codes[LANES];
    lanes_load(run->codes + c * bits / 8, run->row_bytes, run->row_bytes - c * bits / 8, codes);
#pragma GCC unroll 2
    for (int64_t from = 0; from < block; from += CHUNK, x += run->step, units += run->apart) {
      if (c + from >= run->columns) break;
#pragma GCC unroll 2
      for (int g = 0; g < CHUNK; g += group) {
        __m512i sum[FEW];
        lanes_sum(bits, m, t, codes + (from + g) * bits / 32, x + g, sum);
        vf scale = scales ? vf_load(scales) : vf_set(1.0f);
        if (scales && (g + group) % chunk == 0) {
          __builtin_prefetch(scales + run->down, 0, 2);
          scales += LANES;
        }
#pragma GCC unroll 8
        for (int i = 0; i < m; i++)
          run->total[i] = vf_fma(scale * vf_set(units[i]), vf_float((vi)sum[i]), run->total[i]);
      }
    }
  }
}

// Constants of up to LANES rows of W change places: (rows, n) become (n, LANES), with zeros up to a multiple of LANES.
static const float *lanes_apart(const float *constants, int64_t rows, int64_t n, float *to) {
  for (int64_t c = 0; c < n; c += LANES) {
    __mmask16 there = n - c >= LANES ? 0xffff : (__mmask16)((1 << (n - c)) - 1);
    vf block[LANES];
    for (int64_t r = 0; r < LANES; r++)
      block[r] = r < rows ? (vf)_mm512_maskz_loadu_ps(there, constants + r * n + c) : vf_zero();
    vf_transpose(block);
    for (int64_t i = 0; i < LANES; i++) vf_store(to + (c + i) * LANES, block[i]);
  }
  return to;
}
