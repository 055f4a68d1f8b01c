// The C interface of Graft's kernels: plain pointers, sizes and numbers, called from Python by ctypes.
//
// Every function exists once for each instruction-set level, with the level's name behind its own:
// graft_linear_avx2. A level is one unit (portable.c, avx2.c, ...) that includes the same sources under other
// flags. Python asks `graft_levels` which of them this processor can run.
//
// Tensors are contiguous rows. `threads` is the number of OpenMP threads to use. Nothing is allocated that
// outlives a call but the thread's own scratch memory.

#pragma once

#include <stdint.h>

// A weight (rows, columns) of numbers, or packed in few bits. Fields that a kind has no use for are 0.
enum { W_FP32 = 0, W_BF16 = 1, W_FP16 = 2, W_LEVELS4 = 3, W_INT8 = 4, W_GROUPS = 5 };

typedef struct {
  int32_t kind;
  int32_t bits;                // of W_GROUPS: 2, 3, 4 or 8
  int64_t rows, columns;
  int64_t block;               // columns that share a scale; blocks never cross a row
  const void *codes;           // the numbers themselves, or codes; 4 bits: the even column in the high half
  const void *absmax;          // (rows, blocks) float, or bytes if `nested_levels` is given
  const float *levels;         // W_LEVELS4: 16 levels
  const float *nested_levels;  // 256 levels of the quantised absmax:
  const float *nested_absmax;  //   absmax = level * nested_absmax[place / nested_group] + nested_offset
  int64_t nested_group;
  float nested_offset;
  const uint16_t *scale;       // W_GROUPS: (rows, blocks) fp16
  const uint16_t *minimum;     // W_GROUPS: (rows, blocks) fp16
  int64_t tiled;               // of W_LEVELS4: absmax is float (tiles of 16 rows, chunks of a row, 16), a chunk for each 64
                               //   columns, or 32 where 64 do not divide the block; for the decoder alone
} graft_weight;

// One term of a sum of products: scale * x W^T, or scale * x W.
//   x (m, inner) in `dtype`: rows are `stride` numbers apart, numbers of a row `step`
typedef struct {
  const void *x;
  int32_t dtype;  // 0 fp32, 1 bf16, 2 fp16
  int32_t across; // 0: x W^T, inner = W's columns; 1: x W, inner = W's rows
  int64_t stride;
  int64_t step;
  float scale;
  const graft_weight *weight;
} graft_term;

// The levels that this processor and its system can run, as bits of GRAFT_LEVEL_*.
enum { GRAFT_PORTABLE = 1, GRAFT_AVX2 = 2, GRAFT_AVX512 = 4, GRAFT_AVX512_BF16 = 8, GRAFT_AMX = 16 };
int graft_levels(void);
