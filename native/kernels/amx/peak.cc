// Peak loops of the amx tier: a 2 x 2 block of tiles over eight steps of K, fed from L1.
#include "kernels/amx/tiles.h"
#include "kernels/peaks.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

constexpr size_t kSteps = 8, kTile = 1024;  // four operand tiles a step: 32 KiB a round

enum class Kind { kInt8, kBf16 };

template <Kind kind>
double tiles(size_t rounds, uint8_t* scratch) {
  amx_tiles_begin();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t r = 0; r < rounds; ++r)
    for (size_t k = 0; k < kSteps; ++k) {
      const uint8_t* operands = scratch + k * 4 * kTile;
      _tile_loadd(4, operands, 64);
      _tile_loadd(5, operands + kTile, 64);
      _tile_loadd(6, operands + 2 * kTile, 64);
      _tile_loadd(7, operands + 3 * kTile, 64);
      if constexpr (kind == Kind::kInt8) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  _tile_stored(0, scratch, 64);
  _tile_stored(1, scratch + kTile, 64);
  _tile_stored(2, scratch + 2 * kTile, 64);
  _tile_stored(3, scratch + 3 * kTile, 64);
  amx_tiles_end();
  return static_cast<double>(rounds) * kSteps * 4 * (kind == Kind::kInt8 ? 32768 : 16384);
}

}  // namespace

PeakLoops amx_peaks() { return {tiles<Kind::kInt8>, tiles<Kind::kBf16>, avx512_peaks().read}; }

}  // namespace trivet
