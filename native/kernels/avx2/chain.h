// Products of bf16 in the order of the tile unit, with activations already widened to float: what linear.cc and the
// attention of table.cc share. A product of two bf16 is exact in f32, so fma and multiply-then-add agree.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"

namespace trivet {
namespace {

// Six rows at most: their even and odd sums of eight columns fill twelve of the sixteen registers.
constexpr size_t kMostRows = 6;

// Cuts `num` rows into runs of at most kMostRows that differ by one at most, and calls f(first, length) for each.
template <class F>
TRIVET_INLINE void for_runs(size_t num, F&& f) {
  size_t begin = 0;
  for (size_t left = (num + kMostRows - 1) / kMostRows; left > 0; --left) {
    const size_t length = (num - begin + left - 1) / left;
    f(begin, length);
    begin += length;
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
template <int R, int Q, class At>
TRIVET_INLINE void chain(const float* a, size_t lda, At&& at, size_t num, float* c, size_t ldc) {
  const __m256i high = _mm256_set1_epi32(int32_t(0xffff0000));
  __m256 acc[R][Q];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) acc[r][q] = _mm256_setzero_ps();
  for (size_t i = 0; i < num; ++i) {
    __m256 even[R][Q], odd[R][Q];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) even[r][q] = odd[r][q] = _mm256_setzero_ps();
    for (int j = 0; j < 16; ++j) {
      __m256 we[Q], wo[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(i, j, q)));
        we[q] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
        wo[q] = _mm256_castsi256_ps(_mm256_and_si256(v, high));
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const float* x = a + r * lda + 32 * i + 2 * j;
        const __m256 xe = _mm256_broadcast_ss(x), xo = _mm256_broadcast_ss(x + 1);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) {
          even[r][q] = _mm256_fmadd_ps(we[q], xe, even[r][q]);
          odd[r][q] = _mm256_fmadd_ps(wo[q], xo, odd[r][q]);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) acc[r][q] = _mm256_add_ps(acc[r][q], _mm256_add_ps(even[r][q], odd[r][q]));
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) _mm256_storeu_ps(c + r * ldc + 8 * q, acc[r][q]);
}

}  // namespace
}  // namespace trivet
