// What int8 and int4 quantization of a row share. Internal to packing.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace trivet {

constexpr float kTiny = 1e-30f;     // a row whose largest magnitude is below this is packed as zeros
constexpr float kMagic = 12582912;  // 1.5 * 2^23: adding it rounds to an integer, half to even, in the low bits
constexpr int32_t kMagicBits = 0x4B400000;

// The largest of x, 0 if none is above.
inline float highest(const float* x, size_t n) {
  int32_t top = 0;  // floats of that sign order as integers
  for (size_t i = 0; i < n; ++i) top = std::max(top, std::bit_cast<int32_t>(x[i]));
  return std::bit_cast<float>(top);
}

inline float abs_max(const float* x, size_t n) {
  int32_t top = 0;  // magnitudes of floats order as integers
  for (size_t i = 0; i < n; ++i) top = std::max(top, std::bit_cast<int32_t>(x[i]) & 0x7FFFFFFF);
  return std::bit_cast<float>(top);
}

}  // namespace trivet
