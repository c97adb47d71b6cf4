// The amx tier: attention of up to 16 rows on tiles, and the tile state of a thread.
#include "kernels/amx/amx.h"
#include "kernels/amx/overlap.h"
#include "kernels/amx/tiles.h"
#include "kernels/avx512/code_products.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

// c[r, 0..31] (+)= sum over i < num of a[r, 32 i ..] . (b(i, 0), b(i, 1)) for 16 rows. meanwhile(i) is called on the way.
template <bool kAdd, class B, class F>
TRIVET_INLINE void chain(const uint16_t* a, size_t lda, B&& b, size_t num, size_t ldb, float* c, size_t ldc, F&& meanwhile) {
  stored();
  if (kAdd) {
    _tile_loadd(0, c, 4 * ldc);
    _tile_loadd(1, c + 16, 4 * ldc);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (size_t i = 0; i < num; ++i) {
    _tile_loadd(4, a + 32 * i, 2 * lda);
    _tile_loadd(6, b(i, 0), ldb);
    _tile_dpbf16ps(0, 4, 6);
    meanwhile(i);
    _tile_loadd(7, b(i, 1), ldb);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, 4 * ldc);
  _tile_stored(1, c + 16, 4 * ldc);
}

// For up to 16 rows, as everything here: more are in overlap.h.
struct TileHalves {
  static constexpr bool kByLines = false;
  static constexpr size_t kMostAsking = 16;
  static void scores(size_t, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, const RunsAhead& ahead, size_t run) {
    chain<false>(q, pp, [&](size_t i, size_t j) { return keys + 16 * j * pp + 512 * i; }, pp / 32, 64, s, kKeyStep,
                 [&](size_t part) { ahead.share(run, part, pp / 32); });
  }
  static void values(size_t, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, const RunsAhead& ahead) {
    for (size_t p = 0; p < pp; p += 32)  // Pp is a multiple of 32
      chain<true>(w, kKeyStep, [&](size_t i, size_t j) { return vals[i] + 2 * p + 32 * j; }, runs, 4 * pp, o + p, pp,
                  [&](size_t i) { ahead.share(i, p / 32, pp / 32); });
  }
};

// c[r, 0..31] = sum over i < num of a[r, 64 i ..] . (b(i, 0), b(i, 1)) for 16 rows. Of numbers in halves the high and the low
// ones apart, each tile of b used for both. meanwhile(i) is called on the way.
template <class Numbered, class B, class F>
TRIVET_INLINE void chain_codes(const Numbered& a, B&& b, size_t num, size_t ldb, int32_t* c, size_t ldc, F&& meanwhile) {
  constexpr bool kHalves = Numbered::kParts == 2;
  alignas(64) int32_t sums[2][16][32];
  stored();
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kHalves) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (size_t i = 0; i < num; ++i) {
    _tile_loadd(4, a.bytes(0) + 64 * i, a.row_bytes());
    _tile_loadd(6, b(i, 0), ldb);
    _tile_dpbsud(0, 4, 6);
    meanwhile(i);
    _tile_loadd(7, b(i, 1), ldb);
    _tile_dpbsud(1, 4, 7);
    if constexpr (kHalves) {
      _tile_loadd(5, a.bytes(0) + a.length + 64 * i, a.row_bytes());
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  if constexpr (!kHalves) {
    _tile_stored(0, c, 4 * ldc);
    _tile_stored(1, c + 16, 4 * ldc);
    stored();
    return;
  }
  _tile_stored(0, sums[0][0], 128);
  _tile_stored(1, sums[0][0] + 16, 128);
  _tile_stored(2, sums[1][0], 128);
  _tile_stored(3, sums[1][0] + 16, 128);
  stored();
  for (size_t r = 0; r < 16; ++r)
    for (size_t j = 0; j < 32; j += 16) {
      const vi number = (load(sums[0][r] + j) << 8) + load(sums[1][r] + j);
      __builtin_memcpy(c + r * ldc + j, &number, 64);
    }
}

// A tile holds 64 numbers of 16 keys, or 64 keys of 16 numbers. Where Pp is no multiple of 64 the last tile of keys reaches into
// what follows them, and meets zeros of the query. Values are copied together, since 64 keys are two runs. Up to four rows
// are for vectors.
struct TileCodes {
  using Query = Bytes;
  using Weights = Halves;
  static constexpr bool kByLines = true;
  static constexpr size_t kMostAsking = 16;
  static constexpr size_t kFew = 4;
  static void scores(size_t rows, const Bytes& q, size_t pp, const uint8_t* keys, int32_t* s, const RunsAhead& ahead, size_t run) {
    if (rows <= kFew) return CodeProducts::scores(rows, q, pp, keys, s, ahead, run);
    const size_t num = q.length / 64, lines = pp / 2;
    chain_codes(q, [&](size_t i, size_t g) { return keys + 16 * g * pp + 1024 * i; }, num, 64, s, kKeyStep, [&](size_t i) {
      if (ahead.is_empty()) return;
      for (size_t n = lines * i / num; n < lines * (i + 1) / num; ++n) ahead.line(run, n);
    });
  }
  static void values(size_t rows, const Halves& w, const uint8_t* const* vals, size_t runs, size_t pp, int32_t* o,
                     const RunsAhead& ahead, uint8_t* memory) {
    if (rows <= kFew) return CodeProducts::values(rows, w, vals, runs, pp, o, ahead, memory);
    for (size_t i = 0; i < runs; ++i) std::memcpy(memory + i * 32 * pp, vals[i], 32 * pp);
    for (size_t p = 0; p < pp; p += 32)
      chain_codes(w, [&](size_t i, size_t g) { return memory + i * 64 * pp + 4 * p + 64 * g; }, (runs + 1) / 2, 4 * pp, o + p, pp,
                  [&](size_t i) {
                    if (ahead.is_empty()) return;
                    for (size_t n = p / 2; n < p / 2 + 16; ++n)
                      for (size_t j = 2 * i; j < std::min(2 * i + 2, runs); ++j) ahead.line(j, n);
                  });
  }
};

void attend(const AttendItem& it, float* out, float* row_max, float* row_sum, uint8_t* scratch) {
  if (it.num_rows > 16)
    return (it.kv.int8 ? attend_overlapped<OverlapCodes> : attend_overlapped<OverlapHalves>)(it, out, row_max, row_sum, scratch);
  attend_item<TileHalves, TileCodes>(it, out, row_max, row_sum, scratch);
}

}  // namespace

Kernels amx_table() {
  Kernels table = make_table<TileHalves, TileCodes>("amx", amx::linear_bf16, amx::linear_i8, amx::linear_i4);
  table.attend = attend;
  return table;
}

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
