// Eight floats at once, for common/chain.h.
#pragma once

#include <immintrin.h>

#include "kernels/common/chain.h"

namespace trivet {
namespace {

struct Unit {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr size_t kMostRows = 6;  // whose sums fill twelve of the sixteen registers (linear.cc is alike)

  TRIVET_INLINE F zero() { return _mm256_setzero_ps(); }
  TRIVET_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  TRIVET_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  TRIVET_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  TRIVET_INLINE void widen(const uint16_t* x, float* out) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    store(out, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
  }
  TRIVET_INLINE F floats(const float* p) { return _mm256_loadu_ps(p); }
  TRIVET_INLINE F pair(const float* p) {
    double both;
    __builtin_memcpy(&both, p, 8);
    return _mm256_castpd_ps(_mm256_set1_pd(both));
  }
  TRIVET_INLINE void load(const void* p, F& left, F& right) {
    const __m256i v = _mm256_loadu_si256(static_cast<const __m256i*>(p)), zero = _mm256_setzero_si256();
    left = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, v));
    right = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, v));
  }
  TRIVET_INLINE F add_pairs(F left, F right) { return _mm256_hadd_ps(left, right); }
};

}  // namespace
}  // namespace trivet
