// Scratch memory that a thread keeps from call to call: a fresh large block costs more in page faults than
// the work that is done in it.

#include <stdint.h>
#include <stdlib.h>

#if defined(_OPENMP)
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

typedef struct {
  void *memory;
  size_t size;
} arena;

// Return `size` bytes, aligned to a cache line; what an earlier call left there is lost. NULL if there is none.
static void *scratch_of(arena *own, size_t size) {
  if (own->size < size) {
    free(own->memory);
    size = (size + 4095) & ~(size_t)4095;
    own->memory = aligned_alloc(64, size);
    own->size = own->memory ? size : 0;
  }
  return own->memory;
}

// How many threads are worth waking for so many numbers: a fork and a join cost some microseconds.
static inline int crew(int threads, int64_t numbers) { return numbers < 1 << 14 ? 1 : threads; }
