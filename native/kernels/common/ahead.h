// What a block of many rows asks for ahead of time. All rows pass through two panels in turn, so that memory would wait
// while they compute and they while memory reads: each pass brings a share of the next two panels into L2.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

struct Ahead {
  const uint8_t *line, *end;  // of the first of two streams: one does not fill the memory's queue
  size_t panel_bytes;         // from a line of the first to that of the second

  // Part `part` of `parts` that the two panels at `next` are cut into, by whole lines. next: null if there is nothing to ask for.
  TRIVET_INLINE Ahead share(const uint8_t* next, size_t panel_bytes, size_t part, size_t parts) {
    const size_t lines = next ? panel_bytes / 64 : 0;
    return {next + lines * part / parts * 64, next + lines * (part + 1) / parts * 64, panel_bytes};
  }
  // Asks for a line of one stream, by turns, until the share is through: a pass wants two calls for each line of it, or the last
  // are left out. odd: known to the compiler where loops are unrolled.
  [[gnu::always_inline]] inline void ask(bool odd) {
    if (line >= end) return;
    _mm_prefetch(reinterpret_cast<const char*>(odd ? line + panel_bytes : line), _MM_HINT_T1);
    if (odd) line += 64;
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
