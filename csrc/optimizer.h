// AdamW over many tensors in one call, and the norm of their gradients.
//
//   m = m + (1 - b1) (g - m)        v = b2 v + (1 - b2) g^2
//   w = w (1 - lr decay) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//
// Moments are fp32, or codes of the 8-bit dynamic map with one scale for every block of 256. Tensors are cut into
// tasks of TASK numbers, so that small ones share the threads and no result depends on their number.

#include <math.h>

#define STATE_BLOCK 256
#define TASK 8192  // numbers; a multiple of STATE_BLOCK

// Numbers below the smallest normal one count as 0 inside a task: they are slow, and moments decay into them.
#if defined(__SSE2__)
#include <xmmintrin.h>
#define FLUSH_BEGIN unsigned control_ = _mm_getcsr(); _mm_setcsr(control_ | 0x8040)
#define FLUSH_END _mm_setcsr(control_)
#else
#define FLUSH_BEGIN
#define FLUSH_END
#endif

// One parameter. The weight in fp32 is the parameter itself, `master`, or the parameter (bf16) and `low` together.
typedef struct {
  int64_t count;
  void *parameter;
  void *m, *v;                   // fp32, or uint8 codes where there is an absmax
  float *m_absmax, *v_absmax;    // (ceil(count / 256),)
  int16_t *low;
  float *master;
  int32_t dtype;                 // of the parameter and its gradient
  int32_t group;                 // of `graft_adamw_group`
} graft_adamw_tensor;

typedef struct {
  double lr, weight_decay;
} graft_adamw_group;

// The 8-bit dynamic map, signed or not; if it is, codes of negative numbers mirror those of positive. Its levels above
// 0 are numbered from 1 if signed, else from 2: then decade d = 1..7 has the numbers with one exponent, d - 1 or d.
// Entry 0 of a table is for the cell of 0.
typedef struct {
  float first[8], step[8];    // of a decade's levels
  float inverse[8], shift[8]; // the number nearest to x is x inverse[d] + shift[d], rounded,
  float last[8];              //   but the decade's last one at most
  float next[8];              // the midpoint above which decade d + 1 begins
  float one;                  // the midpoint below level 1, the only one of its decade
} graft_dynamic;

INLINE vf vf_of8(const float *table, vi index) {
#if defined(AVX512)
  __m512 t = _mm512_castps256_ps512(_mm256_loadu_ps(table));
  return (vf)_mm512_permutexvar_ps((__m512i)index, t);
#elif defined(AVX2)
  return (vf)_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
#else
  vf v;
  for (int i = 0; i < VW; i++) v[i] = table[index[i] & 7];  // as the others, which look at some bits only
  return v;
#endif
}

// VW codes; the compiler's own conversions between bytes and 32 bits go number by number.
INLINE vi codes_load(const uint8_t *codes) {
#if defined(AVX512)
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
#elif defined(AVX2)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
#else
  vi v;
  for (int i = 0; i < VW; i++) v[i] = codes[i];
  return v;
#endif
}

INLINE vi codes_load_n(const uint8_t *codes, int64_t n) {
  if (n >= VW) return codes_load(codes);
  uint8_t some[VW] = {0};
  memcpy(some, codes, (size_t)n);
  return codes_load(some);
}

INLINE void codes_store(uint8_t *codes, vi v) {
#if defined(AVX512)
  _mm_storeu_si128((__m128i *)codes, _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(AVX2)
  __m256i firsts = _mm256_shuffle_epi8((__m256i)v, _mm256_set1_epi32(0x0c080400));
  __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(firsts), _mm256_extracti128_si256(firsts, 1));
  _mm_storel_epi64((__m128i *)codes, both);
#else
  for (int i = 0; i < VW; i++) codes[i] = (uint8_t)v[i];
#endif
}

// The levels of codes, by arithmetic: a decade has twice as many as the one below, so its number is an exponent.
// Within 2 units in the last place of the table. Level 1 stands where decade 7 would go on.
INLINE vf levels_of(const graft_dynamic *map, int is_signed, vi code) {
  vi place = is_signed ? code - 127 : code + 1;
  vi number = (vi)vf_float(vi_abs(place));
  int32_t before = is_signed ? 126 : 127;
  vi low = vi_min(number & 0x7f800000, (vi){0} + ((before + 7) << 23));  // the first number of the decade
  vi decade = vi_max((low >> 23) - before, (vi){0});
  vf level = vf_fma((vf)number - (vf)low, vf_of8(map->step, decade), vf_of8(map->first, decade));
  level = vf_min(level, vf_set(1.0f));
  return is_signed ? (vf)((vi)level | (place & (int32_t)0x80000000)) : level;
}

// The codes of the levels nearest to x in [-1, 1]. The bits of a number, as an integer, are nearly its logarithm:
// they give the decade, or the one below.
INLINE vi nearest_codes(const graft_dynamic *map, int is_signed, vf x) {
  vf size = vf_abs(x);
  vf logarithm = vf_fma(vf_float((vi)size), vf_set(0.30103f / (1 << 23)), vf_set(6.8f - 127 * 0.30103f));
  vi decade = vi_max(vf_round(logarithm), (vi){0});
  decade -= (vi)(size > vf_of8(map->next, decade));
  vf place = vf_fma(size, vf_of8(map->inverse, decade), vf_of8(map->shift, decade));
  vi number = vf_round(vf_min(place, vf_of8(map->last, decade))) - (vi)(x > vf_set(map->one));
  if (!is_signed) return number - 1;
  vi negative = (vi)x >> 31;
  return (number ^ negative) - negative + 127;
}

typedef struct {
  float mix1, keep2, mix2, keep_weight, rate, root, eps, clip;
} adamw_numbers;

INLINE vf weight_at(const graft_adamw_tensor *t, int64_t at, int64_t n) {
  if (t->master) return vf_load_n(t->master + at, n);
  vf w = load_n_as(t->parameter, at, n, t->dtype);
  if (!t->low) return w;
  typedef int16_t shorts __attribute__((vector_size(2 * VW)));
  shorts low = {0};
  memcpy(&low, t->low + at, (size_t)n * 2);
  return (vf)((vi)w + __builtin_convertvector(low, vi));
}

INLINE void put_weight(const graft_adamw_tensor *t, int64_t at, int64_t n, vf w) {
  if (t->master) vf_store_n(t->master + at, w, n);
  store_n_as(t->parameter, at, w, n, t->dtype);
  if (!t->low) return;
  typedef int16_t shorts __attribute__((vector_size(2 * VW)));
  vi lost = (vi)w - (vi)vf_from_bf16(vf_to_bf16(w));
  vi above = lost > 32767;  // a tie that was rounded down: one step of the master is given up
  shorts low = __builtin_convertvector((lost & ~above) | (above & 32767), shorts);
  memcpy(t->low + at, &low, (size_t)n * 2);
}

// Update n <= VW numbers; m and v are changed in place.
INLINE void adamw_step(const graft_adamw_tensor *t, void *gradient, int64_t at, int64_t n, const adamw_numbers *a,
                       vf *m, vf *v) {
  vf g = load_n_as(gradient, at, n, t->dtype);
  if (a->clip != 1) {
    g *= vf_set(a->clip);
    store_n_as(gradient, at, g, n, t->dtype);
    if (t->dtype != FP32) g = load_n_as(gradient, at, n, t->dtype);
  }
  *m = vf_fma(vf_set(a->mix1), g - *m, *m);
  *v = *v * vf_set(a->keep2) + vf_set(a->mix2) * g * g;
  vf below = vf_sqrt(*v) * vf_set(a->root) + vf_set(a->eps);
  put_weight(t, at, n, weight_at(t, at, n) * vf_set(a->keep_weight) + vf_set(a->rate) * *m / below);
}

INLINE void adamw_fp32(const graft_adamw_tensor *t, void *gradient, int64_t from, int64_t to,
                       const adamw_numbers *a) {
  float *ms = t->m, *vs = t->v;
  int64_t at = from;
  for (; at + VW <= to; at += VW) {
    vf m = vf_load(ms + at), v = vf_load(vs + at);
    adamw_step(t, gradient, at, VW, a, &m, &v);
    vf_store(ms + at, m);
    vf_store(vs + at, v);
  }
  if (at < to) {
    vf m = vf_load_n(ms + at, to - at), v = vf_load_n(vs + at, to - at);
    adamw_step(t, gradient, at, to - at, a, &m, &v);
    vf_store_n(ms + at, m, to - at);
    vf_store_n(vs + at, v, to - at);
  }
}

// The first n numbers; 0 behind them.
INLINE vf vf_first(vf v, int64_t n) {
  vi live = {0};
  for (int64_t i = 0; i < n; i++) live[i] = -1;
  return (vf)((vi)v & live);
}

// Write a block of n values as codes, and return their absmax. top: the largest bits of their sizes, which are
// those of a NaN if there is one.
INLINE float quantise_state(const graft_dynamic *map, int is_signed, const float *values, vi top, int64_t n,
                            uint8_t *codes) {
  float most = vi_top_float(top);
  vf inverse = vf_set(1.0f / (most > 1e-38f ? most : 1e-38f));
  int64_t i = 0;
  for (; i + VW <= n; i += VW) codes_store(codes + i, nearest_codes(map, is_signed, vf_load(values + i) * inverse));
  if (i < n) {
    vi found = nearest_codes(map, is_signed, vf_load(values + i) * inverse);
    for (int j = 0; i + j < n; j++) codes[i + j] = (uint8_t)found[j];
  }
  return most;
}

// Update one block. whole: a constant, whether it has all its numbers.
INLINE void adamw_block(const graft_adamw_tensor *t, void *gradient, int64_t from, int64_t to, int whole,
                        const adamw_numbers *a, const graft_dynamic *maps) {
  float ms[STATE_BLOCK], vs[STATE_BLOCK];
  int64_t n = whole ? STATE_BLOCK : to - from, block = from / STATE_BLOCK;
  uint8_t *m_codes = (uint8_t *)t->m + from, *v_codes = (uint8_t *)t->v + from;
  vf m_scale = vf_set(t->m_absmax[block]), v_scale = vf_set(t->v_absmax[block]);
  vi m_top = {0}, v_top = {0};
  for (int64_t i = 0; i < n; i += VW) {
    int64_t left = whole ? VW : least(VW, n - i);
    vf m = levels_of(&maps[0], 1, codes_load_n(m_codes + i, left)) * m_scale;
    vf v = levels_of(&maps[1], 0, codes_load_n(v_codes + i, left)) * v_scale;
    adamw_step(t, gradient, from + i, left, a, &m, &v);
    if (!whole) m = vf_first(m, left), v = vf_first(v, left);
    vf_store(ms + i, m);
    vf_store(vs + i, v);
    m_top = vi_max(m_top, (vi)vf_abs(m));
    v_top = vi_max(v_top, (vi)vf_abs(v));
  }
  t->m_absmax[block] = quantise_state(&maps[0], 1, ms, m_top, n, m_codes);
  t->v_absmax[block] = quantise_state(&maps[1], 0, vs, v_top, n, v_codes);
}

INLINE void adamw_8bit(const graft_adamw_tensor *t, void *gradient, int64_t from, int64_t to, const adamw_numbers *a,
                       const graft_dynamic *maps) {
  for (; from + STATE_BLOCK <= to; from += STATE_BLOCK)
    adamw_block(t, gradient, from, from + STATE_BLOCK, 1, a, maps);
  if (from < to) adamw_block(t, gradient, from, to, 0, a, maps);
}

// Update numbers [from, to) of a tensor.
INLINE void adamw_task(const graft_adamw_tensor *t, void *gradient, int64_t from, int64_t to, const adamw_numbers *a,
                       const graft_dynamic *maps) {
  if (t->m_absmax) adamw_8bit(t, gradient, from, to, a, maps);
  else adamw_fp32(t, gradient, from, to, a);
}

// The same for fp32 alone: what is constant here is asked nowhere in the loop.
static __attribute__((noinline)) void adamw_task_fp32(const graft_adamw_tensor *of, void *gradient, int64_t from,
                                                      int64_t to, const adamw_numbers *a,
                                                      const graft_dynamic *maps) {
  graft_adamw_tensor t = *of;
  t.dtype = FP32, t.master = 0, t.low = 0;
  adamw_task(&t, gradient, from, to, a, maps);
}

// tensors (count,).  gradients (count,): of each, of its dtype, or NULL to leave it.  steps (count,): the number of
// this update.  clip: factor of all gradients, which are changed if it is not 1.  maps: of m and of v.
// tasks (count + 1,): scratch.
void KERNEL(adamw)(const graft_adamw_tensor *tensors, int64_t count, void *const *gradients,
                   const int64_t *steps, const graft_adamw_group *groups, double beta1, double beta2, double eps, double clip,
                   const graft_dynamic *maps, int64_t *tasks, int threads) {
  tasks[0] = 0;  // the first task of each tensor
  for (int64_t i = 0; i < count; i++)
    tasks[i + 1] = tasks[i] + (gradients[i] ? (tensors[i].count + TASK - 1) / TASK : 0);
#pragma omp parallel num_threads(threads)
  {
    FLUSH_BEGIN;
    int64_t i = 0, known = -1;
    adamw_numbers a = {0};
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks[count]; task++) {
      while (task >= tasks[i + 1]) i++;
      const graft_adamw_tensor t = tensors[i];  // a copy, which no store can change behind the compiler's back
      if (i != known) {
        known = i;
        double lr = groups[t.group].lr, n = (double)steps[i];
        a = (adamw_numbers){(float)(1 - beta1), (float)beta2, (float)(1 - beta2),
                            (float)(1 - lr * groups[t.group].weight_decay),
                            (float)(-lr / (1 - pow(beta1, n))),
                            (float)(1 / sqrt(1 - pow(beta2, n))), (float)eps, (float)clip};
      }
      int64_t from = (task - tasks[i]) * TASK, to = least(from + TASK, t.count);
      if (t.dtype == FP32 && !t.master && !t.low) adamw_task_fp32(&t, gradients[i], from, to, &a, maps);
      else adamw_task(&t, gradients[i], from, to, &a, maps);
    }
    FLUSH_END;
  }
}

// The sum of squares of all gradients, in double from tasks of TASK numbers that are summed in fp32.
// sums: as many doubles as there are tasks.
double KERNEL(sum_of_squares)(void *const *gradients, const int64_t *counts, const int32_t *dtypes, int64_t count,
                              int64_t *tasks, double *sums, int threads) {
  tasks[0] = 0;
  for (int64_t i = 0; i < count; i++) tasks[i + 1] = tasks[i] + (counts[i] + TASK - 1) / TASK;
#pragma omp parallel num_threads(threads)
  {
    FLUSH_BEGIN;
    int64_t i = 0;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks[count]; task++) {
      while (task >= tasks[i + 1]) i++;
      int64_t at = (task - tasks[i]) * TASK, to = least(at + TASK, counts[i]);
      vf one = vf_zero(), other = vf_zero();
      for (; at + 2 * VW <= to; at += 2 * VW) {
        vf x = load_as(gradients[i], at, dtypes[i]), y = load_as(gradients[i], at + VW, dtypes[i]);
        one = vf_fma(x, x, one);
        other = vf_fma(y, y, other);
      }
      for (; at < to; at += VW) {
        vf x = load_n_as(gradients[i], at, least(VW, to - at), dtypes[i]);
        one = vf_fma(x, x, one);
      }
      sums[task] = vf_sum(one + other);
    }
    FLUSH_END;
  }
  double total = 0;
  for (int64_t task = 0; task < tasks[count]; task++) total += sums[task];
  return total;
}
