// Products of one block of rows and panels on tiles, where each weight is used once.
#pragma once

#include "kernels/amx/finisher.h"
#include "kernels/amx/tiles.h"
#include "kernels/avx512/unpack.h"

namespace trivet {
namespace {

// A macro, since the intrinsics paste their register numbers into the assembly text.
#define TRIVET_DOT(c, a, b)       \
  do {                            \
    if constexpr (kInt8)          \
      _tile_dpbssd(c, a, b);      \
    else                          \
      _tile_dpbf16ps(c, a, b);    \
  } while (0)

TRIVET_INLINE void prefetch_tile(const uint8_t* at) {
  for (int i = 0; i < 16; ++i) _mm_prefetch(reinterpret_cast<const char*>(at + 64 * i), _MM_HINT_T0);
}
constexpr size_t kAhead = 2048;  // bytes of each weight stream that are asked for ahead; more pushes activations out of L1

// The place kAhead bytes ahead in a stream of panels of which every `streams`-th is read.
TRIVET_INLINE const uint8_t* ahead_of(const uint8_t* panel, size_t at, size_t panel_bytes, size_t streams) {
  const size_t ahead = at + kAhead;
  return panel + ahead + (ahead < panel_bytes ? 0 : (streams - 1) * panel_bytes);
}

// The accumulators, two side by side.
TRIVET_INLINE void store_sums(uint8_t* c) {
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 64, 128);
  _tile_stored(2, c + 2048, 128);
  _tile_stored(3, c + 2112, 128);
}

// Up to 16 rows against 4 panels: each weight tile is used once, so four streams come from memory. `each` is called once a
// chunk of 64 bytes. Two panels of a row lie side by side in c, the other two 2 KiB behind.
template <bool kInt8, class F>
TRIVET_INLINE void block_1x4(const uint8_t* a, size_t lda, const uint8_t* b, size_t panel_bytes, size_t chunks, uint8_t* c,
                             F&& each) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t i = 0; i < chunks; ++i, a += 64, b += 1024) {
    const uint8_t* ahead = ahead_of(b - 1024 * i, 1024 * i, panel_bytes, 4);
    _tile_loadd(4, a, lda);
    prefetch_tile(ahead);
    _tile_loadd(6, b, 64);
    TRIVET_DOT(0, 4, 6);
    prefetch_tile(ahead + panel_bytes);
    _tile_loadd(7, b + panel_bytes, 64);
    TRIVET_DOT(1, 4, 7);
    prefetch_tile(ahead + 2 * panel_bytes);
    _tile_loadd(6, b + 2 * panel_bytes, 64);
    TRIVET_DOT(2, 4, 6);
    prefetch_tile(ahead + 3 * panel_bytes);
    _tile_loadd(7, b + 3 * panel_bytes, 64);
    TRIVET_DOT(3, 4, 7);
    each();
  }
  store_sums(c);
}

// The same for int4, 16 rows against 4 panels or 32 against 2: the tiles of the next 64 k are unpacked while the tile unit
// is at these, so that they go no farther than L1. `each` is called once a chunk.
template <bool kTwo, class F>
TRIVET_INLINE void block_i4(const uint8_t* a, size_t lda, const Linear& w, size_t panel, size_t chunks, uint8_t* unpacked,
                            uint8_t* c, F&& each) {
  constexpr size_t kPanels = kTwo ? 2 : 4;
  const auto unpack = [&](size_t i) {
    for (size_t p = 0; p < kPanels; ++p) {
      const uint8_t* codes = w.codes + (panel + p) * w.panel_bytes() + 512 * i;
      const uint8_t* ahead = ahead_of(codes - 512 * i, 512 * i, w.panel_bytes(), kPanels);
      for (int j = 0; j < 8; ++j) _mm_prefetch(reinterpret_cast<const char*>(ahead + 64 * j), _MM_HINT_T0);
      const int8_t* m = w.multipliers + (panel + p) * (w.kp / 2) + 32 * i;
      _mm_prefetch(reinterpret_cast<const char*>(m + kPanels * (w.kp / 2)), _MM_HINT_T0);
      unpack_tile(codes, m, unpacked + 4096 * (i % 2) + 1024 * p);
    }
    stored();
  };
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  unpack(0);
  for (size_t i = 0; i < chunks; ++i, a += 64) {
    const uint8_t* b = unpacked + 4096 * (i % 2);
    if (i + 1 < chunks) unpack(i + 1);
    _tile_loadd(4, a, lda);
    if (kTwo) _tile_loadd(5, a + 16 * lda, lda);
    _tile_loadd(6, b, 64);
    _tile_dpbssd(0, 4, 6);
    if (kTwo) _tile_dpbssd(2, 5, 6);
    _tile_loadd(7, b + 1024, 64);
    _tile_dpbssd(1, 4, 7);
    if (kTwo) _tile_dpbssd(3, 5, 7);
    if (!kTwo) {
      _tile_loadd(6, b + 2048, 64);
      _tile_dpbssd(2, 4, 6);
      _tile_loadd(7, b + 3072, 64);
      _tile_dpbssd(3, 4, 7);
    }
    each();
  }
  store_sums(c);
}

// 16 rows of one panel, for the last ones.
template <bool kInt8>
void block_1x1(const uint8_t* a, size_t lda, const uint8_t* b, size_t chunks, uint8_t* c) {
  _tile_zero(0);
  for (size_t i = 0; i < chunks; ++i, a += 64, b += 1024) {
    _tile_loadd(4, a, lda);
    _tile_loadd(6, b, 64);
    TRIVET_DOT(0, 4, 6);
  }
  _tile_stored(0, c, 64);
}

// What follows the products of one panel or two, 1 KiB apart at c.
template <bool kInt8>
TRIVET_INLINE void finish_rows(const Linear& w, const Rows& x, size_t row, size_t panel, const uint8_t* c, size_t panels,
                               const Output& out) {
  const size_t rows = x.num - row < 16 ? x.num - row : 16;
  Acc<kInt8> acc[2];
  for (size_t r = 0; r < rows; ++r) {
    for (size_t p = 0; p < panels; ++p) __builtin_memcpy(&acc[p], c + 1024 * p + 64 * r, 64);
    if (out.epilogue == Epilogue::kSiluMul)
      finish_gate_up(w, x, panel, row + r, acc[0], acc[1], out);
    else
      for (size_t p = 0; p < panels; ++p) finish(w, x, panel + p, row + r, acc[p], out);
  }
}

}  // namespace
}  // namespace trivet
