// Sixteen floats at once, for common/chain.h.
#pragma once

#include <immintrin.h>

#include "kernels/common/chain.h"

namespace trivet {
namespace {

struct Unit {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr size_t kMostRows = 8;

  TRIVET_INLINE F zero() { return _mm512_setzero_ps(); }
  TRIVET_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  TRIVET_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  TRIVET_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  TRIVET_INLINE void widen(const uint16_t* x, float* out) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    store(out, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
  }
  TRIVET_INLINE F floats(const float* p) { return _mm512_loadu_ps(p); }
  TRIVET_INLINE F pair(const float* p) {
    double both;
    __builtin_memcpy(&both, p, 8);
    return _mm512_castpd_ps(_mm512_set1_pd(both));
  }
  TRIVET_INLINE void load(const void* p, F& left, F& right) {
    const __m512i v = _mm512_loadu_si512(p), zero = _mm512_setzero_si512();
    left = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, v));
    right = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, v));
  }
  TRIVET_INLINE F add_pairs(F left, F right) {
    return add(_mm512_shuffle_ps(left, right, 0x88), _mm512_shuffle_ps(left, right, 0xDD));
  }
};

// A macro for switches and tables: f(R) for each number of rows that a block has.
#define TRIVET_EACH_ROWS(f) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8)

}  // namespace
}  // namespace trivet
