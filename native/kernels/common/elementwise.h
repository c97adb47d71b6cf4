// Row operations, written once and compiled in each tier. Contracts: kernels.h.
#pragma once

#include <cmath>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// Four chains of 16 lanes each, so that the adds do not wait for one another; the tail joins chain 0.
TRIVET_INLINE float sum_of_squares(const float* x, size_t n) {
  vf s0{}, s1{}, s2{}, s3{};
  size_t i = 0;
  for (; i + 64 <= n; i += 64) {
    const vf a = load(x + i), b = load(x + i + 16), c = load(x + i + 32), d = load(x + i + 48);
    s0 = s0 + a * a;
    s1 = s1 + b * b;
    s2 = s2 + c * c;
    s3 = s3 + d * d;
  }
  for (; i < n; i += 16) {
    const vf a = n - i >= 16 ? load(x + i) : load_first(x + i, n - i);
    s0 = s0 + a * a;
  }
  return sum((s0 + s1) + (s2 + s3));
}

void rms_norm(const float* x, const float* weight, float eps, size_t dim, float* out) {
  const float inv = 1.0f / std::sqrt(sum_of_squares(x, dim) / float(dim) + eps);
  size_t i = 0;
  for (; i + 16 <= dim; i += 16) store(out + i, (load(x + i) * inv) * load(weight + i));
  for (; i < dim; ++i) out[i] = (x[i] * inv) * weight[i];
}

// The largest magnitude of k numbers. Those of floats order as integers, and a NaN is above all.
TRIVET_INLINE float largest(const float* x, size_t k) {
  vi top{};
  size_t i = 0;
  for (; i + 16 <= k; i += 16) top = max(top, as_int(abs(load(x + i))));
  if (i < k) top = max(top, as_int(abs(load_first(x + i, k - i))));
  return as_float(vi{} + max_lane(top))[0];
}
TRIVET_INLINE float largest(const uint16_t* x, size_t k) {
  size_t i = 0;
  vi top{};
#ifdef __AVX512BW__  // bf16 numbers order as integers, too
  __m512i most = _mm512_setzero_si512();
  for (; i + 32 <= k; i += 32)
    most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi16(0x7fff)));
  alignas(64) uint16_t numbers[32];
  _mm512_store_si512(numbers, most);
  top = max(as_int(load(numbers)), as_int(load(numbers + 16)));
#endif
  for (; i + 16 <= k; i += 16) top = max(top, as_int(abs(load(x + i))));
  if (i < k) top = max(top, as_int(abs(load_first(x + i, k - i))));
  return as_float(vi{} + max_lane(top))[0];
}

template <class X>
void quantize(const X* x, size_t k, size_t kp, int8_t* out, float* scale) {
  const float absmax = largest(x, k);  // a NaN ends up in the scale
  *scale = absmax / 127.0f;
  const float inverse = absmax > 1e-30f ? 127.0f / absmax : 0.0f;
  size_t i = 0;
#ifdef __AVX512BW__  // the code is the low byte of x + 12582912
  for (; i + 64 <= k; i += 64) {
    const auto codes = [&](size_t j) {
      return _mm512_and_si512((__m512i)(load(x + i + j) * inverse + 12582912.0f), _mm512_set1_epi32(0xff));
    };
    const __m512i low = _mm512_packus_epi32(codes(0), codes(16)), high = _mm512_packus_epi32(codes(32), codes(48));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // packed lane by lane
    _mm512_storeu_si512(out + i, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
  }
#endif
  for (; i < k; i += 16) {
    const vf v = k - i >= 16 ? load(x + i) : load_first(x + i, k - i);
    const vb b = low_bytes(to_int(round_even(v * inverse)));
    __builtin_memcpy(out + i, &b, 16);  // kp is a multiple of 64: in bounds
  }
  for (; i < kp; ++i) out[i] = 0;
}

void to_bf16(const float* x, size_t k, size_t kp, uint16_t* out) {
  size_t i = 0;
  for (; i < k; i += 16) store_bf16(out + i, k - i >= 16 ? load(x + i) : load_first(x + i, k - i));
  for (; i < kp; ++i) out[i] = 0;
}

TRIVET_INLINE void put(float* to, const vf& x) { store(to, x); }
TRIVET_INLINE void put(uint16_t* to, const vf& x) { store_bf16_quick(to, x); }

// Head widths of 16 kVecs, a multiple of 64, all in registers.
template <size_t kVecs, class Out>
TRIVET_INLINE void turn_whole(const HeadTurn& h, Out* out) {
  constexpr size_t kHalf = kVecs / 2;
  vf v[kVecs];
#pragma GCC unroll 16
  for (size_t i = 0; i < kVecs; ++i) v[i] = load(h.x + 16 * i);
  if (h.norm_weight) {
    vf s[4] = {};
#pragma GCC unroll 16
    for (size_t i = 0; i < kVecs; ++i) s[i % 4] = s[i % 4] + v[i] * v[i];
    const float inv = 1.0f / std::sqrt(sum((s[0] + s[1]) + (s[2] + s[3])) / float(16 * kVecs) + h.eps);
#pragma GCC unroll 16
    for (size_t i = 0; i < kVecs; ++i) v[i] = (v[i] * inv) * load(h.norm_weight + 16 * i);
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kHalf; ++i) {
    const vf a = v[i], b = v[i + kHalf], c = load(h.cos + 16 * i), s = load(h.sin + 16 * i);
    put(out + 16 * i, a * c - b * s);
    put(out + 16 * (i + kHalf), b * c + a * s);
  }
}
template <class Out>
void turn(const HeadTurn& h, Out* out) {
  if (h.head_dim == 64) return turn_whole<4>(h, out);
  if (h.head_dim == 128) return turn_whole<8>(h, out);
  float x[kMaxHeadDim + 16];
  const size_t p = h.head_dim, half = p / 2;
  for (size_t i = 0; i < p; ++i) x[i] = bf16_to_float(h.x[i]);
  if (h.norm_weight) rms_norm(x, h.norm_weight, h.eps, p, x);
  for (size_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * h.cos[i] - b * h.sin[i];
    x[half + i] = b * h.cos[i] + a * h.sin[i];
  }
  for (size_t i = 0; i < p; i += 16) {
    if (p - i >= 16) {
      put(out + i, load(x + i));
      continue;
    }
    Out last[16];
    put(last, load(x + i));
    std::memcpy(out + i, last, (p - i) * sizeof(Out));
  }
}

void divide(const float* x, float sum, size_t p, uint16_t* out) {
  const float inverse = 1.0f / sum;
  size_t i = 0;
  for (; i + 16 <= p; i += 16) store_bf16_quick(out + i, load(x + i) * inverse);
  if (i == p) return;
  uint16_t last[16];
  store_bf16_quick(last, load_first(x + i, p - i) * inverse);
  std::memcpy(out + i, last, 2 * (p - i));
}

}  // namespace
}  // namespace trivet
