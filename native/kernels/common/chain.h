// Products of bf16 in the order of the tile unit on float units, for tiers with fma: with activations already widened to
// float. A product of two bf16 is exact in f32, so fma and multiply-then-add agree.
//
// A tier supplies Unit: struct with
//   F, kLanes, kMostRows   a vector of floats, its length, and how many rows a block has at most
//   zero(), fma(a, b, c), add(a, b), store(p, v)
//   widen(x, out)          kLanes bf16 to floats
//   floats(p), pair(p)     kLanes floats, two floats again and again
//   load(p, left, right)   bf16 pairs of kLanes columns as floats, in memory's order but for this: left has the first two
//                          columns of every four, right the others
//   add_pairs(left, right) the sum of each pair, in the order of columns
#pragma once

#include "kernels/common/kv_runs.h"
#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// Cuts `num` rows into runs of at most `most` that differ by one at most, and calls f(first, length, run, runs) for each.
template <class F>
TRIVET_INLINE void for_runs(size_t num, size_t most, F&& f) {
  const size_t runs = (num + most - 1) / most;
  for (size_t run = 0, first = 0; run < runs; ++run) {
    const size_t length = (num - first + runs - run - 1) / (runs - run);
    f(first, length, run, runs);
    first += length;
  }
}

template <class Unit>
TRIVET_INLINE void widen(const uint16_t* x, size_t num, float* out) {  // num: a multiple of kLanes
  for (size_t i = 0; i < num; i += Unit::kLanes) Unit::widen(x + i, out + i);
}

// c[r, n] (+)= sum over i < num, in order, of (even + odd) for R rows and kLanes Q columns n, where even and odd are the
// sums over j < 16 of a[r, 32 i + 2 j] or a[r, 32 i + 2 j + 1] times the pairs at(i, j, q), kLanes of them. kAdd: the sum
// begins with c, else with 0.
//
// Lanes hold even and odd sums by turns, as memory holds the factors: widening takes one instruction a vector, and a pair
// of a row's numbers is one load.
template <class Unit, bool kAdd, int R, int Q, class At>
TRIVET_INLINE void chain(const float* a, size_t lda, At&& at, size_t num, float* c, size_t ldc) {
  using F = typename Unit::F;
  F acc[R][Q];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) acc[r][q] = kAdd ? Unit::floats(c + r * ldc + Unit::kLanes * q) : Unit::zero();
  for (size_t i = 0; i < num; ++i) {
    F left[R][Q], right[R][Q];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) left[r][q] = right[r][q] = Unit::zero();
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      F wl[Q], wr[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) Unit::load(at(i, j, q), wl[q], wr[q]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F x = Unit::pair(a + r * lda + 32 * i + 2 * j);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          left[r][q] = Unit::fma(wl[q], x, left[r][q]);
          right[r][q] = Unit::fma(wr[q], x, right[r][q]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) acc[r][q] = Unit::add(acc[r][q], Unit::add_pairs(left[r][q], right[r][q]));
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) Unit::store(c + r * ldc + Unit::kLanes * q, acc[r][q]);
}

// The products of attention (attend_bf16.h). Unit::tile<kAdd>(rows, a, lda, at, num, c, ldc): chain for 16 columns and any number
// of rows; at(i, j) gives the 16 pairs.
template <class Unit>
struct ChainProducts {
  static constexpr bool kByLines = false;
  static constexpr size_t kMostAsking = kQueryTile;
  static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, const RunsAhead& ahead, size_t run) {
    alignas(64) float wide[kQueryTile * kMaxHeadDim];
    widen<Unit>(q, rows * pp, wide);
    for (size_t g = 0; g < 2; ++g) {
      for (size_t part = g; part < pp / 32; part += 2) ahead.share(run, part, pp / 32);
      const auto key = [&](size_t i, size_t j) { return keys + 16 * g * pp + 512 * i + 32 * j; };
      Unit::template tile<false>(rows, wide, pp, key, pp / 32, s + 16 * g, kKeyStep);
    }
  }
  static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, const RunsAhead& ahead) {
    alignas(64) float wide[kQueryTile * kKeyStep];
    for (size_t r = 0; r < rows; ++r) widen<Unit>(w + r * kKeyStep, 32 * runs, wide + r * kKeyStep);
    for (size_t p = 0; p < pp; p += 16) {
      if (p % 32 == 0)
        for (size_t i = 0; i < runs; ++i) ahead.share(i, p / 32, pp / 32);
      const auto value = [&](size_t i, size_t j) { return vals[i] + 2 * (p + j * pp); };
      Unit::template tile<true>(rows, wide, kKeyStep, value, runs, o + p, pp);
    }
  }
};

}  // namespace
}  // namespace trivet
