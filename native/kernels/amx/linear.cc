// Products on the tile unit, for more than a few rows.
//
// All eight tile registers are 16 rows of 64 bytes: 0-3 accumulate, 4-5 hold activations, 6-7 weights. A packed tile of
// 1 KiB is 16 outputs times 64 int8 (or 32 bf16) inputs, so int8 and bf16 differ only in the instruction. int4 panels
// are unpacked to int8 first (w8 = m * q, exactly).
#include <algorithm>

#include "kernels/amx/amx.h"
#include "kernels/amx/tiles.h"
#include "kernels/avx512/unpack.h"
#include "kernels/common/epilogue.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

// A macro, since the intrinsics paste their register numbers into the assembly text.
#define TRIVET_DOT(c, a, b)       \
  do {                            \
    if constexpr (kInt8)          \
      _tile_dpbssd(c, a, b);      \
    else                          \
      _tile_dpbf16ps(c, a, b);    \
  } while (0)

template <bool kInt8>
using Acc = std::conditional_t<kInt8, vi, vf>;

TRIVET_INLINE void prefetch_tile(const uint8_t* at) {
  for (int i = 0; i < 16; ++i) _mm_prefetch(reinterpret_cast<const char*>(at + 64 * i), _MM_HINT_T0);
}
constexpr size_t kAhead = 2048;  // bytes of each weight stream that are asked for ahead; more pushes activations out of L1

// The place kAhead bytes ahead in a stream of panels of which every `streams`-th is read.
TRIVET_INLINE const uint8_t* ahead_of(const uint8_t* panel, size_t at, size_t panel_bytes, size_t streams) {
  const size_t ahead = at + kAhead;
  return panel + ahead + (ahead < panel_bytes ? 0 : (streams - 1) * panel_bytes);
}

// The accumulators, two side by side.
TRIVET_INLINE void store_sums(uint8_t* c) {
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 64, 128);
  _tile_stored(2, c + 2048, 128);
  _tile_stored(3, c + 2112, 128);
}

// Up to 16 rows against 4 panels: each weight tile is used once, so four streams come from memory. `each` is called once a
// chunk of 64 bytes. Two panels of a row lie side by side in c, the other two 2 KiB behind.
template <bool kInt8, class F>
TRIVET_INLINE void block_1x4(const uint8_t* a, size_t lda, const uint8_t* b, size_t panel_bytes, size_t chunks, uint8_t* c, F&& each) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t i = 0; i < chunks; ++i, a += 64, b += 1024) {
    const uint8_t* ahead = ahead_of(b - 1024 * i, 1024 * i, panel_bytes, 4);
    _tile_loadd(4, a, lda);
    prefetch_tile(ahead);
    _tile_loadd(6, b, 64);
    TRIVET_DOT(0, 4, 6);
    prefetch_tile(ahead + panel_bytes);
    _tile_loadd(7, b + panel_bytes, 64);
    TRIVET_DOT(1, 4, 7);
    prefetch_tile(ahead + 2 * panel_bytes);
    _tile_loadd(6, b + 2 * panel_bytes, 64);
    TRIVET_DOT(2, 4, 6);
    prefetch_tile(ahead + 3 * panel_bytes);
    _tile_loadd(7, b + 3 * panel_bytes, 64);
    TRIVET_DOT(3, 4, 7);
    each();
  }
  store_sums(c);
}

// The same for int4, 16 rows against 4 panels or 32 against 2: the tiles of the next 64 k are unpacked while the tile unit
// is at these, so that they go no farther than L1. `each` is called once a chunk.
template <bool kTwo, class F>
TRIVET_INLINE void block_i4(const uint8_t* a, size_t lda, const Linear& w, size_t panel, size_t chunks, uint8_t* unpacked,
                            uint8_t* c, F&& each) {
  constexpr size_t kPanels = kTwo ? 2 : 4;
  const auto unpack = [&](size_t i) {
    for (size_t p = 0; p < kPanels; ++p) {
      const uint8_t* codes = w.codes + (panel + p) * w.panel_bytes() + 512 * i;
      const uint8_t* ahead = ahead_of(codes - 512 * i, 512 * i, w.panel_bytes(), kPanels);
      for (int j = 0; j < 8; ++j) _mm_prefetch(reinterpret_cast<const char*>(ahead + 64 * j), _MM_HINT_T0);
      const int8_t* m = w.multipliers + (panel + p) * (w.kp / 2) + 32 * i;
      _mm_prefetch(reinterpret_cast<const char*>(m + kPanels * (w.kp / 2)), _MM_HINT_T0);
      unpack_tile(codes, m, unpacked + 4096 * (i % 2) + 1024 * p);
    }
    stored();
  };
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  unpack(0);
  for (size_t i = 0; i < chunks; ++i, a += 64) {
    const uint8_t* b = unpacked + 4096 * (i % 2);
    if (i + 1 < chunks) unpack(i + 1);
    _tile_loadd(4, a, lda);
    if (kTwo) _tile_loadd(5, a + 16 * lda, lda);
    _tile_loadd(6, b, 64);
    _tile_dpbssd(0, 4, 6);
    if (kTwo) _tile_dpbssd(2, 5, 6);
    _tile_loadd(7, b + 1024, 64);
    _tile_dpbssd(1, 4, 7);
    if (kTwo) _tile_dpbssd(3, 5, 7);
    if (!kTwo) {
      _tile_loadd(6, b + 2048, 64);
      _tile_dpbssd(2, 4, 6);
      _tile_loadd(7, b + 3072, 64);
      _tile_dpbssd(3, 4, 7);
    }
    each();
  }
  store_sums(c);
}

// What follows the product of a block of 32 rows and 2 panels, a row or two at a time, so that it can be done while the
// tile unit computes the next block: after the product it took a fifth of the time. The lines that the next block will
// be written to are asked for here, since they lie row by row on other pages, where no hardware foresees them.
// Everything that a row needs is a pointer that moves on: this runs between tile instructions, which wait for whatever
// stands before them.
template <bool kInt8, Epilogue kEpilogue>
class Finisher {
 public:
  // panels: so many are multiplied at once.
  Finisher(const Linear& w, const Rows& x, const Output& out, size_t panels)
      : w_(&w), x_(&x), out_(&out), row_bytes_(out.ld * kItem), panels_(panels) {}

  // Rows [row, row + 32) of panels `panel` and `panel + 1`, whose accumulators stand at c as store_sums has them.
  void begin(const uint8_t* c, size_t row, size_t panel) {
    left_ = x_->num - row < 32 ? x_->num - row : 32;
    if (w_->bias || w_->n < 16 * panel + 32) return with_care(c, row, panel);
    c_ = c;
    to_ = place(row, panel);
    const bool is_last = row + 32 >= x_->num;
    ahead_ = place(is_last ? 0 : row + 32, is_last ? panel + panels_ : panel) - to_;
    if (kInt8) {
      row_scale_ = x_->scales + row;
      for (size_t p = 0; p < 2; ++p) scale_[p] = load(w_->scales + 16 * (panel + p));
    }
  }
  size_t left() const { return left_; }
  void rest() {
    for (; left_ > 0; --left_) one();
  }
  // `count` rows, of which the caller knows that they are left.
  template <int kCount>
  TRIVET_INLINE_MEMBER void some() {
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i) one();
    left_ -= kCount;
  }

 private:
  static constexpr size_t kItem = kEpilogue == Epilogue::kSiluMul || kEpilogue == Epilogue::kStoreBf16 ? 2 : 4;

  uint8_t* place(size_t row, size_t panel) const {
    const size_t column = kEpilogue == Epilogue::kSiluMul ? 8 * panel : 16 * panel;
    return static_cast<uint8_t*>(out_->data) + (row * out_->ld + column) * kItem;
  }
  TRIVET_INLINE_MEMBER void one() {
    Acc<kInt8> acc[2];
    __builtin_memcpy(&acc[0], c_, 64);
    __builtin_memcpy(&acc[1], c_ + 64, 64);
    __builtin_prefetch(to_ + ahead_, 1);
    if (kItem == 4) __builtin_prefetch(to_ + ahead_ + 64, 1);
    vf y[2];
    for (size_t p = 0; p < 2; ++p) {
      if constexpr (kInt8)
        y[p] = (to_float(acc[p]) * scale_[p]) * *row_scale_;
      else
        y[p] = acc[p];
    }
    if constexpr (kEpilogue == Epilogue::kSiluMul) {
      store_bf16_quick(reinterpret_cast<uint16_t*>(to_), silu(y[0]) * y[1]);
    } else if constexpr (kEpilogue == Epilogue::kStoreBf16) {
      store_bf16_quick(reinterpret_cast<uint16_t*>(to_), y[0], y[1]);
    } else {
      float* o = reinterpret_cast<float*>(to_);
      for (size_t p = 0; p < 2; ++p) store(o + 16 * p, kEpilogue == Epilogue::kAdd ? load(o + 16 * p) + y[p] : y[p]);
    }
    c_ += 128;
    to_ += row_bytes_;
    if (kInt8) ++row_scale_;
  }
  [[gnu::noinline]] void with_care(const uint8_t* c, size_t row, size_t panel) {
    Acc<kInt8> acc[2];
    for (; left_ > 0; --left_, ++row, c += 128) {
      __builtin_memcpy(acc, c, 128);
      if constexpr (kEpilogue == Epilogue::kSiluMul)
        finish_gate_up(*w_, *x_, panel, row, acc[0], acc[1], *out_);
      else
        for (size_t p = 0; p < 2; ++p) finish(*w_, *x_, panel + p, row, acc[p], *out_);
    }
  }

  const Linear* w_;
  const Rows* x_;
  const Output* out_;
  size_t row_bytes_, panels_;
  const uint8_t* c_ = nullptr;
  uint8_t* to_ = nullptr;
  ptrdiff_t ahead_ = 0;  // from a row to the same row of the next block
  const float* row_scale_ = nullptr;
  size_t left_ = 0;
  vf scale_[2];
};

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

// 16 rows of one panel, for the odd panel at the end.
template <bool kInt8>
void block_1x1(const uint8_t* a, size_t lda, const uint8_t* b, size_t chunks, uint8_t* c) {
  _tile_zero(0);
  for (size_t i = 0; i < chunks; ++i, a += 64, b += 1024) {
    _tile_loadd(4, a, lda);
    _tile_loadd(6, b, 64);
    TRIVET_DOT(0, 4, 6);
  }
  _tile_stored(0, c, 64);
}

template <bool kInt8>
TRIVET_INLINE void finish_rows(const Linear& w, const Rows& x, size_t row, size_t panel, const uint8_t* c, size_t panels,
                               const Output& out) {
  const size_t rows = x.num - row < 16 ? x.num - row : 16;
  Acc<kInt8> acc[4];
  for (size_t r = 0; r < rows; ++r) {
    for (size_t p = 0; p < panels; ++p) __builtin_memcpy(&acc[p], c + 1024 * p + 64 * r, 64);
    if (out.epilogue == Epilogue::kSiluMul)
      for (size_t p = 0; p < panels; p += 2) finish_gate_up(w, x, panel + p, row + r, acc[p], acc[p + 1], out);
    else
      for (size_t p = 0; p < panels; ++p) finish(w, x, panel + p, row + r, acc[p], out);
  }
}

// Rows that leave no room in L2 are multiplied by slices of kSlice bytes, while the sums of a group of panels wait there.
constexpr size_t kMostRowBytes = 1 << 20, kSlice = 1024, kMostBlocks = 16, kMostSums = 64, kMostPairs = 8;
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
        a_(static_cast<const uint8_t*>(x.data)),
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
      block_i4<true>(a_, row_bytes_, w_, p, row_bytes_ / 64, unpacked_, sums, [&] {
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
  // Bytes [k, k + slice) of all rows with those of panels p and p + 1. sums: of its own for each block; null: two in turn do.
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
      uint8_t* const to = sums ? sums + row / 32 * 4096 : sums_ + num_done_ % 2 * 4096;
      Walk walk{a_ + row * row_bytes_ + k, b, row_bytes_, kUnpack ? 16 * bytes : panel_bytes, 64};
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
      block_1x1<kInt8>(a_ + row * row_bytes_, row_bytes_, b, row_bytes_ / 64, sums_);
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
  const uint8_t* a_;
  uint8_t *sums_, *unpacked_;
  Finisher<kInt8, kEpilogue> finisher_;
  size_t slice_ = 0, num_done_ = 0;
  bool is_cold_ = false;  // the first weights were not asked for by anybody
};

// Up to 16 rows: four panels at a time, since weights come from memory and each is used once; then one at a time.
template <bool kInt8, bool kUnpack, Epilogue kEpilogue>
void one_tile_of_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  const size_t row_bytes = w.kp * (kInt8 ? 1 : 2), chunks = row_bytes / 64, panel_bytes = 16 * row_bytes;
  const uint8_t* a = static_cast<const uint8_t*>(x.data);
  uint8_t* const unpacked = scratch + 8192;
  Finisher<kInt8, kEpilogue> first(w, x, out, 4), second(w, x, out, 4);
  const auto each = [&] {
    if (first.left() > 0) first.template some<1>();
    if (second.left() > 0) second.template some<1>();
  };
  const auto rest = [&] {
    first.rest();
    second.rest();
  };
  size_t p = begin;
  for (; p + 4 <= end; p += 4) {
    uint8_t* const sums = scratch + (p - begin) / 4 % 2 * 4096;
    if (kUnpack)
      block_i4<false>(a, row_bytes, w, p, chunks, unpacked, sums, each);
    else
      block_1x4<kInt8>(a, row_bytes, w.codes + p * panel_bytes, panel_bytes, chunks, sums, each);
    rest();
    first.begin(sums, 0, p);
    second.begin(sums + 2048, 0, p + 2);
  }
  rest();
  while (p < end) {
    const size_t panels = end - p >= 2 ? 2 : 1;
    const uint8_t* b = w.codes + p * panel_bytes;
    if (kUnpack) {
      unpack_i4(w, p, panels, unpacked);
      stored();
      b = unpacked;
    }
    for (size_t i = 0; i < panels; ++i) block_1x1<kInt8>(a, row_bytes, b + i * panel_bytes, chunks, scratch + 1024 * i);
    finish_rows<kInt8>(w, x, 0, p, scratch, panels, out);
    p += panels;
  }
}

template <bool kInt8, bool kUnpack, Epilogue kEpilogue>
void some_rows(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  if (x.num <= 16)
    one_tile_of_rows<kInt8, kUnpack, kEpilogue>(w, x, begin, end, out, scratch);
  else
    ManyRows<kInt8, kUnpack, kEpilogue>(w, x, end, out, scratch).panels(begin);
}

template <bool kInt8, bool kUnpack>
void tiles(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  for (size_t row = 0; row < x.num; row += 32 * kMostBlocks) {
    const Rows part = x.part(row, std::min(row + 32 * kMostBlocks, x.num), w.kind);
    const Output to = out.from_row(row);
    switch (out.epilogue) {
      case Epilogue::kStore: some_rows<kInt8, kUnpack, Epilogue::kStore>(w, part, begin, end, to, scratch); break;
      case Epilogue::kAdd: some_rows<kInt8, kUnpack, Epilogue::kAdd>(w, part, begin, end, to, scratch); break;
      case Epilogue::kStoreBf16: some_rows<kInt8, kUnpack, Epilogue::kStoreBf16>(w, part, begin, end, to, scratch); break;
      case Epilogue::kSiluMul: some_rows<kInt8, kUnpack, Epilogue::kSiluMul>(w, part, begin, end, to, scratch); break;
    }
  }
}

}  // namespace

namespace amx {

// Below these many rows the few-row kernels of avx512 are quicker (docs/lab.md); the bits are the same.
constexpr size_t kFewInt8 = 4, kFewInt4 = 4, kFewBf16 = 2;

void linear_i8(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewInt8 ? avx512::linear_i8 : tiles<true, false>)(w, x, begin, end, out, scratch);
}
void linear_i4(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewInt4 ? avx512::linear_i4 : tiles<true, true>)(w, x, begin, end, out, scratch);
}
void linear_bf16(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t* scratch) {
  (x.num <= kFewBf16 ? avx512::linear_bf16 : tiles<false, false>)(w, x, begin, end, out, scratch);
}

}  // namespace amx
}  // namespace trivet
