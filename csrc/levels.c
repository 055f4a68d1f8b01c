// Which instruction-set levels can run here. The compiler's builtins also ask whether the system saves the
// registers.

#include "graft.h"

__attribute__((visibility("default"))) int graft_levels(void) {
  int found = GRAFT_PORTABLE;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found |= GRAFT_AVX2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    found |= GRAFT_AVX512;
#if defined(EMULATE_AVX512)
  return found | GRAFT_AVX512;
#endif
  if (found & GRAFT_AVX512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
    found |= GRAFT_AVX512_BF16;
#endif
  return found;
}
