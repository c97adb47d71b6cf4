// Products of bf16 in the order of the tile unit, with activations already widened to float: what linear.cc and the
// attention of table.cc share. A product of two bf16 is exact in f32, so fma and multiply-then-add agree.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"

namespace trivet {
namespace {

// Six rows at most: their even and odd sums of eight columns fill twelve of the sixteen registers (linear.cc is alike).
constexpr size_t kMostRows = 6;

// Cuts `num` rows into runs of at most kMostRows that differ by one at most, and calls f(first, length, run, runs) for each.
template <class F>
TRIVET_INLINE void for_runs(size_t num, F&& f) {
  const size_t runs = (num + kMostRows - 1) / kMostRows;
  for (size_t run = 0, first = 0; run < runs; ++run) {
    const size_t length = (num - first + runs - run - 1) / (runs - run);
    f(first, length, run, runs);
    first += length;
  }
}

TRIVET_INLINE void widen(const uint16_t* x, size_t num, float* out) {  // num: a multiple of 8
  for (size_t i = 0; i < num; i += 8) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    _mm256_storeu_ps(out + i, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
  }
}

// c[r, 8 q ..] = sum over i < num, in order, of (even + odd) for R rows and 8 Q columns, where even and odd are the sums
// over j < 16 of a[r, 32 i + 2 j] or a[r, 32 i + 2 j + 1] times the pairs at(i, j, q), eight of them.
//
// Lanes hold even and odd sums by turns, as memory holds the factors: widening takes one instruction for eight of them,
// on a port that does not multiply, and a pair of a row's numbers is one load.
template <int R, int Q, class At>
TRIVET_INLINE void chain(const float* a, size_t lda, At&& at, size_t num, float* c, size_t ldc) {
  const __m256i zero = _mm256_setzero_si256();
  __m256 acc[R][Q];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) acc[r][q] = _mm256_setzero_ps();
  for (size_t i = 0; i < num; ++i) {
    __m256 left[R][Q], right[R][Q];  // columns 0 1 4 5 and 2 3 6 7
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) left[r][q] = right[r][q] = _mm256_setzero_ps();
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      __m256 wl[Q], wr[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(i, j, q)));
        wl[q] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, v));
        wr[q] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, v));
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        double pair;
        __builtin_memcpy(&pair, a + r * lda + 32 * i + 2 * j, 8);
        const __m256 x = _mm256_castpd_ps(_mm256_set1_pd(pair));
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          left[r][q] = _mm256_fmadd_ps(wl[q], x, left[r][q]);
          right[r][q] = _mm256_fmadd_ps(wr[q], x, right[r][q]);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) acc[r][q] = _mm256_add_ps(acc[r][q], _mm256_hadd_ps(left[r][q], right[r][q]));
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) _mm256_storeu_ps(c + r * ldc + 8 * q, acc[r][q]);
}

}  // namespace
}  // namespace trivet
