// The products of attention with int8 keys and values by vpdpbusd: the codes of the cache are the unsigned operand, the bytes of
// a query or the high and low halves of a weight the signed one, each half in sums of its own.
#pragma once

#include <immintrin.h>

#include "kernels/avx512/dpbusd.h"
#include "kernels/common/attend_int8.h"
#include "kernels/common/chain.h"

namespace trivet {
namespace {

// R rows of Bytes or Halves from `row` on against 32 columns of codes, 32 numbers at a time: at(i, j, g) gives numbers
// 32 i + 4 j .. + 3 of columns 16 g .. + 15.
template <int R, class Numbered, class At>
void block_of_codes(const Numbered& a, size_t row, size_t num, At&& at, int32_t* c, size_t ldc) {
  __m512i acc[R][Numbered::kParts][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (auto& part : acc[r]) part[0] = part[1] = _mm512_setzero_si512();
  const uint8_t* x = a.bytes(row);
  for (size_t i = 0; i < num; ++i)
#pragma GCC unroll 8
    for (size_t j = 0; j < 8; ++j) {
      const __m512i first = _mm512_loadu_si512(at(i, j, 0)), second = _mm512_loadu_si512(at(i, j, 1));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (size_t part = 0; part < Numbered::kParts; ++part) {
          int32_t four;
          __builtin_memcpy(&four, x + size_t(r) * a.row_bytes() + part * a.length + 32 * i + 4 * j, 4);
          const __m512i s = _mm512_set1_epi32(four);
          acc[r][part][0] = dpbusd(acc[r][part][0], first, s);
          acc[r][part][1] = dpbusd(acc[r][part][1], second, s);
        }
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int g = 0; g < 2; ++g) {
      __m512i sum = acc[r][0][g];
      if constexpr (Numbered::kParts == 2) sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), acc[r][1][g]);
      _mm512_storeu_si512(c + (row + size_t(r)) * ldc + 16 * g, sum);
    }
}

template <class Numbered, class At>
TRIVET_INLINE void block_of_codes(const Numbered& a, size_t row, size_t rows, size_t num, At&& at, int32_t* c, size_t ldc) {
  switch (rows) {
    case 1: return block_of_codes<1>(a, row, num, at, c, ldc);
    case 2: return block_of_codes<2>(a, row, num, at, c, ldc);
    case 3: return block_of_codes<3>(a, row, num, at, c, ldc);
    case 4: return block_of_codes<4>(a, row, num, at, c, ldc);
  }
}

struct CodeProducts {
  using Query = Bytes;
  using Weights = Halves;
  static constexpr bool kByLines = true;
  static constexpr size_t kMostAsking = kQueryTile;
  // The first rows ask, with asking(i, j, g), the others do not, with at(i, j, g).
  template <class Numbered, class At, class Asking>
  TRIVET_INLINE void tile(const Numbered& a, size_t rows, size_t num, int32_t* c, size_t ldc, bool asks, At&& at, Asking&& asking) {
    for_runs(rows, 4, [&](size_t r, size_t length, size_t run, size_t) {
      if (run == 0 && asks) return block_of_codes(a, r, length, num, asking, c, ldc);
      block_of_codes(a, r, length, num, at, c, ldc);
    });
  }
  static void scores(size_t rows, const Bytes& q, size_t pp, const uint8_t* keys, int32_t* s, const RunsAhead& ahead, size_t run) {
    const auto at = [&](size_t i, size_t j, size_t g) { return keys + 16 * g * pp + 512 * i + 64 * j; };
    tile(q, rows, pp / 32, s, kKeyStep, !ahead.is_empty(), at, [&](size_t i, size_t j, size_t g) {
      ahead.line(run, 16 * i + 2 * j + g);
      return at(i, j, g);
    });
  }
  static void values(size_t rows, const Halves& w, const uint8_t* const* vals, size_t runs, size_t pp, int32_t* o,
                     const RunsAhead& ahead, uint8_t*) {
    for (size_t p = 0; p < pp; p += 32) {
      const auto at = [&](size_t i, size_t j, size_t g) { return vals[i] + 4 * (j * pp + p + 16 * g); };
      tile(w, rows, runs, o + p, pp, !ahead.is_empty(), at, [&](size_t i, size_t j, size_t g) {
        ahead.line(i, p / 2 + 2 * j + g);
        return at(i, j, g);
      });
    }
  }
};

}  // namespace
}  // namespace trivet
