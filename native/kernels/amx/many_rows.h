// Products of 17 rows and more on tiles: two panels are used for all rows while the next two come.
#pragma once

#include <algorithm>

#include "kernels/amx/blocks.h"

namespace trivet {
namespace {

// Lines that will be wanted later, some at each step of a product that computes from cache: four streams, two of each panel,
// since one brings 7 GB/s and four 13.
struct Ahead {
  const uint8_t *at, *end;          // of the first stream
  size_t half_bytes, panel_bytes;  // from the first stream of a panel to its second, and to that of the next panel
  size_t num;                       // lines of each stream at a step
  template <int kStream>
  TRIVET_INLINE_MEMBER void ask(size_t lines) const {
    const char* line = reinterpret_cast<const char*>(at) + kStream / 2 * panel_bytes + kStream % 2 * half_bytes;
    for (size_t i = 0; i < lines; ++i) _mm_prefetch(line + 64 * i, _MM_HINT_T1);
  }
};

// One product of 32 rows and 2 panels on its way through K. Accumulator 2 i + j is row tile i, panel j.
struct Walk {
  const uint8_t *a, *b;
  size_t lda, panel_bytes;
  ptrdiff_t step;  // of a; b moves 16 times as far
};

// `count` steps, with kRows rows of the block before finished at each. kCold: the weights come from memory and are used
// once, while the activations stay in L1. Else the weights of two panels stay in L1, and activations pass through it:
// the hint keeps them from pushing the weights out.
template <bool kInt8, bool kCold, int kRows, class F>
TRIVET_INLINE void steps(Walk& walk, size_t count, F& finisher, Ahead& ahead) {
  const uint8_t *a = walk.a, *b = walk.b;
  const size_t lda = walk.lda, lower = 16 * lda, panel_bytes = walk.panel_bytes;
  for (; count > 0; --count) {
    if (kCold) {
      _tile_loadd(4, a, lda);
      prefetch_tile(ahead.at);
      _tile_stream_loadd(6, b, 64);
      TRIVET_DOT(0, 4, 6);
      prefetch_tile(ahead.at + panel_bytes);
      _tile_stream_loadd(7, b + panel_bytes, 64);
      TRIVET_DOT(1, 4, 7);
      finisher.template some<kRows>();
      _tile_loadd(5, a + lower, lda);
      ahead.at += 1024;
    } else {
      const size_t lines = ahead.at < ahead.end ? ahead.num : 0;
      _tile_stream_loadd(4, a, lda);
      ahead.ask<0>(lines);
      _tile_loadd(6, b, 64);
      TRIVET_DOT(0, 4, 6);
      ahead.ask<1>(lines);
      _tile_loadd(7, b + panel_bytes, 64);
      TRIVET_DOT(1, 4, 7);
      ahead.ask<2>(lines);
      finisher.template some<kRows>();
      _tile_stream_loadd(5, a + lower, lda);
      ahead.ask<3>(lines);
      ahead.at += 64 * lines;
    }
    TRIVET_DOT(2, 5, 6);
    TRIVET_DOT(3, 5, 7);
    a += walk.step;
    b += 16 * walk.step;
  }
  walk.a = a;
  walk.b = b;
}

// The whole block; its accumulators go to c, two panels of a row side by side, or go on from there.
template <bool kInt8, bool kCold, class F>
TRIVET_INLINE void block_2x2(Walk walk, size_t chunks, bool goes_on, uint8_t* c, F& finisher, Ahead& ahead) {
  if (goes_on) {
    _tile_loadd(0, c, 128);
    _tile_loadd(1, c + 64, 128);
    _tile_loadd(2, c + 2048, 128);
    _tile_loadd(3, c + 2112, 128);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  size_t woven;
  if (chunks >= 32) {
    woven = finisher.left();
    steps<kInt8, kCold, 1>(walk, woven, finisher, ahead);
  } else {
    woven = finisher.left() / 2 < chunks ? finisher.left() / 2 : chunks;
    steps<kInt8, kCold, 2>(walk, woven, finisher, ahead);
  }
  steps<kInt8, kCold, 0>(walk, chunks - woven, finisher, ahead);
  finisher.rest();
  store_sums(c);
}

// Rows that leave no room in L2 are multiplied by slices of kSlice bytes, while the sums of a group of panels wait there.
constexpr size_t kMostRowBytes = 1 << 20, kSlice = 1024, kMostBlocks = 8, kMostSums = 128, kMostPairs = 16;
static_assert(4096 * kMostSums <= prepared_bytes(0), "sums and two unpacked panels fit the scratch");

// 17 to 32 kMostBlocks rows: two panels at a time against all rows, and a last odd panel.
template <bool kInt8, bool kUnpack, Epilogue kEpilogue>
class ManyRows {
 public:
  ManyRows(const Linear& w, const Rows& x, size_t end, const Output& out, uint8_t* scratch)
      : w_(w),
        x_(x),
        out_(out),
        end_(end),
        row_bytes_(w.kp * (kInt8 ? 1 : 2)),
        blocks_((x.num + 31) / 32),
        sums_(scratch),
        unpacked_(scratch + 4096 * kMostSums),
        finisher_(w, x, out, 2) {}

  void panels(size_t begin) {
    const size_t even_end = begin + (end_ - begin) / 2 * 2;
    if (kUnpack && blocks_ == 1)
      unpacked_as_used(begin, even_end);
    else if (x_.num * row_bytes_ > kMostRowBytes)
      groups(begin, even_end, kSlice, std::min(kMostSums / blocks_, kMostPairs));
    else
      groups(begin, even_end, row_bytes_, 1);
    finisher_.rest();
    if (even_end < end_) last_panel(even_end);
  }

 private:
  void unpacked_as_used(size_t begin, size_t even_end) {
    for (size_t p = begin; p < even_end; p += 2) {
      uint8_t* const sums = sums_ + num_done_++ % 2 * 4096;
      block_i4<true>(x_.at<uint8_t>(0), x_.stride, w_, p, row_bytes_ / 64, unpacked_, sums, [&] {
        if (finisher_.left() > 1) finisher_.template some<2>();
      });
      finisher_.rest();
      finisher_.begin(sums, 0, p);
    }
  }
  void groups(size_t begin, size_t even_end, size_t slice, size_t pairs) {
    slice_ = slice;
    is_cold_ = !kUnpack;
    for (size_t group = begin, group_end; group < even_end; group = group_end) {
      group_end = std::min(group + 2 * pairs, even_end);
      for (size_t k = 0; k < row_bytes_; k += slice)
        for (size_t p = group; p < group_end; p += 2) {
          const bool is_last = k + slice >= row_bytes_;
          const size_t next_panel = p + 2 < group_end || is_last ? p + 2 : group;
          const size_t next_k = p + 2 < group_end ? k : is_last ? 0 : k + slice;
          pair(p, k, slice < row_bytes_ ? sums_ + (p - group) / 2 * blocks_ * 4096 : nullptr, ahead(next_panel, next_k));
        }
    }
  }
  // Bytes [k, k + slice) of all rows with those of panels p and p + 1. sums: of its own for each block; null: one does,
  // since what it had is finished before.
  void pair(size_t p, size_t k, uint8_t* sums, Ahead next) {
    const size_t bytes = std::min(slice_, row_bytes_ - k), panel_bytes = 16 * row_bytes_;
    const uint8_t* b = w_.codes + p * panel_bytes + 16 * k;
    if (kUnpack) {
      unpack_i4(w_, p, 2, k, k + bytes, unpacked_);
      stored();
      b = unpacked_;
    }
    auto finisher = finisher_;  // where the compiler sees that no store reaches it
    for (size_t row = 0; row < x_.num; row += 32, ++num_done_) {
      uint8_t* const to = sums ? sums + row / 32 * 4096 : sums_;
      Walk walk{x_.at<uint8_t>(row) + k, b, x_.stride, kUnpack ? 16 * bytes : panel_bytes, 64};
      if (is_cold_) {
        Ahead soon{b + kAhead, nullptr, 0, 0, 0};
        block_2x2<kInt8, true>(walk, bytes / 64, false, to, finisher, soon);
        is_cold_ = false;
      } else {
        if (kInt8 && num_done_ % 2) {  // back through K: what was used last is still in L1 (int32 sums know no order)
          walk.a += bytes - 64;
          walk.b += 16 * (bytes - 64);
          walk.step = -64;
        }
        block_2x2<kInt8, false>(walk, bytes / 64, k > 0, to, finisher, next);
      }
      if (k + bytes == row_bytes_) finisher.begin(to, row, p);
    }
    finisher_ = finisher;
  }
  void last_panel(size_t p) {
    const uint8_t* b = w_.codes + p * 16 * row_bytes_;
    if (kUnpack) {
      unpack_i4(w_, p, 1, unpacked_);
      stored();
      b = unpacked_;
    }
    for (size_t row = 0; row < x_.num; row += 16) {
      block_1x1<kInt8>(x_.at<uint8_t>(row), x_.stride, b, row_bytes_ / 64, sums_);
      finish_rows<kInt8>(w_, x_, row, p, sums_, 1, out_);
    }
  }
  // Weights of panels p and p + 1 from byte k of the rows on, which come into L2 while a slice before them is used.
  Ahead ahead(size_t p, size_t k) const {
    const size_t code_bytes = w_.panel_bytes() / row_bytes_, steps_of_slice = slice_ / 64 * blocks_;
    const uint8_t* codes = w_.codes + p * w_.panel_bytes() + code_bytes * k;
    const size_t half = p + 2 <= end_ ? code_bytes * std::min(slice_, row_bytes_ - k) / 2 : 0;
    return {codes, codes + half, half, w_.panel_bytes(), (half / 64 + steps_of_slice - 1) / steps_of_slice};
  }

  const Linear& w_;
  const Rows& x_;
  const Output& out_;
  const size_t end_, row_bytes_, blocks_;
  uint8_t *sums_, *unpacked_;
  Finisher<kInt8, kEpilogue> finisher_;
  size_t slice_ = 0, num_done_ = 0;
  bool is_cold_ = false;  // the first weights were not asked for by anybody
};

}  // namespace
}  // namespace trivet
