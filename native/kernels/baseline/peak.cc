// Peak loops of the baseline tier: SSE2, which every x86-64 CPU has.
#include <emmintrin.h>

#include "kernels/common/read_streams.h"
#include "kernels/peaks.h"

namespace trivet {
namespace {

struct Vec {
  __m128i v;
  static Vec load(const uint8_t* p) { return {_mm_load_si128(reinterpret_cast<const __m128i*>(p))}; }
  void operator^=(Vec other) { v = _mm_xor_si128(v, other.v); }
  uint64_t fold() const {
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_xor_si128(v, _mm_unpackhi_epi64(v, v))));
  }
};

constexpr size_t kChains = 8;

double int8(size_t rounds, uint8_t* scratch) {  // products of 16-bit pairs, as int8 without VNNI is computed
  auto* data = reinterpret_cast<__m128i*>(scratch);
  __m128i sums[kChains] = {};
  const __m128i a = data[0];
  for (size_t r = 0; r < rounds; ++r)
    for (size_t k = 0; k < 256; k += kChains)
      for (size_t i = 0; i < kChains; ++i) sums[i] = _mm_add_epi32(sums[i], _mm_madd_epi16(a, data[k + i]));
  for (size_t i = 0; i < kChains; ++i) data[i] = sums[i];
  return static_cast<double>(rounds) * 256 * 16;
}

double f32(size_t rounds, uint8_t* scratch) {
  auto* data = reinterpret_cast<float*>(scratch);
  __m128 sums[kChains] = {};
  const __m128 a = _mm_load_ps(data);
  for (size_t r = 0; r < rounds; ++r)
    for (size_t k = 0; k < 256; k += kChains)
      for (size_t i = 0; i < kChains; ++i)
        sums[i] = _mm_add_ps(sums[i], _mm_mul_ps(a, _mm_load_ps(data + 4 * (k + i))));
  for (size_t i = 0; i < kChains; ++i) _mm_store_ps(data + 4 * i, sums[i]);
  return static_cast<double>(rounds) * 256 * 8;
}

}  // namespace

PeakLoops baseline_peaks() { return {int8, f32, read_streams<Vec>}; }

}  // namespace trivet
