// Peak loops of the avx512 tier: VNNI for int8, float FMA for bf16 (its bf16 kernels widen to float).
#include <immintrin.h>

#include "kernels/common/read_streams.h"
#include "kernels/peaks.h"

namespace trivet {
namespace {

struct Vec {
  __m512i v;
  static Vec load(const uint8_t* p) { return {_mm512_load_si512(p)}; }
  void operator^=(Vec other) { v = _mm512_xor_si512(v, other.v); }
  uint64_t fold() const {
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, v);
    return words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ words[5] ^ words[6] ^ words[7];
  }
};

constexpr size_t kChains = 16, kVectors = 256;  // 16 KiB are read a round

double int8(size_t rounds, uint8_t* scratch) {
  const __m512i a = _mm512_load_si512(scratch);
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  for (size_t r = 0; r < rounds; ++r)
    for (size_t k = 0; k < kVectors; k += kChains)
      for (size_t i = 0; i < kChains; ++i)
        sums[i] = _mm512_dpbusd_epi32(sums[i], a, _mm512_load_si512(scratch + 64 * (k + i)));
  for (size_t i = 0; i < kChains; ++i) _mm512_store_si512(scratch + 64 * i, sums[i]);
  return static_cast<double>(rounds) * kVectors * 128;
}

double f32(size_t rounds, uint8_t* scratch) {
  const __m512 a = _mm512_load_ps(scratch);
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (size_t r = 0; r < rounds; ++r)
    for (size_t k = 0; k < kVectors; k += kChains)
      for (size_t i = 0; i < kChains; ++i)
        sums[i] = _mm512_fmadd_ps(a, _mm512_load_ps(scratch + 64 * (k + i)), sums[i]);
  for (size_t i = 0; i < kChains; ++i) _mm512_store_ps(scratch + 64 * i, sums[i]);
  return static_cast<double>(rounds) * kVectors * 32;
}

}  // namespace

PeakLoops avx512_peaks() { return {int8, f32, read_streams<Vec>}; }

}  // namespace trivet
