// bf16 products of the avx512_bf16 tier: for few rows, which wait for memory, and for many, which pass through two panels
// in turn.
#include <algorithm>

#include "kernels/avx512_bf16/pairs.h"
#include "kernels/avx512_bf16/tier.h"
#include "kernels/common/ahead.h"
#include "kernels/common/chain.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/stream.h"

namespace trivet::avx512_bf16 {
namespace {

template <int R, int P, class Fetch>
TRIVET_INLINE void block(const Linear& w, const Rows& x, size_t row, size_t panel, const Output& out, Fetch&& fetch) {
  vf sums[R][P];
  const uint8_t* codes = w.codes + panel * w.panel_bytes();
  const size_t panel_bytes = w.panel_bytes();
  const uint16_t* a = x.at<uint16_t>(row);
  chains<R, P>(
      a, x.stride / 2, w.kp / 32, [](int, int) { return _mm512_setzero_ps(); },
      [&](size_t i, size_t j, int p) {
        const uint8_t* at = codes + size_t(p) * panel_bytes + 1024 * i + 64 * j;
        fetch(at, i, j, p);
        return at;
      },
      [&](int r, int p, __m512 sum) { __builtin_memcpy(&sums[r][p], &sum, 64); });
  for (int r = 0; r < R; ++r) {
    if constexpr (P % 2 == 0)
      if (out.epilogue == Epilogue::kSiluMul) {
        for (int p = 0; p < P; p += 2) finish_gate_up(w, x, panel + size_t(p), row + size_t(r), sums[r][p], sums[r][p + 1], out);
        continue;
      }
    for (int p = 0; p < P; ++p) finish(w, x, panel + size_t(p), row + size_t(r), sums[r][p], out);
  }
}

// P streams of weights, each used once, from memory.
template <Into kInto, int R, int P>
void few(const Linear& w, const Rows& x, size_t row, size_t panel, const Output& out) {
  const size_t panel_bytes = w.panel_bytes();
  block<R, P>(w, x, row, panel, out, [&](const uint8_t* at, size_t i, size_t j, int) {
    const size_t place = 1024 * i + 64 * j;
    fetch_ahead<kInto>(at - place, place, panel_bytes, P);
  });
}

template <int R, int P>
void many(const Linear& w, const Rows& x, size_t row, size_t panel, Ahead ahead, const Output& out) {
  fetch_outputs<R, P>(out, row, panel);
  block<R, P>(w, x, row, panel, out, [&](const uint8_t*, size_t, size_t j, int p) {
    if (p == 0) ahead.ask(j % 2);
  });
}

// Up to four rows; panels by four, then two, then one.
template <Into kInto>
void few_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out) {
#define TRIVET_BLOCK(R) {few<kInto, R, 1>, few<kInto, R, 2>, few<kInto, R, 4>},
  static constexpr decltype(&few<kInto, 1, 1>) table[][3] = {TRIVET_BLOCK(1) TRIVET_BLOCK(2) TRIVET_BLOCK(3) TRIVET_BLOCK(4)};
#undef TRIVET_BLOCK
  for (size_t p = begin; p < end;) {
    const size_t left = end - p, width = left >= 4 ? 2 : left >= 2 ? 1 : 0;
    table[x.num - 1][width](w, x, 0, p, out);
    p += size_t(1) << width;
  }
}

// At least two runs of rows: the first waits for memory, and each asks for a share of the next panels.
void many_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out) {
#define TRIVET_BLOCK(R) {many<R, 1>, many<R, 2>},
  static constexpr decltype(&many<1, 1>) table[][2] = {TRIVET_BLOCK(1) TRIVET_BLOCK(2) TRIVET_BLOCK(3) TRIVET_BLOCK(4)
                                                       TRIVET_BLOCK(5) TRIVET_BLOCK(6) TRIVET_BLOCK(7) TRIVET_BLOCK(8)};
#undef TRIVET_BLOCK
  for (size_t p = begin; p < end; p += 2) {
    const uint8_t* next = p + 2 < end ? w.codes + (p + 2) * w.panel_bytes() : nullptr;
    for_runs(x.num, std::min((x.num + 1) / 2, kMostRows), [&](size_t row, size_t length, size_t run, size_t runs) {
      table[length - 1][end - p < 2 ? 0 : 1](w, x, row, p, Ahead::share(next, w.panel_bytes(), run, runs), out);
    });
  }
}

}  // namespace

void linear_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t*) {
  if (x.num > 4) return many_rows(w, x, begin, end, out);
  streams_into_l2() ? few_rows<Into::kL2>(w, x, begin, end, out) : few_rows<Into::kL1>(w, x, begin, end, out);
}

}  // namespace trivet::avx512_bf16
