// Which instruction-set levels can run here. The compiler's builtins also ask whether the system saves the
// registers.

#include "graft.h"

#if defined(__x86_64__) && defined(__linux__) && !defined(EMULATE_AVX512) && !defined(WITHOUT_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

// Whether the processor has tiles for bf16 and Linux lets this process use them, which it asks for.
static int has_tiles(void) {
  enum { REQUEST = 0x1023, TILE_DATA = 18 };  // ARCH_REQ_XCOMP_PERM of arch_prctl, and a state of XSAVE
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  return d >> 22 & 1 && d >> 24 & 1 && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#else
#define has_tiles() 0
#endif

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
#if !defined(WITHOUT_AVX512_BF16)
  if (found & GRAFT_AVX512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
    found |= GRAFT_AVX512_BF16;
#if !defined(WITHOUT_AMX)
  if (found & GRAFT_AVX512_BF16 && has_tiles()) found |= GRAFT_AMX;
#endif
#endif
#endif
  return found;
}
