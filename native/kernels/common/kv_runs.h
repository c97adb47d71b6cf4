// What attention reads of the KV cache at once, and what it asks for ahead of time.
#pragma once

#include <algorithm>

#include "kernels/common/lanes.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// 32 keys that lie together.
struct Run {
  const uint8_t *keys, *values;
  const float *key_scales, *value_scales;  // int8 only
};
constexpr size_t kStepRuns = kKeyStep / 32;

// The runs of the step that begins with key `begin`; those past key_end are not touched.
TRIVET_INLINE size_t runs_of(const AttendItem& it, size_t begin, Run* runs) {
  const KvView& kv = it.kv;
  const size_t num = begin >= it.key_end ? 0 : std::min((it.key_end - begin + 31) / 32, kStepRuns);
  const size_t item = kv.int8 ? 1 : 2;
  for (size_t i = 0; i < num; ++i) {
    const size_t key = begin + 32 * i, in_block = key % kv.block_size;
    const uint8_t* block = kv.base + size_t(it.block_table[key / kv.block_size]) * kv.block_stride;
    const float* scales = reinterpret_cast<const float*>(block + 2 * kv.block_size * kv.pp) + in_block;
    runs[i] = {block + in_block * kv.pp * item, block + (kv.block_size + in_block) * kv.pp * item, scales, scales + kv.block_size};
  }
  return num;
}

TRIVET_INLINE void fetch_scales(const Run& run) {
  for (size_t j = 0; j < 32; j += 16) {
    __builtin_prefetch(run.key_scales + j);
    __builtin_prefetch(run.value_scales + j);
  }
}

// What is asked for from memory while a step is computed: keys or values of the next one. Each run is a page or two of its
// own, and hardware looks ahead within a page only. A tier asks for them in shares, or line by line.
struct RunsAhead {
  const uint8_t* runs[kStepRuns];
  size_t num, bytes, num_computed;  // runs, bytes of each; runs that are computed meanwhile

  // One of `parts` shares of every run that falls to the i-th of those that are computed.
  void share(size_t i, size_t part, size_t parts) const {
    for (; i < num; i += num_computed)
      for (size_t b = bytes / parts * part; b < bytes / parts * (part + 1); b += 64) __builtin_prefetch(runs[i] + b, 0, 2);
  }
  bool is_empty() const { return num == 0; }
  // The n-th line of the i-th run, unless it is empty. Each that is computed has one: if nothing is to come, its own.
  [[gnu::always_inline]] inline void line(size_t i, size_t n) const { __builtin_prefetch(runs[i] + 64 * n, 0, 2); }
  // For who goes line by line: runs that are more than those that are computed.
  void rest() const {
    for (size_t i = num_computed; i < num; ++i)
      for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(runs[i] + b, 0, 2);
  }
};

}  // namespace
}  // namespace trivet
