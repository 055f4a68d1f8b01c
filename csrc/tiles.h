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

// Where 32 rows of bf16, or 16 rows of pairs, lie for one step, and how far the next step is: in bytes.
typedef struct {
  const void *at;
  int64_t row, step;
} tiled;

// c (32, 32), or its first 16 columns, = or += x w over so many steps.  apart: bytes between rows of c.
INLINE void tiles_product(tiled x, tiled w, int64_t steps, int wide, float *c, int64_t apart,
                                                    int add) {
  __asm__ volatile("" ::: "memory");  // the compiler does not see what tiles read and write
  float *below = c + 4 * apart;
  if (add) {
    _tile_loadd(0, c, apart);
    _tile_loadd(2, below, apart);
    if (wide) {
      _tile_loadd(1, c + 16, apart);
      _tile_loadd(3, below + 16, apart);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const char *upper = x.at, *lower = upper + 16 * x.row, *left = w.at, *right = left + 64;
  for (int64_t k = 0; k < steps; k++, upper += x.step, lower += x.step, left += w.step, right += w.step) {
    _tile_loadd(4, upper, x.row);
    _tile_loadd(5, lower, x.row);
    _tile_loadd(6, left, w.row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if (wide) {
      _tile_loadd(7, right, w.row);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, apart);
  _tile_stored(2, below, apart);
  if (wide) {
    _tile_stored(1, c + 16, apart);
    _tile_stored(3, below + 16, apart);
  }
  __asm__ volatile("" ::: "memory");
}

// y (MR, NR) = or += packed rows times a panel of so many words.  wide: whether more than one vector is asked for.
__attribute__((noinline)) static void panel_by_tiles(const float *x, const float *panel, int64_t words, int wide, float *y, int64_t stride,
                           int add) {
  tiled rows = {x, 4 * STEP, 4 * STEP * MR}, columns = {panel, 4 * NR, 4 * STEP * NR};
  tiles_product(rows, columns, words / STEP, wide, y, 4 * stride, add);
}

// Pack rows [first, first + count) of x; rows that are missing are 0.
static void pack_tiles(const graft_term *t, int64_t inner, int64_t first, int64_t count, float *out) {
  const uint16_t *x = (const uint16_t *)t->x + first * t->stride;
  for (int64_t from = 0; from < inner; from += 2 * STEP)
    for (int64_t r = 0; r < MR; r++, out += STEP) {
      int64_t n = r < count ? least(2 * STEP, inner - from) : 0;
      vf words = vf_zero();
      if (n == 2 * STEP) memcpy(&words, x + r * t->stride + from, sizeof words);
      else memcpy(&words, x + r * t->stride + from, 2 * (size_t)n);
      vf_store(out, words);
    }
}

#else
#define STEP 1
#define tiles_begin() (void)0
#define tiles_end() (void)0
#endif
