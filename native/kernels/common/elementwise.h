// Row operations, written once and compiled in each tier. Contracts: kernels.h.
#pragma once

#include <cmath>

#include "kernels/common/vec.h"

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

template <class X>
void quantize(const X* x, size_t k, size_t kp, int8_t* out, float* scale) {
  vi top{};  // magnitudes of floats order as integers, and a NaN is above all: it ends up in the scale
  size_t i = 0;
  for (; i + 16 <= k; i += 16) top = max(top, as_int(abs(load(x + i))));
  if (i < k) top = max(top, as_int(abs(load_first(x + i, k - i))));
  const float absmax = as_float(vi{} + max_lane(top))[0];
  *scale = absmax / 127.0f;
  const float inverse = absmax > 1e-30f ? 127.0f / absmax : 0.0f;
  for (i = 0; i < k; i += 16) {
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

void from_bf16(const uint16_t* x, size_t k, float* out) {
  size_t i = 0;
  for (; i + 16 <= k; i += 16) store(out + i, load(x + i));
  for (; i < k; ++i) out[i] = bf16_to_float(x[i]);
}

void rope(float* x, const float* cos, const float* sin, size_t head_dim) {
  const size_t half = head_dim / 2;
  size_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const vf a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(x + i, a * c - b * s);
    store(x + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}

void divide(const float* x, float sum, size_t p, uint16_t* out) {
  size_t i = 0;
  for (; i + 16 <= p; i += 16) store_bf16(out + i, load(x + i) / sum);
  if (i == p) return;
  uint16_t last[16];
  store_bf16(last, load_first(x + i, p - i) / sum);
  std::memcpy(out + i, last, 2 * (p - i));
}

}  // namespace
}  // namespace trivet
