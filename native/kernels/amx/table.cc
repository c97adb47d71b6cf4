// The amx tier: attention on bf16 tiles, and the tile state of a thread.
#include <immintrin.h>

#include "kernels/amx/amx.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

struct Tier {
  static void scores(size_t, const uint16_t* q, size_t pp, const uint16_t* const* keys, size_t groups, float* s) {
    const size_t chunks = pp / 32;
    for (size_t g = 0; g < groups; g += 2) {  // groups is even
      _tile_zero(0);
      _tile_zero(1);
      for (size_t i = 0; i < chunks; ++i) {
        _tile_loadd(4, q + 32 * i, 2 * pp);
        _tile_loadd(6, keys[g] + 512 * i, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, keys[g + 1] + 512 * i, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, s + 16 * g, 4 * kKeyStep);
      _tile_stored(1, s + 16 * g + 16, 4 * kKeyStep);
    }
  }
  static void values(size_t, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o) {
    for (size_t p = 0; p < pp; p += 32) {  // Pp is a multiple of 32
      _tile_zero(0);
      _tile_zero(1);
      for (size_t i = 0; i < runs; ++i) {
        _tile_loadd(4, w + 32 * i, 2 * kKeyStep);
        _tile_loadd(6, vals[i] + 2 * p, 4 * pp);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, vals[i] + 2 * p + 32, 4 * pp);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, o + p, 4 * pp);
      _tile_stored(1, o + p + 16, 4 * pp);
    }
  }
};

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {0};
  uint16_t colsb[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace

Kernels amx_table() { return make_table<Tier>("amx", amx::linear_bf16, amx::linear_i8, amx::linear_i4); }

void amx_tiles_begin() {
  const TileConfig config;
  // GCC 12 declares too small an operand for this intrinsic, so the stores above may be dropped: keep the barrier.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void amx_tiles_end() { _tile_release(); }

}  // namespace trivet
