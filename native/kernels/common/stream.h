// How weights that each are used once come from memory in time.
//
// Into L1 on Intel's cores, 2 KiB ahead. On AMD's (Zen 4) that ends at 15 GB/s a core, as if L1 had 24 lines under way at
// most; there they are asked for farther ahead and into L2, 1.2 to 1.7 times as fast (docs/lab.md).
#pragma once

#include <immintrin.h>

#include "kernels/common/lanes.h"
#include "trivet/cpu.h"

namespace trivet {
namespace {

enum class Into { kL1, kL2 };
TRIVET_INLINE bool streams_into_l2() { return cpu_is_amd(); }

// Asks for the line that lies ahead of place `at` in a stream of panels, of which every `streams`-th is read.
template <Into kInto>
TRIVET_INLINE void fetch_ahead(const void* panel, size_t at, size_t panel_bytes, size_t streams) {
  const size_t ahead = at + (kInto == Into::kL1 ? 2048 : 8192);
  const char* line = static_cast<const char*>(panel) + ahead + (ahead < panel_bytes ? 0 : (streams - 1) * panel_bytes);
  _mm_prefetch(line, kInto == Into::kL1 ? _MM_HINT_T0 : _MM_HINT_T1);
}

}  // namespace
}  // namespace trivet
