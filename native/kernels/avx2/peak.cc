// Peak loops of the avx2 tier: 16-bit pairs for int8, as its int8 kernels compute, and float FMA for bf16. (int4 is
// computed in fewer instructions a product than int8, so it may pass the int8 figure.)
#include <immintrin.h>

#include "kernels/common/read_streams.h"
#include "kernels/peaks.h"

namespace trivet {
namespace {

struct Vec {
  __m256i v;
  static Vec load(const uint8_t* p) { return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p))}; }
  void operator^=(Vec other) { v = _mm256_xor_si256(v, other.v); }
  uint64_t fold() const {
    alignas(32) uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), v);
    return words[0] ^ words[1] ^ words[2] ^ words[3];
  }
};

constexpr size_t kChains = 12, kVectors = 480;  // 15 KiB a round

double int8(size_t rounds, uint8_t* scratch) {
  auto* data = reinterpret_cast<__m256i*>(scratch);
  __m256i sums[kChains] = {};
  const __m256i a = data[0];
  for (size_t r = 0; r < rounds; ++r)
    for (size_t k = 0; k < kVectors; k += kChains)
#pragma GCC unroll 12
      for (size_t i = 0; i < kChains; ++i) sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(a, data[k + i]));
  for (size_t i = 0; i < kChains; ++i) data[i] = sums[i];
  return static_cast<double>(rounds) * kVectors * 32;
}

double f32(size_t rounds, uint8_t* scratch) {
  auto* data = reinterpret_cast<float*>(scratch);
  __m256 sums[kChains] = {};
  const __m256 a = _mm256_load_ps(data);
  for (size_t r = 0; r < rounds; ++r)
    for (size_t k = 0; k < kVectors; k += kChains)
#pragma GCC unroll 12
      for (size_t i = 0; i < kChains; ++i) sums[i] = _mm256_fmadd_ps(a, _mm256_load_ps(data + 8 * (k + i)), sums[i]);
  for (size_t i = 0; i < kChains; ++i) _mm256_store_ps(data + 8 * i, sums[i]);
  return static_cast<double>(rounds) * kVectors * 16;
}

}  // namespace

PeakLoops avx2_peaks() { return {int8, f32, read_streams<Vec>}; }

}  // namespace trivet
