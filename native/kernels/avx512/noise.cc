// noise_words of core/noise.h with eight counters a vector; integers, so the words are the same.
#include <immintrin.h>

#include "core/noise.h"

namespace trivet::avx512 {

void noise_words(RowKey row, size_t first_id, uint32_t* words) {
  constexpr int kVectors = 4;  // 64 tokens
  const __m512i multiplier = _mm512_set1_epi64(0xD256D193), high = _mm512_set1_epi64(-1LL << 32);
  __m512i s[kVectors];
  s[0] = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(uint64_t{row.counter_hi} << 32 | first_id / 2)),
                          _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  for (int i = 1; i < kVectors; ++i) s[i] = _mm512_add_epi64(s[i - 1], _mm512_set1_epi64(8));
  uint32_t key = row.key;
  for (int round = 0; round < 10; ++round, key += 0x9E3779B9u) {
    const __m512i keys = _mm512_set1_epi64(static_cast<int64_t>(uint64_t{key} << 32));
    for (int i = 0; i < kVectors; ++i) {
      const __m512i keyed = _mm512_ternarylogic_epi64(s[i], high, keys, 0x6A);  // (s & high) ^ keys
      s[i] = _mm512_shuffle_epi32(_mm512_xor_si512(_mm512_mul_epu32(s[i], multiplier), keyed), _MM_PERM_CDAB);
    }
  }
  for (int i = 0; i < kVectors; ++i) _mm512_storeu_si512(words + 16 * i, s[i]);
}

}  // namespace trivet::avx512
