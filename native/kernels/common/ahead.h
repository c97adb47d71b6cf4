// What a block of many rows asks for ahead of time. All rows pass through two panels in turn, so that memory would wait
// while they compute and they while memory reads: each pass brings a share of the next two panels into L2.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

struct Ahead {
  const uint8_t *first, *first_end, *second, *second_end;  // two streams: one does not fill the memory's queue

  // Part `part` of `parts` that the two panels from `next` on are cut into: no line is left out, none asked for twice.
  TRIVET_INLINE Ahead share(const uint8_t* next, size_t panel_bytes, size_t part, size_t parts) {
    const size_t lines = panel_bytes / 64;
    const uint8_t *from = next + lines * part / parts * 64, *to = next + lines * (part + 1) / parts * 64;
    return {from, to, from + panel_bytes, to + panel_bytes};
  }
  // The next line of one stream, by turns, until its share is through. odd: known to the compiler where loops are unrolled.
  [[gnu::always_inline]] inline void at(size_t /*step*/, bool odd) {
    const uint8_t*& line = odd ? second : first;
    if (line >= (odd ? second_end : first_end)) return;
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
    line += 64;
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
