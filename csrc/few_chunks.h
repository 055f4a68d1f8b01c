// From codes to numbers in registers, and a chunk of 64 of them times a few rows of x.
//
// A caller may ask for fixed point, which vectors have twice the room for: levels of 4-bit codes and numbers of x as
// whole numbers, with one unit for all levels and one for each chunk of x. Codes of 8 bits and those of int4 are whole
// numbers as they are. Products and sums of a chunk are then exact; the rounding before is about 3e-5 of a number's
// usual size.

#define FEW 8          // rows of x that share one decoding
#define FEW_MOST 16    // rows for which this beats the product of panels
#define FEW_TILE 16    // rows of W between two visits of the same part of x
#define FEW_CACHED 4096  // numbers of x that are worked on at one time: 16 KiB
#define GROUP 32       // weights that are decoded together
#define CHUNK 64       // columns whose sum is one chain: the usual block
#define AHEAD 1024     // bytes

// The largest whole number of levels, and of x. Sums fit into 32 bits: on AVX2 they are of eight products, on AVX-512 of
// a GROUP, whose numbers of x have SUM_MOST together beside levels (and whatever they have beside whole codes).
#define LEVEL_MOST 16383
#if defined(AVX512)
#define X_MOST 32767
#define SUM_MOST (INT32_MAX / LEVEL_MOST - GROUP)  // rounding may add a half to each
#else
#define X_MOST 16383
#endif

// What a row of codes is made of.
enum { F_FP32, F_BF16, F_FP16, F_NIBBLE, F_SHORT, F_INT8, F_UINT8, F_KINDS };

// Levels of 4 bits, ready to be looked up.
typedef struct {
#if defined(AVX512)
  __m512 all;
  __m512i fixed;    // twice, in fixed point
  float unit;       // of which they are multiples
#elif defined(AVX2)
  __m256i byte[4];  // the lowest, ..., the highest byte of each level, in both halves
  __m256i fixed[2]; // the same of the levels in fixed point
  float unit;       // of which they are multiples
#else
  float all[16];
#endif
} nibbles;

// Levels as whole numbers up to `top`; returns the unit of which they are multiples. Of some units the one that rounds
// least: whole levels stay exact, and so do those of FP4, which are multiples of 1/192.
INLINE float fixed_levels(const float *levels, float top, int16_t whole[16]) {
  float most = 1e-3f, best = INFINITY, units = 1;  // zeros alone have no unit of their own
  for (int i = 0; i < 16; i++) most = fmaxf(most, fabsf(levels[i]));
  for (float of = floorf(top / most), last = fmaxf(of - 256, 1); of >= last; of--) {
    float error = 0;
    for (int i = 0; i < 16; i++) {
      float rounded = levels[i] * of - rintf(levels[i] * of);
      error += rounded * rounded;
    }
    error /= of * of;
    if (error < best) best = error, units = of;
  }
  for (int i = 0; i < 16; i++) whole[i] = (int16_t)lrintf(levels[i] * units);
  return 1 / units;
}

// top: of the levels in fixed point.
INLINE nibbles nibbles_of(const float *levels, float top) {
  nibbles t;
#if defined(AVX512)
  int16_t whole[16];
  t.all = _mm512_loadu_ps(levels);
  t.unit = fixed_levels(levels, top, whole);
  t.fixed = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)whole));
#elif defined(AVX2)
  uint8_t bytes[4][16];
  for (int i = 0; i < 16; i++)
    for (int b = 0; b < 4; b++) bytes[b][i] = ((const uint8_t *)(levels + i))[b];
  for (int b = 0; b < 4; b++)
    t.byte[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes[b]));
  int16_t whole[16];
  t.unit = fixed_levels(levels, top, whole);
  for (int i = 0; i < 16; i++) bytes[0][i] = (uint8_t)whole[i], bytes[1][i] = (uint8_t)(whole[i] >> 8);
  for (int b = 0; b < 2; b++)
    t.fixed[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes[b]));
#else
  memcpy(t.all, levels, sizeof t.all);
  (void)top;
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

// Where column c of 64 stands beside 4-bit codes in fixed point: even columns, then odd ones, the first 32 in the lower
// halves of vectors. few_lanes.h has an order of its own.
INLINE int fixed_place(int c) { return c % 2 * 32 + c % 32 / 16 * 16 + c / 32 * 8 + c % 16 / 2; }

INLINE int64_t few_bytes(int kind, int64_t columns) {
  return kind == F_FP32 ? 4 * columns
         : kind == F_BF16 || kind == F_FP16 ? 2 * columns
         : kind == F_NIBBLE || kind == F_SHORT ? columns / 2
                                               : columns;
}

#if defined(AVX2)
// 32 codes as bytes: those of even columns | of odd ones.
INLINE __m256i nibbles_apart(const uint8_t *codes) {
  __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codes));
  bytes = _mm256_srlv_epi32(bytes, _mm256_setr_epi32(4, 4, 4, 4, 0, 0, 0, 0));
  return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}
#endif

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
  __m256i bytes = nibbles_apart(codes);
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

// Some rows of codes times m rows of x.
typedef struct {
  int64_t rows, row_bytes;
  int64_t down, along;              // how many scales further those of the next row (LANES rows) and chunk are
  const uint8_t *codes;
  const float *scales;              // of each chunk; NULL: 1
  const void *x;                    // CHUNK columns of each row, and `step` numbers further the next CHUNK
  const float *units;               // of x in fixed point, and `apart` numbers further those of the next CHUNK
  int64_t step, apart, columns;     // columns: a multiple of CHUNK
  vf *total;                        // (rows, m): is added to
} few_run;

typedef void few_function(const nibbles *t, const few_run *run);

// Chunk by chunk, each times its scale.
INLINE void few_chunks(int kind, int m, int chunk, const nibbles *t, const few_run *run) {
  for (int64_t r = 0; r < run->rows; r++) {
    const uint8_t *codes = run->codes + r * run->row_bytes;
    const float *scales = run->scales ? run->scales + r * run->down : 0, *x = run->x;
    vf all[FEW];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) all[i] = run->total[r * m + i];
    for (int64_t c = 0; c < run->columns; c += CHUNK, x += run->step) {
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
        vf scale = vf_set(scales ? *scales : 1.0f);
        scales += scales ? run->along : 0;
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) all[i] = vf_fma(scale, sum[i], all[i]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) run->total[r * m + i] = all[i];
  }
}

#define FEW_OF(kind, chunk, m)                                                                                \
  static void few_##kind##_##chunk##_##m(const nibbles *t, const few_run *run) {                              \
    few_chunks(kind, m, chunk, t, run);                                                                       \
  }
#define FEW_ALL(kind, chunk)                                                                                  \
  FEW_OF(kind, chunk, 1) FEW_OF(kind, chunk, 2) FEW_OF(kind, chunk, 3) FEW_OF(kind, chunk, 4)                 \
  FEW_OF(kind, chunk, 5) FEW_OF(kind, chunk, 6) FEW_OF(kind, chunk, 7) FEW_OF(kind, chunk, 8)
#define FEW_LIST(kind, chunk)                                                                                 \
  {few_##kind##_##chunk##_1, few_##kind##_##chunk##_2, few_##kind##_##chunk##_3, few_##kind##_##chunk##_4,     \
   few_##kind##_##chunk##_5, few_##kind##_##chunk##_6, few_##kind##_##chunk##_7, few_##kind##_##chunk##_8}

#if defined(AVX512)
#define FIXED 1
#include "few_lanes.h"
#elif defined(AVX2)
#define FIXED 1
// 64 weights in fixed point, in the order of `fixed_place`.
INLINE void fixed64(const nibbles *t, const uint8_t *codes, __m256i w[4]) {
  __m256i bytes = _mm256_loadu_si256((const __m256i *)codes), all = _mm256_set1_epi8(15);
  for (int odd = 0; odd < 2; odd++) {
    __m256i of = _mm256_and_si256(odd ? bytes : _mm256_srli_epi16(bytes, 4), all);
    __m256i low = _mm256_shuffle_epi8(t->fixed[0], of), high = _mm256_shuffle_epi8(t->fixed[1], of);
    w[2 * odd] = _mm256_unpacklo_epi8(low, high), w[2 * odd + 1] = _mm256_unpackhi_epi8(low, high);
  }
}

// `few_chunks` in fixed point.  bits: of a code; those of 8 have no scales, and x is in the order of the columns.
INLINE void fixed_chunks(int bits, int m, int chunk, const nibbles *t, const few_run *run) {
  for (int64_t r = 0; r < run->rows; r++) {
    const uint8_t *codes = run->codes + r * run->row_bytes;
    const float *scales = bits == 8 ? 0 : run->scales + r * run->down, *units = run->units;
    const int16_t *x = run->x;
    vf all[FEW];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) all[i] = run->total[r * m + i];
    for (int64_t c = 0; c < run->columns; c += CHUNK, x += run->step, units += run->apart) {
      __builtin_prefetch(codes + AHEAD);
      __m256i w[4];
      vf scale = vf_set(bits == 8 ? 1.0f : scales[0]);
      if (bits == 8) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) w[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)codes + j));
      } else {
        fixed64(t, codes, w);
        if (chunk == GROUP) scale = (vf)_mm256_insertf128_ps((__m256)scale, _mm_set1_ps(scales[run->along]), 1);
        scales += CHUNK / chunk * run->along;
      }
      codes += CHUNK * bits / 8;
#pragma GCC unroll 8
      for (int i = 0; i < m; i++) {
        const __m256i *of = (const __m256i *)(x + i * CHUNK);
        __m256i sum = _mm256_madd_epi16(w[0], _mm256_loadu_si256(of));
#pragma GCC unroll 4
        for (int j = 1; j < 4; j++)
          sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w[j], _mm256_loadu_si256(of + j)));
        vf unit = vf_set(units[i]), whole = vf_float((vi)sum);
        all[i] = bits == 8 ? vf_fma(whole, unit, all[i]) : vf_fma(scale, whole * unit, all[i]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) run->total[r * m + i] = all[i];
  }
}
#else
#define FIXED 0  // nothing is fast
#endif

#if FIXED
#define FIXED_OF(bits, chunk, m)                                                                              \
  static void fixed_##bits##_##chunk##_##m(const nibbles *t, const few_run *run) {                            \
    fixed_chunks(bits, m, chunk, t, run);                                                                     \
  }
#define FIXED_ALL(bits, chunk)                                                                                \
  FIXED_OF(bits, chunk, 1) FIXED_OF(bits, chunk, 2) FIXED_OF(bits, chunk, 3) FIXED_OF(bits, chunk, 4)         \
  FIXED_OF(bits, chunk, 5) FIXED_OF(bits, chunk, 6) FIXED_OF(bits, chunk, 7) FIXED_OF(bits, chunk, 8)
#define FIXED_LIST(bits, chunk)                                                                               \
  {fixed_##bits##_##chunk##_1, fixed_##bits##_##chunk##_2, fixed_##bits##_##chunk##_3,                        \
   fixed_##bits##_##chunk##_4, fixed_##bits##_##chunk##_5, fixed_##bits##_##chunk##_6,                        \
   fixed_##bits##_##chunk##_7, fixed_##bits##_##chunk##_8}

FIXED_ALL(4, 32) FIXED_ALL(4, 64) FIXED_ALL(8, 64)
static few_function *const fixed_functions[3][FEW] = {FIXED_LIST(4, 32), FIXED_LIST(4, 64), FIXED_LIST(8, 64)};
#endif

FEW_ALL(F_FP32, 64) FEW_ALL(F_BF16, 64) FEW_ALL(F_FP16, 64) FEW_ALL(F_INT8, 64)
FEW_ALL(F_NIBBLE, 64) FEW_ALL(F_SHORT, 64) FEW_ALL(F_UINT8, 64)
FEW_ALL(F_NIBBLE, 32) FEW_ALL(F_SHORT, 32) FEW_ALL(F_UINT8, 32)

static few_function *const few_functions[2][F_KINDS][FEW] = {
    {[F_NIBBLE] = FEW_LIST(F_NIBBLE, 32), [F_SHORT] = FEW_LIST(F_SHORT, 32), [F_UINT8] = FEW_LIST(F_UINT8, 32)},
    {FEW_LIST(F_FP32, 64), FEW_LIST(F_BF16, 64), FEW_LIST(F_FP16, 64), FEW_LIST(F_NIBBLE, 64),
     FEW_LIST(F_SHORT, 64), FEW_LIST(F_INT8, 64), FEW_LIST(F_UINT8, 64)}};
