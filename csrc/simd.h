// One vector of floats, at the width of this unit's instruction set.
//
//   vf      VW floats; + - * work on it        vi      VW 32-bit integers
//
// The portable level is written in the compiler's own vectors and holds for every processor. The others
// replace what their instruction set does better.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(EMULATE_AVX512)
#include "emulated.h"
#define AVX512
#elif defined(__AVX512F__)
#include <immintrin.h>
#define AVX512
#elif defined(__AVX2__)
#include <immintrin.h>
#define AVX2
#endif

#if defined(AVX512)
#define VW 16
#elif defined(AVX2)
#define VW 8
#else
#define VW 4
#endif

#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(4 * VW)));
typedef int32_t vi __attribute__((vector_size(4 * VW)));
typedef uint32_t vu __attribute__((vector_size(4 * VW)));
typedef uint16_t vh __attribute__((vector_size(2 * VW)));  // half of its width: 16-bit numbers

// Keep a vector in a register, where the compiler would rather load it again for each use.
#if defined(AVX512) && !defined(EMULATE_AVX512)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v) (void)0
#endif

// Memory

INLINE vf vf_load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vh vh_load(const uint16_t *p) { vh v; memcpy(&v, p, sizeof v); return v; }
INLINE void vh_store(uint16_t *p, vh v) { memcpy(p, &v, sizeof v); }

// The first n of VW floats, or all if n is larger; the others are 0.
INLINE vf vf_load_n(const float *p, int64_t n) {
  if (n >= VW) return vf_load(p);
  vf v = {0};
  memcpy(&v, p, 4 * n);
  return v;
}
INLINE void vf_store_n(float *p, vf v, int64_t n) {
  if (n >= VW) vf_store(p, v);
  else memcpy(p, &v, 4 * n);
}

// Arithmetic

#if defined(AVX512)
INLINE vf vf_set(float x) { return (vf)_mm512_set1_ps(x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf vf_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf vf_sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
INLINE vi vf_round(vf a) { return (vi)_mm512_cvtps_epi32((__m512)a); }
INLINE vi vi_max(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vi vi_min(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
#elif defined(AVX2)
INLINE vf vf_set(float x) { return (vf)_mm256_set1_ps(x); }
INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf vf_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf vf_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf vf_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
INLINE vi vf_round(vf a) { return (vi)_mm256_cvtps_epi32((__m256)a); }
INLINE vi vi_max(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vi vi_min(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
#else
INLINE vf vf_set(float x) { return (vf){x, x, x, x}; }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vf_pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
INLINE vf vf_max(vf a, vf b) { return vf_pick(a > b, a, b); }
INLINE vf vf_min(vf a, vf b) { return vf_pick(a < b, a, b); }
INLINE vf vf_sqrt(vf a) { for (int i = 0; i < VW; i++) a[i] = sqrtf(a[i]); return a; }
INLINE vi vf_round(vf a) { vi v; for (int i = 0; i < VW; i++) v[i] = (int32_t)lrintf(a[i]); return v; }
INLINE vi vi_max(vi a, vi b) { vi more = a > b; return (a & more) | (b & ~more); }
INLINE vi vi_min(vi a, vi b) { return ~vi_max(~a, ~b); }
#endif

INLINE vf vf_zero(void) { return (vf){0}; }
INLINE vf vf_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
INLINE vi vi_abs(vi a) { return vi_max(a, -a); }
INLINE vf vf_float(vi a) { return __builtin_convertvector(a, vf); }

INLINE float vf_sum(vf a) {
  float s[VW];
  vf_store(s, a);
  for (int half = VW / 2; half; half /= 2)
    for (int i = 0; i < half; i++) s[i] += s[i + half];
  return s[0];
}

INLINE float vf_top(vf a) {
  float s[VW];
  vf_store(s, a);
  for (int half = VW / 2; half; half /= 2)
    for (int i = 0; i < half; i++) s[i] = s[i] > s[i + half] ? s[i] : s[i + half];
  return s[0];
}

// The float with the largest of some bits of floats that are not negative: a NaN, if there is one.
INLINE float vi_top_float(vi bits) {
  int32_t most = 0;
  for (int i = 0; i < VW; i++) most = bits[i] > most ? bits[i] : most;
  float f;
  memcpy(&f, &most, sizeof f);
  return f;
}

// e^x within 2 units in the last place for x <= 88; 0 far below. After Cephes: x = n ln 2 + r, a polynomial in r.
INLINE vf vf_exp(vf x) {
  vf low = vf_set(-103.0f);
  x = vf_max(vf_min(x, vf_set(88.3762f)), low);
  vf n = vf_float(vf_round(x * vf_set(1.44269504f)));
  vf r = vf_fma(n, vf_set(-0.693359375f), x);
  r = vf_fma(n, vf_set(2.12194440e-4f), r);
  vf p = vf_set(1.9875691500e-4f);
  p = vf_fma(p, r, vf_set(1.3981999507e-3f));
  p = vf_fma(p, r, vf_set(8.3334519073e-3f));
  p = vf_fma(p, r, vf_set(4.1665795894e-2f));
  p = vf_fma(p, r, vf_set(1.6666665459e-1f));
  p = vf_fma(p, r, vf_set(5.0000001201e-1f));
  p = vf_fma(p, r * r, r + vf_set(1.0f));
  // 2^n in two factors, so that results below the smallest normal number come out right.
  vi whole = vf_round(n), half = whole >> 1;
  vf one = (vf)((half + 127) << 23), other = (vf)((whole - half + 127) << 23);
  return p * one * other;
}

// 16-bit numbers. bf16 is the upper half of a float; rounding is to the nearest, ties to even.

INLINE float bf16_to_float(uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE uint16_t float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16) | 0x40;  // a NaN stays one
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#if defined(AVX512) && !defined(EMULATE_AVX512)
INLINE vf vf_from_bf16(vh h) { return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16); }
#elif defined(AVX2)
INLINE vf vf_from_bf16(vh h) { return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16); }
#else
INLINE vf vf_from_bf16(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
#endif
INLINE vh vf_to_bf16(vf a) {
  vu u = (vu)a;
  vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  vu nan = (vu)((u & 0x7fffffff) > 0x7f800000);
  return __builtin_convertvector((nan & ((u >> 16) | 0x40)) | (~nan & rounded), vh);
}

#if defined(AVX512)
INLINE vf vf_from_fp16(vh h) { return (vf)_mm512_cvtph_ps((__m256i)h); }
INLINE vh vf_to_fp16(vf a) { return (vh)_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT); }
INLINE float fp16_to_float(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
#elif defined(AVX2)
INLINE vf vf_from_fp16(vh h) { return (vf)_mm256_cvtph_ps((__m128i)h); }
INLINE vh vf_to_fp16(vf a) { return (vh)_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT); }
INLINE float fp16_to_float(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
#else
INLINE float fp16_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023, u;
  if (exponent == 0) {
    float f = (float)fraction * 0x1p-24f;
    return sign ? -f : f;
  }
  u = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
INLINE uint16_t float_to_fp16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return sign | 0x7e00;
  if (u >= 0x477ff000) return sign | 0x7c00;  // beyond 65504 after rounding
  if (u < 0x38800000) {                       // below the smallest normal number
    float a;
    memcpy(&a, &u, 4);
    return sign | (uint16_t)lrintf(a * 0x1p24f);
  }
  u += 0xfff + ((u >> 13) & 1);
  return sign | (uint16_t)((u - 0x38000000) >> 13);
}
INLINE vf vf_from_fp16(vh h) { vf v; for (int i = 0; i < VW; i++) v[i] = fp16_to_float(h[i]); return v; }
INLINE vh vf_to_fp16(vf a) { vh v; for (int i = 0; i < VW; i++) v[i] = float_to_fp16(a[i]); return v; }
#endif

// Activations: fp32, bf16 or fp16, by these numbers in the interface.

enum { FP32 = 0, BF16 = 1, FP16 = 2 };

INLINE vf load_as(const void *p, int64_t at, int dtype) {
  if (dtype == FP32) return vf_load((const float *)p + at);
  vh h = vh_load((const uint16_t *)p + at);
  return dtype == BF16 ? vf_from_bf16(h) : vf_from_fp16(h);
}
INLINE float number_as(const void *p, int64_t at, int dtype) {
  if (dtype == FP32) return ((const float *)p)[at];
  uint16_t h = ((const uint16_t *)p)[at];
  return dtype == BF16 ? bf16_to_float(h) : fp16_to_float(h);
}
INLINE void store_as(void *p, int64_t at, vf v, int dtype) {
  if (dtype == FP32) vf_store((float *)p + at, v);
  else vh_store((uint16_t *)p + at, dtype == BF16 ? vf_to_bf16(v) : vf_to_fp16(v));
}
INLINE vf load_n_as(const void *p, int64_t at, int64_t n, int dtype) {
  if (n >= VW) return load_as(p, at, dtype);
  if (dtype == FP32) return vf_load_n((const float *)p + at, n);
  vh h = {0};
  memcpy(&h, (const uint16_t *)p + at, 2 * n);
  return dtype == BF16 ? vf_from_bf16(h) : vf_from_fp16(h);
}
INLINE void store_n_as(void *p, int64_t at, vf v, int64_t n, int dtype) {
  if (n >= VW) { store_as(p, at, v, dtype); return; }
  if (dtype == FP32) { vf_store_n((float *)p + at, v, n); return; }
  vh h = dtype == BF16 ? vf_to_bf16(v) : vf_to_fp16(v);
  memcpy((uint16_t *)p + at, &h, 2 * n);
}

// Rows and columns of VW vectors change places.

INLINE void vf_transpose(vf r[VW]) {
#if defined(AVX512)
  __m512 t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
      u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int j = 0; j < 4; j++) {
    __m512 a = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88), b = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    __m512 c = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd), d = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    r[j] = (vf)_mm512_shuffle_f32x4(a, b, 0x88);
    r[8 + j] = (vf)_mm512_shuffle_f32x4(a, b, 0xdd);
    r[4 + j] = (vf)_mm512_shuffle_f32x4(c, d, 0x88);
    r[12 + j] = (vf)_mm512_shuffle_f32x4(c, d, 0xdd);
  }
#elif defined(AVX2)
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
    }
  for (int j = 0; j < 4; j++) {
    r[j] = (vf)_mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
    r[4 + j] = (vf)_mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
  }
#else
  float s[VW][VW];
  for (int i = 0; i < VW; i++) vf_store(s[i], r[i]);
  for (int i = 0; i < VW; i++)
    for (int j = 0; j < VW; j++) r[j][i] = s[i][j];
#endif
}
