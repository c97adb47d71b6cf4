// The amx tier: attention on bf16 tiles, and the tile state of a thread.
#include "kernels/amx/amx.h"
#include "kernels/amx/tiles.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

// c[r, 0..31] (+)= sum over i < num of a[r, 32 i ..] . (b0[i], b1[i]) for 16 rows, or for 32 that share each tile of b:
// keys and values come from L2, which cannot feed the tile unit when each tile of them is used once.
// meanwhile(i) is called on the way.
template <bool kTwo, bool kAdd, class B, class F>
TRIVET_INLINE void chain(const uint16_t* a, size_t lda, B&& b, size_t num, size_t ldb, float* c, size_t ldc, F&& meanwhile) {
  stored();
  if (kAdd) {
    _tile_loadd(0, c, 4 * ldc);
    _tile_loadd(1, c + 16, 4 * ldc);
    if (kTwo) _tile_loadd(2, c + 16 * ldc, 4 * ldc);
    if (kTwo) _tile_loadd(3, c + 16 * ldc + 16, 4 * ldc);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) _tile_zero(2);
    if (kTwo) _tile_zero(3);
  }
  for (size_t i = 0; i < num; ++i) {
    _tile_loadd(4, a + 32 * i, 2 * lda);
    _tile_loadd(6, b(i, 0), ldb);
    _tile_dpbf16ps(0, 4, 6);
    meanwhile(i);
    _tile_loadd(7, b(i, 1), ldb);
    _tile_dpbf16ps(1, 4, 7);
    if (kTwo) {
      _tile_loadd(5, a + 16 * lda + 32 * i, 2 * lda);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, 4 * ldc);
  _tile_stored(1, c + 16, 4 * ldc);
  if (kTwo) _tile_stored(2, c + 16 * ldc, 4 * ldc);
  if (kTwo) _tile_stored(3, c + 16 * ldc + 16, 4 * ldc);
}

struct Tier {
  template <class F>
  static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, F&& meanwhile) {
    const auto key = [&](size_t i, size_t j) { return keys + 16 * j * pp + 512 * i; };
    if (rows > 16) return chain<true, false>(q, pp, key, pp / 32, 64, s, kKeyStep, [](size_t) {});
    chain<false, false>(q, pp, key, pp / 32, 64, s, kKeyStep, meanwhile);
  }
  template <class F>
  static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, F&& meanwhile) {
    for (size_t p = 0; p < pp; p += 32) {  // Pp is a multiple of 32
      const auto value = [&](size_t i, size_t j) { return vals[i] + 2 * p + 32 * j; };
      if (rows > 16)
        chain<true, true>(w, kKeyStep, value, runs, 4 * pp, o + p, pp, [](size_t) {});
      else
        chain<false, true>(w, kKeyStep, value, runs, 4 * pp, o + p, pp, [&](size_t i) { meanwhile(i, p / 32); });
    }
  }
};

}  // namespace

Kernels amx_table() { return make_table<Tier>("amx", amx::linear_bf16, amx::linear_i8, amx::linear_i4); }

#ifdef TRIVET_EMULATE_TILES

namespace amx {
__thread EmulatedTile emulated_tiles[8];
__thread bool emulated_tiles_ready = false;
}  // namespace amx
void amx_tiles_begin() { amx::emulated_tiles_ready = true; }
void amx_tiles_end() { amx::emulated_tiles_ready = false; }

#else

namespace {
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {0};
  uint16_t colsb[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
}  // namespace

void amx_tiles_begin() {
  const TileConfig config;
  // GCC 12 declares too small an operand for this intrinsic, so the stores above may be dropped: keep the barrier.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}
void amx_tiles_end() { _tile_release(); }

#endif

}  // namespace trivet
