// Products of more rows than a few without tiles.
//
// int8 and int4: vpdpbusd takes one unsigned operand, the activations, moved up by 128 by each thread; what that adds is
// 128 * colsum. int4 panels are unpacked to int8, once for a batch of rows. bf16: rows become float (chain.h).
#include <algorithm>

#include "kernels/avx512/dpbusd.h"
#include "kernels/avx512/many_rows.h"
#include "kernels/avx512/moved_up.h"
#include "kernels/avx512/unit.h"
#include "kernels/avx512/unpack.h"
#include "kernels/common/ahead.h"
#include "kernels/common/epilogue.h"

namespace trivet::avx512 {
namespace {

template <int R, int P>
TRIVET_INLINE void finish_sums(const Linear& w, const Rows& x, size_t row, size_t panel, const __m512i (&acc)[R][P], const Output& out) {
  for (int r = 0; r < R; ++r) {
    vi sums[P];
    for (int p = 0; p < P; ++p) __builtin_memcpy(&sums[p], &acc[r][p], 64);
    if constexpr (P % 2 == 0)
      if (out.epilogue == Epilogue::kSiluMul) {
        for (int p = 0; p < P; p += 2) finish_gate_up(w, x, panel + p, row + r, sums[p], sums[p + 1], out);
        continue;
      }
    for (int p = 0; p < P; ++p) finish(w, x, panel + p, row + r, sums[p], out);
  }
}

// R moved rows from `row` on, against P panels from `panel` on, which stand at `codes` in the layout of int8.
template <int R, int P>
void block(const Linear& w, const Rows& x, size_t row, size_t panel, const uint8_t* codes, Ahead ahead, const Output& out) {
  fetch_outputs<R, P>(out, row, panel);
  __m512i acc[R][P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(_mm512_loadu_si512(w.colsum + 16 * (panel + p)), 7));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][p] = start;
  }
  const uint8_t* moved = x.at<uint8_t>(row);
  for (size_t line = 0; line < w.kp / 4; line += 4)
#pragma GCC unroll 4
    for (size_t part = 0; part < 4; ++part) {
      ahead.ask(part % 2);
      __m512i v[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) v[p] = _mm512_load_si512(codes + 16 * p * w.kp + 64 * (line + part));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        __builtin_memcpy(&four, moved + r * x.stride + 4 * (line + part), 4);
        const __m512i u = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = dpbusd(acc[r][p], u, v[p]);
      }
    }
  finish_sums<R, P>(w, x, row, panel, acc, out);
}

// Rows in batches of half an L2 of 1 MiB, or of 32; of int4 twice as many, since each batch unpacks the panels again. A batch of
// int8 passes at least twice through two panels: the first time it waits for memory.
template <bool kUnpack>
void many_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
#define TRIVET_BLOCK(R) {block<R, 1>, block<R, 2>},
  static constexpr decltype(&block<1, 1>) table[][2] = {TRIVET_EACH_ROWS(TRIVET_BLOCK)};
#undef TRIVET_BLOCK
  uint8_t* unpacked = scratch + prepared_bytes(w.kp);
  for_runs(x.num, prepared_bytes(w.kp) / spread_bytes(w.kp) / (kUnpack ? 1 : 2), [&](size_t first, size_t num, size_t batch, size_t batches) {
    const Rows moved = moved_up(x.part(first, first + num), w.kp, scratch);
    const Output to = out.from_row(first);
    for (size_t p = begin; p < end; p += 2) {
      const size_t width = std::min<size_t>(end - p, 2), after = p + 2 < end ? p + 2 : begin;
      if (kUnpack) unpack_i4(w, p, width, unpacked);
      const uint8_t* codes = kUnpack ? unpacked : w.codes + p * w.panel_bytes();
      const uint8_t* next = after == begin && batch + 1 == batches ? nullptr : w.codes + after * w.panel_bytes();
      const size_t most = kUnpack ? Unit::kMostRows : std::min((num + 1) / 2, Unit::kMostRows);
      for_runs(num, most, [&](size_t row, size_t length, size_t run, size_t runs) {
        table[length - 1][width - 1](w, moved, row, p, codes, Ahead::share(next, w.panel_bytes(), run, runs), to);
      });
    }
  });
}

// R rows that stand at `wide` as floats, against one panel or two: the run-th run of rows of `runs` to do so, which bring in
// what is at `next`.
template <int R>
void block_bf16(const Linear& w, const Rows& x, size_t row, const float* wide, size_t ld, size_t panel, size_t panels,
                const uint8_t* next, size_t run, size_t runs, const Output& out) {
  alignas(64) float sums[R * 32];
  for (size_t p = 0; p < panels; ++p) {
    const uint8_t* codes = w.codes + (panel + p) * w.panel_bytes();
    Ahead ahead = Ahead::share(next, w.panel_bytes(), 2 * run + p, 2 * runs);
    const auto at = [&](size_t i, int j, int) {
      ahead.ask(j % 2);
      return codes + 1024 * i + 64 * size_t(j);
    };
    chain<Unit, false, R, 1>(wide, ld, at, w.kp / 32, sums + 16 * p, 32);
  }
  for (int r = 0; r < R; ++r) {
    if (out.epilogue == Epilogue::kSiluMul)
      finish_gate_up(w, x, panel, row + r, load(sums + 32 * r), load(sums + 32 * r + 16), out);
    else
      for (size_t p = 0; p < panels; ++p) finish(w, x, panel + p, row + r, load(sums + 32 * r + 16 * p), out);
  }
}

}  // namespace

void many_rows_i8(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  many_rows<false>(w, x, begin, end, out, scratch);
}
void many_rows_i4(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  many_rows<true>(w, x, begin, end, out, scratch);
}

// Rows by sixteen, widened; panels by groups that stay in L2 while all rows pass.
void many_rows_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
#define TRIVET_BLOCK(R) block_bf16<R>,
  static constexpr decltype(&block_bf16<1>) table[] = {TRIVET_EACH_ROWS(TRIVET_BLOCK)};
#undef TRIVET_BLOCK
  constexpr size_t kRowsAtOnce = 16, kGroupBytes = 256 * 1024;
  float* wide = reinterpret_cast<float*>(scratch);
  const size_t ld = w.kp + 16;
  const size_t group = x.num <= kRowsAtOnce ? end - begin : std::max<size_t>(kGroupBytes / w.panel_bytes() / 2 * 2, 2);
  for (size_t first = begin; first < end; first += group) {
    const size_t last = std::min(first + group, end);
    for (size_t row = 0; row < x.num; row += kRowsAtOnce) {
      const size_t num = std::min(x.num - row, kRowsAtOnce);
      for (size_t r = 0; r < num; ++r)
        widen<Unit>(x.at<uint16_t>(row + r), w.kp, wide + r * ld);
      for (size_t p = first; p < last; p += 2) {
        const uint8_t* next = p + 2 < end ? w.codes + (p + 2) * w.panel_bytes() : nullptr;
        for_runs(num, Unit::kMostRows, [&](size_t r, size_t length, size_t run, size_t runs) {
          table[length - 1](w, x, row + r, wide + r * ld, ld, p, std::min<size_t>(last - p, 2), next, run, runs, out);
        });
      }
    }
  }
}

}  // namespace trivet::avx512
