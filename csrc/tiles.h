// Products of bf16 by AMX: one instruction adds 32 products to each of 16 x 16 floats.
//
// x is packed as (steps of 32 numbers, MR rows, 16 words), so that a tile is one piece of memory; panels are those of
// pairs.h. Both are filled with 0 to a whole step.

#if defined(TILES)
#define STEP 16  // words of the inner dimension that one instruction takes

typedef struct {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];  // of a row of each tile
  uint8_t rows[16];
} tile_shapes;

// A thread sets the shapes of its tiles before it uses them, and gives the tiles back.
INLINE void tiles_begin(void) {
  static const tile_shapes shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&shapes);
}
INLINE void tiles_end(void) { _tile_release(); }

// y (MR, NR) = or += packed rows times a panel.  wide: whether more than one vector of its columns is asked for.
__attribute__((noinline)) static void tiles_product(const float *x, const float *panel, int64_t words, int wide,
                                                    float *y, int64_t stride, int add) {
  __asm__ volatile("" ::: "memory");  // the compiler does not see what tiles read and write
  int64_t apart = 4 * stride;
  float *below = y + 16 * stride;
  if (add) {
    _tile_loadd(0, y, apart);
    _tile_loadd(2, below, apart);
    if (wide) {
      _tile_loadd(1, y + 16, apart);
      _tile_loadd(3, below + 16, apart);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < words; k += STEP, x += STEP * MR, panel += STEP * NR) {
    _tile_loadd(4, x, 64);
    _tile_loadd(5, x + 16 * STEP, 64);
    _tile_loadd(6, panel, 4 * NR);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if (wide) {
      _tile_loadd(7, panel + 16, 4 * NR);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, y, apart);
  _tile_stored(2, below, apart);
  if (wide) {
    _tile_stored(1, y + 16, apart);
    _tile_stored(3, below + 16, apart);
  }
  __asm__ volatile("" ::: "memory");
}

// Pack rows [first, first + count) of x; rows that are missing are 0.
static void pack_tiles(const graft_term *t, int64_t inner, int64_t first, int64_t count, float *out) {
  const uint16_t *x = t->x;
  for (int64_t from = 0; from < inner; from += 2 * STEP)
    for (int64_t r = 0; r < MR; r++, out += STEP) {
      int64_t n = r < count ? least(2 * STEP, inner - from) : 0;
      if (n < 2 * STEP) memset(out, 0, 4 * STEP);
      memcpy(out, x + (first + r) * t->stride + from, 2 * (size_t)n);
    }
}

#else
#define STEP 1
#define tiles_begin() (void)0
#define tiles_end() (void)0
#endif
