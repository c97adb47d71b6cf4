// exp and log from plain multiplications and additions: the same bits in every build and on every CPU, unlike libm.
#pragma once

#include <bit>
#include <cstdint>

namespace trivet {

// e^y for y <= 88; below -87 it is e^-87. Relative error below 2e-7 beside the rounding of y itself.
inline float exp_f32(float y) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  y = y > -87.0f ? y : -87.0f;
  const float shifted = y * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact times n
  float p = 1.0f / 5040;  // Taylor to r^7, |r| <= 0.347: the rest is below 6e-9
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  return p * std::bit_cast<float>((exponent + 127) << 23);
}

// ln(x) for a normal, positive, finite x. Relative error below 1e-15, also near 1.
inline double log_f64(double x) {
  constexpr uint64_t kSqrtHalf = 0x3FE6A09E667F3BCD;  // the mantissa is brought to [sqrt(1/2), sqrt(2))
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  const int64_t exponent = static_cast<int64_t>(bits - kSqrtHalf) >> 52;
  const double m = std::bit_cast<double>(bits - (static_cast<uint64_t>(exponent) << 52));
  const double s = (m - 1.0) / (m + 1.0), z = s * s;  // ln m = 2 atanh(s), |s| <= 0.172
  double p = 1.0 / 21;
  for (int n = 19; n >= 3; n -= 2) p = p * z + 1.0 / n;
  const double e = static_cast<double>(exponent);
  return e * 0.693147180369123816490 + (2.0 * s + (2.0 * s * (z * p) + e * 1.90821492927058770002e-10));
}

}  // namespace trivet
