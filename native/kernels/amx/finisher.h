// What follows a product on tiles, done beside the next one.
#pragma once

#include "kernels/amx/amx.h"
#include "kernels/common/epilogue.h"

namespace trivet {
namespace {

template <bool kInt8>
using Acc = std::conditional_t<kInt8, vi, vf>;

// What follows the product of a block of up to 32 rows and 2 panels, a row or two at a time, so that it can be done while
// the tile unit computes the next block: after the product it took a fifth of the time. With a bias, or where the last
// outputs do not fill two panels, it is done at once. The lines that the next block will
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
      __builtin_prefetch(w_->scales + 16 * (panel + panels_));
      __builtin_prefetch(w_->scales + 16 * (panel + panels_ + 1));
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

}  // namespace
}  // namespace trivet
