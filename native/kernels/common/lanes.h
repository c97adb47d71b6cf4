// Sixteen lanes of f32, i32 or u32, and what depends on how the compiler holds them: loads, stores, conversions, folds.
// Arithmetic is that of GCC/Clang vector types, a lane at a time.
//
// Where registers are half as wide (AVX2), GCC 12 keeps a vector of 64 bytes in memory and moves it piecemeal between
// any two operations (a store of four pieces, a load of two). So there sixteen lanes are two vectors of eight.
//
// Everything is static and always inlined: no code of a tier may be shared with another through the linker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define TRIVET_INLINE static inline __attribute__((always_inline))

namespace trivet {
namespace {

typedef uint16_t vh __attribute__((vector_size(32)));
typedef int8_t vb __attribute__((vector_size(16)));

#if defined(__AVX2__) && !defined(__AVX512F__)

template <class T>
struct Lanes {
  typedef T Half __attribute__((vector_size(32)));
  Half lo, hi;
  T operator[](int i) const { return i < 8 ? lo[i] : hi[i - 8]; }
  template <class U>  // the same bits
  explicit operator Lanes<U>() const { return {(typename Lanes<U>::Half)lo, (typename Lanes<U>::Half)hi}; }
};
typedef Lanes<float> vf;
typedef Lanes<int32_t> vi;
typedef Lanes<uint32_t> vu;

#define TRIVET_EACH_HALF(op)                                                                                          \
  template <class T>                                                                                                  \
  TRIVET_INLINE Lanes<T> operator op(const Lanes<T>& a, const Lanes<T>& b) { return {a.lo op b.lo, a.hi op b.hi}; }   \
  template <class T>                                                                                                  \
  TRIVET_INLINE Lanes<T> operator op(const Lanes<T>& a, std::type_identity_t<T> b) { return {a.lo op b, a.hi op b}; } \
  template <class T>                                                                                                  \
  TRIVET_INLINE Lanes<T> operator op(std::type_identity_t<T> a, const Lanes<T>& b) { return {a op b.lo, a op b.hi}; }
TRIVET_EACH_HALF(+)
TRIVET_EACH_HALF(-)
TRIVET_EACH_HALF(*)
TRIVET_EACH_HALF(/)
TRIVET_EACH_HALF(&)
TRIVET_EACH_HALF(|)
TRIVET_EACH_HALF(<<)
TRIVET_EACH_HALF(>>)
#undef TRIVET_EACH_HALF
template <class T>
TRIVET_INLINE Lanes<T> operator-(const Lanes<T>& a) { return {-a.lo, -a.hi}; }
template <class T>
TRIVET_INLINE Lanes<T> operator~(const Lanes<T>& a) { return {~a.lo, ~a.hi}; }
template <class T>
TRIVET_INLINE vi operator<(const Lanes<T>& a, const Lanes<T>& b) {
  return {(vi::Half)(a.lo < b.lo), (vi::Half)(a.hi < b.hi)};
}
template <class T>
TRIVET_INLINE vi operator>(const Lanes<T>& a, const Lanes<T>& b) { return b < a; }
template <class T>
TRIVET_INLINE vi operator<(const Lanes<T>& a, std::type_identity_t<T> b) { return a < (Lanes<T>{} + b); }
template <class T>
TRIVET_INLINE vi operator>(const Lanes<T>& a, std::type_identity_t<T> b) { return (Lanes<T>{} + b) < a; }
template <class T>
TRIVET_INLINE Lanes<T> select(const vi& mask, const Lanes<T>& a, const Lanes<T>& b) {
  return {mask.lo ? a.lo : b.lo, mask.hi ? a.hi : b.hi};
}

template <class V, class T>
TRIVET_INLINE V load_halves(const T* p) {
  V v;
  __builtin_memcpy(&v.lo, p, 32);
  __builtin_memcpy(&v.hi, p + 8, 32);
  return v;
}
TRIVET_INLINE vf load(const float* p) { return load_halves<vf>(p); }
TRIVET_INLINE vi load(const int32_t* p) { return load_halves<vi>(p); }
TRIVET_INLINE void store(float* p, const vf& v) {
  __builtin_memcpy(p, &v.lo, 32);
  __builtin_memcpy(p + 8, &v.hi, 32);
}

TRIVET_INLINE vi as_int(const vf& x) { return (vi)x; }
TRIVET_INLINE vf as_float(const vi& x) { return (vf)x; }
TRIVET_INLINE vf fma(const vf& a, const vf& b, const vf& c) {
  return {(vf::Half)_mm256_fmadd_ps((__m256)a.lo, (__m256)b.lo, (__m256)c.lo),
          (vf::Half)_mm256_fmadd_ps((__m256)a.hi, (__m256)b.hi, (__m256)c.hi)};
}
TRIVET_INLINE vf to_float(const vi& x) {
  return {__builtin_convertvector(x.lo, vf::Half), __builtin_convertvector(x.hi, vf::Half)};
}
TRIVET_INLINE vi to_int(const vf& x) {
  return {__builtin_convertvector(x.lo, vi::Half), __builtin_convertvector(x.hi, vi::Half)};
}
TRIVET_INLINE vu widened(const vh& h) {
  const __m256i x = (__m256i)h;
  const __m128i lo = _mm256_castsi256_si128(x), hi = _mm256_extracti128_si256(x, 1);
  return {(vu::Half)_mm256_cvtepu16_epi32(lo), (vu::Half)_mm256_cvtepu16_epi32(hi)};
}
// The low 16 (8) bits of each lane: the even 16-bit (every fourth byte) of both halves.
TRIVET_INLINE vh low_halves(const vu& x) {
  return __builtin_shufflevector((vh)x.lo, (vh)x.hi, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
TRIVET_INLINE vb low_bytes(const vi& x) { return __builtin_convertvector(low_halves((vu)x), vb); }

// Both in one fixed tree: 16 -> 8 -> 4 -> 2 -> 1, as below.
template <class T, class F>
TRIVET_INLINE T fold(const Lanes<T>& v, F&& f) {
  typedef T Quarter __attribute__((vector_size(16)));
  const auto eight = f(v.lo, v.hi);
  Quarter a = __builtin_shufflevector(eight, eight, 0, 1, 2, 3), b = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  a = f(a, b);
  a = f(a, Quarter(__builtin_shufflevector(a, a, 2, 3, 2, 3)));
  return f(a, Quarter(__builtin_shufflevector(a, a, 1, 1, 3, 3)))[0];
}
template <class T>
TRIVET_INLINE T sum(const Lanes<T>& v) {
  return fold(v, [](auto a, auto b) { return a + b; });
}
template <class T>
TRIVET_INLINE T max_lane(const Lanes<T>& v) {
  return fold(v, [](auto a, auto b) { return a > b ? a : b; });
}

#else

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));

template <class V>
TRIVET_INLINE V select(const vi& mask, const V& a, const V& b) { return mask ? a : b; }

TRIVET_INLINE vf load(const float* p) { vf v; __builtin_memcpy(&v, p, 64); return v; }
TRIVET_INLINE void store(float* p, const vf& v) { __builtin_memcpy(p, &v, 64); }
TRIVET_INLINE vi load(const int32_t* p) { vi v; __builtin_memcpy(&v, p, 64); return v; }
TRIVET_INLINE vi as_int(const vf& x) { vi v; __builtin_memcpy(&v, &x, 64); return v; }
TRIVET_INLINE vf as_float(const vi& x) { vf v; __builtin_memcpy(&v, &x, 64); return v; }
TRIVET_INLINE vf fma(const vf& a, const vf& b, const vf& c) {  // a b + c, rounded once
#ifdef __AVX512F__
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else  // the library's: slow, and as exact
  vf out;
  for (int i = 0; i < 16; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#endif
}
TRIVET_INLINE vf to_float(const vi& x) { return __builtin_convertvector(x, vf); }
TRIVET_INLINE vi to_int(const vf& x) { return __builtin_convertvector(x, vi); }
TRIVET_INLINE vu widened(const vh& h) {
#ifdef __AVX512F__  // GCC 12 converts by halves
  return (vu)_mm512_cvtepu16_epi32((__m256i)h);
#else
  return __builtin_convertvector(h, vu);
#endif
}
#ifdef __AVX512F__  // what GCC 12 makes of the conversions is sixteen moves, in some places
TRIVET_INLINE vh low_halves(const vu& x) { return (vh)_mm512_cvtepi32_epi16((__m512i)x); }
TRIVET_INLINE vb low_bytes(const vi& x) { return (vb)_mm512_cvtepi32_epi8((__m512i)x); }
#else
TRIVET_INLINE vh low_halves(const vu& x) { return __builtin_convertvector(x, vh); }
TRIVET_INLINE vb low_bytes(const vi& x) { return __builtin_convertvector(x, vb); }
#endif

// Lane sums and maxima in one fixed tree: 16 -> 8 -> 4 -> 2 -> 1. The upper lanes of each fold do not matter.
#define TRIVET_FOLD(v, n)                                                                                              \
  __builtin_shufflevector(v, v, (0 + n) % 16, (1 + n) % 16, (2 + n) % 16, (3 + n) % 16, (4 + n) % 16, (5 + n) % 16,      \
                          (6 + n) % 16, (7 + n) % 16, (8 + n) % 16, (9 + n) % 16, (10 + n) % 16, (11 + n) % 16,          \
                          (12 + n) % 16, (13 + n) % 16, (14 + n) % 16, (15 + n) % 16)
template <class V>
TRIVET_INLINE auto sum(V v) {
  v = v + TRIVET_FOLD(v, 8);
  v = v + TRIVET_FOLD(v, 4);
  v = v + TRIVET_FOLD(v, 2);
  v = v + TRIVET_FOLD(v, 1);
  return v[0];
}
template <class V>
TRIVET_INLINE V larger(const V& a, const V& b) { return a > b ? a : b; }
template <class V>
TRIVET_INLINE auto max_lane(V v) {
  v = larger<V>(v, TRIVET_FOLD(v, 8));
  v = larger<V>(v, TRIVET_FOLD(v, 4));
  v = larger<V>(v, TRIVET_FOLD(v, 2));
  v = larger<V>(v, TRIVET_FOLD(v, 1));
  return v[0];
}

#endif

}  // namespace
}  // namespace trivet
