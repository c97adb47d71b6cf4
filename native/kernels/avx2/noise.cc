// noise_words of core/noise.h with four counters a vector; integers, so the words are the same.
#include <immintrin.h>

#include "core/noise.h"

namespace trivet::avx2 {

void noise_words(RowKey row, size_t first_id, uint32_t* words) {
  constexpr int kVectors = 8, kAtOnce = 4;  // 64 tokens; four chains hide the latency of the multiplier
  const __m256i multiplier = _mm256_set1_epi64x(0xD256D193), high = _mm256_set1_epi64x(-1LL << 32);
  const int64_t first = static_cast<int64_t>(uint64_t{row.counter_hi} << 32 | first_id / 2);
  __m256i counter = _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_set_epi64x(3, 2, 1, 0));
  for (int v = 0; v < kVectors; v += kAtOnce) {
    __m256i s[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i, counter = _mm256_add_epi64(counter, _mm256_set1_epi64x(4))) s[i] = counter;
    uint32_t key = row.key;
    for (int round = 0; round < 10; ++round, key += 0x9E3779B9u) {
      const __m256i keys = _mm256_set1_epi64x(static_cast<int64_t>(uint64_t{key} << 32));
      for (int i = 0; i < kAtOnce; ++i) {
        const __m256i keyed = _mm256_xor_si256(_mm256_and_si256(s[i], high), keys);
        s[i] = _mm256_shuffle_epi32(_mm256_xor_si256(_mm256_mul_epu32(s[i], multiplier), keyed), 0xB1);  // swap the words
      }
    }
    for (int i = 0; i < kAtOnce; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + (v + i) * 8), s[i]);
  }
}

}  // namespace trivet::avx2
