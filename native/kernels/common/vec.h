// Arithmetic on sixteen lanes (lanes.h): the same source compiles to SSE2, AVX2 or AVX-512, and gives the same bits,
// because every lane operation is one IEEE operation (fma only by its name, no reassociation).
#pragma once

#include <cstring>

#include "kernels/common/lanes.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

TRIVET_INLINE vf splat(float x) { return vf{} + x; }
TRIVET_INLINE vf max(const vf& a, const vf& b) { return select(a > b, a, b); }
TRIVET_INLINE vi max(const vi& a, const vi& b) { return select(a > b, a, b); }
TRIVET_INLINE vf min(const vf& a, const vf& b) { return select(a < b, a, b); }
TRIVET_INLINE vf abs(const vf& a) { return as_float(as_int(a) & 0x7fffffff); }

// Loads the first n (< 16) lanes, others zero; never touches memory past them.
TRIVET_INLINE vf load_first(const float* p, size_t n) {
  float a[16] = {0};
  for (size_t i = 0; i < n; ++i) a[i] = p[i];
  return load(a);
}
TRIVET_INLINE void store_first(float* p, const vf& v, size_t n) {
  float a[16];
  store(a, v);
  for (size_t i = 0; i < n; ++i) p[i] = a[i];
}

// Nearest integer, ties to even, for |x| < 2^22.
TRIVET_INLINE vf round_even(const vf& x) { return (x + 12582912.0f) - 12582912.0f; }

// 2^x for x <= 126 (or NaN), relative error below 2^-22; exactly 1 at 0, exactly 0 at -127 and below, and between -127 and
// -126 a denormal, which is 0 to all who read it. x = n + r with |r| <= 0.5, then 1 + r q(r) with q of degree 4 (least
// largest relative error), whose exponent bits are moved by n. Adding 1.5 * 2^23 to x leaves n in the low bits.
// kRough: q of degree 2, relative error below 1.1e-4; the rest holds as well.
// N at a time, step by step: the steps of one wait for each other.
constexpr bool kRough = true;
template <bool kIsRough = false, size_t N>
TRIVET_INLINE void exp2(vf (&x)[N]) {
  vf shifted[N], p[N];
  const auto each = [](auto&& f) {
#pragma GCC unroll 8
    for (size_t i = 0; i < N; ++i) f(i);
  };
#ifdef __AVX512F__  // compares where the tile unit leaves a port free: beside it there is but one for products and maxima
  __mmask16 above[N];
  each([&](size_t i) { above[i] = _mm512_cmp_ps_mask((__m512)x[i], (__m512)splat(-127.0f), _CMP_NLE_UQ); });
#else
  const vf bottom = splat(-127.0f);
  each([&](size_t i) { x[i] = select(bottom > x[i], bottom, x[i]); });  // in this order, NaN stays
#endif
  each([&](size_t i) { shifted[i] = x[i] + 12582912.0f; });
  each([&](size_t i) { x[i] = x[i] - (shifted[i] - 12582912.0f); });
  const auto multiply_add = [&](float coefficient) {
    each([&](size_t i) { p[i] = fma(p[i], x[i], splat(coefficient)); });
  };
  if constexpr (kIsRough) {
    each([&](size_t i) { p[i] = fma(x[i], splat(5.50089516e-2f), splat(2.42211014e-1f)); });
    multiply_add(6.93282902e-1f);
  } else {
    each([&](size_t i) { p[i] = fma(x[i], splat(1.32647273e-3f), splat(9.67151299e-3f)); });
    multiply_add(5.55073358e-2f);
    multiply_add(2.40222424e-1f);
    multiply_add(6.93147004e-1f);
  }
  multiply_add(1.0f);
#ifdef __AVX512F__
  each([&](size_t i) { x[i] = (vf)_mm512_maskz_add_epi32(above[i], (__m512i)p[i], _mm512_slli_epi32((__m512i)shifted[i], 23)); });
#else
  each([&](size_t i) { x[i] = as_float((vi)((vu)as_int(p[i]) + ((vu)as_int(shifted[i]) << 23))); });
#endif
}
TRIVET_INLINE vf exp2(const vf& x) {
  vf one[] = {x};
  exp2(one);
  return one[0];
}
TRIVET_INLINE vf exp(const vf& x) { return exp2(min(x * kLog2E, splat(126.0f))); }  // cut: never infinite

// 1 / x for x >= 1, relative error below 3e-7 (0 where that is no normal number): a division takes as long as thirty
// multiplications. The first guess comes from the exponent's bits, each step squares its error.
TRIVET_INLINE vf reciprocal(const vf& x) {
  vf y = as_float(0x7ef311c7 - as_int(x));
  for (int i = 0; i < 3; ++i) y = y * (2.0f - x * y);
  return y;
}

// Bits of bf16 in the low half of each lane, round half to even; NaN stays a NaN.
TRIVET_INLINE vi bf16_bits(const vf& x) {
  const vu u = (vu)as_int(x);
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vu nan = (u >> 16) | 0x40u;
  const vu is_nan = (vu)((vi)(u & 0x7fffffffu) > 0x7f800000);
  return (vi)((rounded & ~is_nan) | (nan & is_nan));
}
TRIVET_INLINE float bf16_to_float(uint16_t h) {
  const uint32_t u = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
TRIVET_INLINE vf load(const uint16_t* p) {
  vh h;
  __builtin_memcpy(&h, p, 32);
  return as_float((vi)(widened(h) << 16));
}
TRIVET_INLINE vf load_first(const uint16_t* p, size_t n) {
  uint16_t a[16] = {0};
  for (size_t i = 0; i < n; ++i) a[i] = p[i];
  return load(a);
}
// For numbers that are finite or quiet NaN, as arithmetic makes them: without the care for other NaNs.
TRIVET_INLINE void store_bf16_quick(uint16_t* p, const vf& x) {
#ifdef __AVX512BF16__  // the same bits, since no arithmetic of ours leaves a denormal
  const __m256bh h = _mm512_cvtneps_pbh((__m512)x);
#else
  const vu u = (vu)as_int(x);
  const vh h = low_halves((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  __builtin_memcpy(p, &h, 32);
}
TRIVET_INLINE void store_bf16_quick(uint16_t* p, const vf& x, const vf& y) {  // y behind x
#ifdef __AVX512BF16__  // takes as long as one alone
  const __m512bh h = _mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
  __builtin_memcpy(p, &h, 64);
#else
  store_bf16_quick(p, x);
  store_bf16_quick(p + 16, y);
#endif
}
TRIVET_INLINE void store_bf16(uint16_t* p, const vf& x) {
  const vh h = low_halves((vu)bf16_bits(x));
  __builtin_memcpy(p, &h, 32);
}

}  // namespace
}  // namespace trivet
