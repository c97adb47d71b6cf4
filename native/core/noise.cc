#include "core/noise.h"

#include <emmintrin.h>

#include <cstring>

#include "trivet/kernels.h"

namespace trivet {
namespace {

uint64_t mix64(uint64_t z) {  // the finalizer of SplitMix64: a bijection, every bit depends on every bit
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// SSE2 is part of x86-64. A 64-bit lane holds one counter; its low word is the one that is multiplied.
void noise_words_sse2(RowKey row, size_t first_id, uint32_t* words) {
  constexpr int kVectors = 16, kAtOnce = 8;  // two counters a vector; eight chains hide the latency of the multiplier
  const auto in_high = [](uint32_t word) { return _mm_set1_epi64x(static_cast<int64_t>(uint64_t{word} << 32)); };
  const __m128i multiplier = _mm_set1_epi64x(0xD256D193), high = in_high(0xFFFFFFFF), two = _mm_set1_epi64x(2);
  const int64_t first = static_cast<int64_t>(first_id / 2);
  __m128i counter = _mm_or_si128(_mm_set_epi64x(first + 1, first), in_high(row.counter_hi));
  for (int v = 0; v < kVectors; v += kAtOnce) {
    __m128i s[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i, counter = _mm_add_epi64(counter, two)) s[i] = counter;
    uint32_t key = row.key;
    for (int round = 0; round < 10; ++round, key += 0x9E3779B9u)
      for (int i = 0; i < kAtOnce; ++i) {
        const __m128i keyed = _mm_xor_si128(_mm_and_si128(s[i], high), in_high(key));
        s[i] = _mm_shuffle_epi32(_mm_xor_si128(_mm_mul_epu32(s[i], multiplier), keyed), 0xB1);  // swap the words
      }
    for (int i = 0; i < kAtOnce; ++i)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(words + static_cast<size_t>(v + i) * 4), s[i]);
  }
}

}  // namespace

RowKey row_key(uint64_t seed, int sample_idx, int64_t position) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
  uint64_t h = mix64(seed + kGolden);
  h = mix64(h + static_cast<uint64_t>(static_cast<int64_t>(sample_idx)) + kGolden);
  h = mix64(h + static_cast<uint64_t>(position) + kGolden);
  return {static_cast<uint32_t>(h), static_cast<uint32_t>(h >> 32)};
}

NoiseFn noise_words() {
  const auto is = [tier = kernels().name](const char* name) { return std::strcmp(tier, name) == 0; };
  return is("baseline") ? noise_words_sse2 : is("avx2") ? avx2::noise_words : avx512::noise_words;
}

}  // namespace trivet
