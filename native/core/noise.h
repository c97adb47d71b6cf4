// The random bits behind sampling: Philox2x32-10 with one key a row and a counter per two tokens.
//
// After Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011
// (doi:10.1145/2063384.2063405).
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivet {

struct RowKey {
  uint32_t key, counter_hi;  // Philox's key, and the second word of every counter of this row
};

RowKey row_key(uint64_t seed, int sample_idx, int64_t position);

// words[i] belongs to token first_id + i, for i < 64; first_id is a multiple of 64. Tokens 2j and 2j + 1 share the
// counter (j, counter_hi), which gives two words.
using NoiseFn = void (*)(RowKey row, size_t first_id, uint32_t* words);
NoiseFn noise_words();  // the fastest for the tier in use; all give the same words

namespace avx2 {
void noise_words(RowKey row, size_t first_id, uint32_t* words);
}
namespace avx512 {
void noise_words(RowKey row, size_t first_id, uint32_t* words);
}

}  // namespace trivet
