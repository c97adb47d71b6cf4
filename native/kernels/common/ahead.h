// What a block of many rows asks for ahead of time. All rows pass through two panels in turn, so that memory would wait
// while they compute and they while memory reads: each pass brings a share of the next two panels into L2.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"

namespace trivet {
namespace {

struct Ahead {
  const uint8_t *first, *second;  // two streams: one does not fill the memory's queue
  size_t step;                    // bytes for each step of the pass, at most 32

  // Part `part` of `parts` that the two panels from `next` on are cut into, for a pass of `steps`.
  TRIVET_INLINE Ahead share(const uint8_t* next, size_t panel_bytes, size_t part, size_t parts, size_t steps) {
    const uint8_t* from = next + panel_bytes / parts * part;
    return {from, from + panel_bytes, panel_bytes / steps / parts};
  }
  // At each step, for one stream by turns; odd: i % 2, known to the compiler where loops are unrolled.
  [[gnu::always_inline]] inline void at(size_t i, bool odd) const {
    _mm_prefetch(reinterpret_cast<const char*>((odd ? second : first) + i * step), _MM_HINT_T1);
  }
};

}  // namespace
}  // namespace trivet
