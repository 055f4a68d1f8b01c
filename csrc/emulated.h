// AVX-512 on a machine without it, for tests: SIMD Everywhere's functions, and those that it lacks.

#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <string.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

static inline __m512i emulated_cvtps_epi32(__m512 a) {
  int32_t out[16];
  float in[16];
  simde_mm512_storeu_ps(in, a);
  for (int i = 0; i < 16; i++) out[i] = (int32_t)lrintf(in[i]);
  return simde_mm512_loadu_si512(out);
}
static inline __m512 emulated_cvtph_ps(__m256i a) {
  float out[16];
  simde_mm256_storeu_ps(out, simde_mm256_cvtph_ps(simde_mm256_extractf128_si256(a, 0)));
  simde_mm256_storeu_ps(out + 8, simde_mm256_cvtph_ps(simde_mm256_extractf128_si256(a, 1)));
  return simde_mm512_loadu_ps(out);
}
static inline __m256i emulated_cvtps_ph(__m512 a) {
  float in[16];
  simde_mm512_storeu_ps(in, a);
  __m128i low = simde_mm256_cvtps_ph(simde_mm256_loadu_ps(in), 0);
  __m128i high = simde_mm256_cvtps_ph(simde_mm256_loadu_ps(in + 8), 0);
  return simde_mm256_set_m128i(high, low);
}
static inline __m512 emulated_shuffle_f32x4(__m512 a, __m512 b, int order) {
  float from_a[16], from_b[16], out[16];
  simde_mm512_storeu_ps(from_a, a);
  simde_mm512_storeu_ps(from_b, b);
  for (int lane = 0; lane < 4; lane++)
    memcpy(out + 4 * lane, (lane < 2 ? from_a : from_b) + 4 * (order >> 2 * lane & 3), 16);
  return simde_mm512_loadu_ps(out);
}
static inline __m512i emulated_cvtepu8_epi32(__m128i a) {
  uint8_t in[16];
  int32_t out[16];
  simde_mm_storeu_si128(in, a);
  for (int i = 0; i < 16; i++) out[i] = in[i];
  return simde_mm512_loadu_si512(out);
}
static inline __m512i emulated_cvtepi8_epi32(__m128i a) {
  int8_t in[16];
  int32_t out[16];
  simde_mm_storeu_si128(in, a);
  for (int i = 0; i < 16; i++) out[i] = in[i];
  return simde_mm512_loadu_si512(out);
}
static inline __m128i emulated_cvtepi32_epi8(__m512i a) {
  int32_t in[16];
  uint8_t out[16];
  simde_mm512_storeu_si512(in, a);
  for (int i = 0; i < 16; i++) out[i] = (uint8_t)in[i];
  return simde_mm_loadu_si128((const simde__m128i *)out);
}
static inline __m256i emulated_cvtepi32_epi16(__m512i a) {
  int32_t in[16];
  uint16_t out[16];
  simde_mm512_storeu_si512(in, a);
  for (int i = 0; i < 16; i++) out[i] = (uint16_t)in[i];
  return simde_mm256_loadu_si256((const simde__m256i *)out);
}
static inline __m512i emulated_maskz_loadu_epi8(uint64_t there, const void *from) {
  uint8_t out[64] = {0};
  for (int i = 0; i < 64; i++)
    if (there >> i & 1) out[i] = ((const uint8_t *)from)[i];
  return simde_mm512_loadu_si512(out);
}
static inline __m512 emulated_maskz_loadu_ps(uint16_t there, const float *from) {
  float out[16] = {0};
  for (int i = 0; i < 16; i++)
    if (there >> i & 1) out[i] = from[i];
  return simde_mm512_loadu_ps(out);
}
#undef _mm512_maskz_loadu_epi8
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 simde_mm512_madd_epi16
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated_shuffle_f32x4
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph(a, how) emulated_cvtps_ph(a)
