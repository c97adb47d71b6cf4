// Products of more rows than a few without tiles: each panel is brought to the form that costs the inner loop least, once
// for all rows.
//
// int8 and int4: weights become w8 + 128, the unsigned operand of vpdpbusd, so that the activations can be the signed one
// and are broadcast straight from memory; what that adds is 128 times a row's sum. bf16: rows become float (chain.h).
// Up to 48 rows of int8 do not pay for that: there the activations are moved up instead (moved_up.h).
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

// R rows of x from `row` on, against P panels from `panel` on, which stand at b as w8 + 128.
template <int R, int P>
void block(const Linear& w, const Rows& x, size_t row, const int32_t* starts, size_t panel, const uint8_t* b,
           const Ahead& ahead, const Output& out) {
  fetch_outputs<R, P>(out, row, panel);
  __m512i acc[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) acc[r][p] = _mm512_set1_epi32(starts[r]);
  const int8_t* a = static_cast<const int8_t*>(x.data) + row * x.kp;
  for (size_t line = 0; line < w.kp / 4; line += 2)
#pragma GCC unroll 2
    for (size_t odd = 0; odd < 2; ++odd) {
      ahead.at(line + odd, odd);
      __m512i v[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) v[p] = _mm512_load_si512(b + 16 * p * w.kp + 64 * (line + odd));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        __builtin_memcpy(&four, a + r * x.kp + 4 * (line + odd), 4);
        const __m512i u = _mm512_set1_epi32(four);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) acc[r][p] = dpbusd(acc[r][p], v[p], u);
      }
    }
  finish_sums<R, P>(w, x, row, panel, acc, out);
}

// The same for rows that were moved up, against weights as they are packed.
template <int R, int P>
void block_of_moved(const Linear& w, const Rows& x, size_t row, size_t panel, const Ahead& ahead, const Output& out) {
  fetch_outputs<R, P>(out, row, panel);
  __m512i acc[R][P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(_mm512_loadu_si512(w.colsum + 16 * (panel + p)), 7));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][p] = start;
  }
  const uint8_t *codes = w.codes + panel * w.panel_bytes(), *moved = static_cast<const uint8_t*>(x.data) + row * x.kp;
  const size_t panel_bytes = w.panel_bytes();
  for (size_t line = 0; line < w.kp / 4; line += 4)
#pragma GCC unroll 4
    for (size_t part = 0; part < 4; ++part) {
      ahead.at(line + part, part % 2);
      __m512i v[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) v[p] = _mm512_load_si512(codes + p * panel_bytes + 64 * (line + part));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        __builtin_memcpy(&four, moved + r * w.kp + 4 * (line + part), 4);
        const __m512i u = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = dpbusd(acc[r][p], u, v[p]);
      }
    }
  finish_sums<R, P>(w, x, row, panel, acc, out);
}

// -128 times the sum of each row, modulo 2^32 as the products are: only the whole must fit.
void starts_of(const Rows& x, size_t row, size_t num, int32_t* out) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (size_t r = 0; r < num; ++r) {
    const int8_t* a = static_cast<const int8_t*>(x.data) + (row + r) * x.kp;
    __m512i sum = _mm512_setzero_si512();
    for (size_t k = 0; k < x.kp; k += 64) sum = dpbusd(sum, ones, _mm512_loadu_si512(a + k));
    out[r] = static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(_mm512_reduce_add_epi32(sum)));
  }
}

// w8 + 128 of an int8 panel.
void offset_i8(const Linear& w, size_t panel, size_t panels, uint8_t* out) {
  const __m512i high = _mm512_set1_epi8(int8_t(-128));
  const uint8_t* codes = w.codes + panel * w.panel_bytes();
  for (size_t i = 0; i < panels * w.panel_bytes(); i += 64)
    _mm512_store_si512(out + i, _mm512_xor_si512(_mm512_load_si512(codes + i), high));
}

constexpr size_t kSomeRows = 48;  // scratch has room for 64; with more rows moving the weights instead no longer shows

// Rows pass at least twice through two panels: the first time they wait for memory, and each time they ask for a share of
// the next panels.
void some_rows_i8(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
#define TRIVET_BLOCK(R) {block_of_moved<R, 1>, block_of_moved<R, 2>},
  static constexpr decltype(&block_of_moved<1, 1>) table[][2] = {TRIVET_EACH_ROWS(TRIVET_BLOCK)};
#undef TRIVET_BLOCK
  const Rows moved = moved_up(x, scratch);
  for (size_t p = begin; p < end; p += 2) {
    const uint8_t* next = w.codes + (p + 2) * w.panel_bytes();
    for_runs(x.num, std::min((x.num + 1) / 2, Unit::kMostRows), [&](size_t r, size_t length, size_t run, size_t runs) {
      const Ahead ahead = Ahead::share(next, w.panel_bytes(), run, runs, w.kp / 4);
      table[length - 1][end - p < 2 ? 0 : 1](w, moved, r, p, ahead, out);
    });
  }
}

template <void (*to_u8)(const Linear&, size_t, size_t, uint8_t*)>
void many_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
#define TRIVET_BLOCK(R) {block<R, 1>, block<R, 2>},
  static constexpr decltype(&block<1, 1>) table[][2] = {TRIVET_EACH_ROWS(TRIVET_BLOCK)};
#undef TRIVET_BLOCK
  constexpr size_t kRowsAtOnce = 8192;
  uint8_t* panels = scratch;
  int32_t* starts = reinterpret_cast<int32_t*>(scratch + 32 * w.kp);
  for (size_t row = 0; row < x.num; row += kRowsAtOnce) {
    const size_t num = std::min(x.num - row, kRowsAtOnce);
    starts_of(x, row, num, starts);
    for (size_t p = begin; p < end; p += 2) {
      const size_t width = std::min<size_t>(end - p, 2);
      to_u8(w, p, width, panels);
      const uint8_t* next = w.codes + (p + 2) * w.panel_bytes();
      for_runs(num, Unit::kMostRows, [&](size_t r, size_t length, size_t run, size_t runs) {
        const Ahead ahead = Ahead::share(next, w.panel_bytes(), run, runs, w.kp / 4);
        table[length - 1][width - 1](w, x, row + r, starts + r, p, panels, ahead, out);
      });
    }
  }
}

// R rows that stand at `wide` as floats, against one panel or two: the run-th run of rows of `runs` to do so.
template <int R>
void block_bf16(const Linear& w, const Rows& x, size_t row, const float* wide, size_t ld, size_t panel, size_t panels,
                size_t run, size_t runs, const Output& out) {
  alignas(64) float sums[R * 32];
  for (size_t p = 0; p < panels; ++p) {
    const uint8_t* codes = w.codes + (panel + p) * w.panel_bytes();
    const uint8_t* next = w.codes + (panel + 2) * w.panel_bytes();
    const Ahead ahead = Ahead::share(next, w.panel_bytes(), 2 * run + p, 2 * runs, w.kp / 2);
    const auto at = [&](size_t i, int j, int) {
      ahead.at(16 * i + size_t(j), j % 2);
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
  if (x.num <= kSomeRows) return some_rows_i8(w, x, begin, end, out, scratch);
  many_rows<offset_i8>(w, x, begin, end, out, scratch);
}
void many_rows_i4(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  many_rows<unpack_i4<128>>(w, x, begin, end, out, scratch);
}

// Rows by sixteen, which is what scratch holds of them; panels by groups that stay in L2 while all rows pass.
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
        widen<Unit>(static_cast<const uint16_t*>(x.data) + (row + r) * x.kp, w.kp, wide + r * ld);
      for (size_t p = first; p < last; p += 2)
        for_runs(num, Unit::kMostRows, [&](size_t r, size_t length, size_t run, size_t runs) {
          table[length - 1](w, x, row + r, wide + r * ld, ld, p, std::min<size_t>(last - p, 2), run, runs, out);
        });
    }
  }
}

}  // namespace trivet::avx512
