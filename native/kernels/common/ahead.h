// What a block of many rows asks for ahead of time. All rows pass through two panels in turn, so that memory would wait
// while they compute and they while memory reads: each pass brings a share of the next two panels into L2.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

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

// Asks for the lines that R rows of P panels will be written to, as their owner: they lie on R pages, and the last to write them
// was another core as often as not. In assembly, since the builtin asks for reading unless the whole tier is built with -mprfchw.
template <int R, int P>
TRIVET_INLINE void fetch_outputs(const Output& out, size_t row, size_t panel) {
  const size_t item = out.is_bf16() ? 2 : 4, width = out.epilogue == Epilogue::kSiluMul ? 8 : 16;
  const uint8_t* at = static_cast<const uint8_t*>(out.data) + (row * out.ld + width * panel) * item;
  for (int r = 0; r < R; ++r, at += out.ld * item)
    for (size_t b = 0; b < P * width * item; b += 64) asm volatile("prefetchw %0" : : "m"(at[b]));
}

}  // namespace
}  // namespace trivet
