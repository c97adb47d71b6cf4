// What follows a product, on 16 outputs of one row: the same code in every tier.
#pragma once

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

TRIVET_INLINE vf scaled(const Linear& w, const Rows& x, size_t panel, size_t row, const vi& acc) {
  return (to_float(acc) * load(w.scales + 16 * panel)) * x.scales[row];
}
TRIVET_INLINE vf scaled(const Linear&, const Rows&, size_t, size_t, const vf& acc) { return acc; }

TRIVET_INLINE vf with_bias(const Linear& w, size_t panel, const vf& y) {
  if (!w.bias) return y;
  const size_t left = w.n - 16 * panel;
  return y + (left >= 16 ? load(w.bias + 16 * panel) : load_first(w.bias + 16 * panel, left));
}

TRIVET_INLINE vf silu(const vf& x) { return x / (1.0f + exp(-x)); }

// Writes one row of one panel; columns past N are not written.
template <class V>
TRIVET_INLINE void finish(const Linear& w, const Rows& x, size_t panel, size_t row, const V& acc, Epilogue e, float* out,
                          size_t ld) {
  vf y = with_bias(w, panel, scaled(w, x, panel, row, acc));
  float* o = out + row * ld + 16 * panel;
  const size_t left = w.n - 16 * panel;
  if (left >= 16) {
    if (e == Epilogue::kAdd) y = load(o) + y;
    store(o, y);
  } else {
    if (e == Epilogue::kAdd) y = load_first(o, left) + y;
    store_first(o, y, left);
  }
}

// Writes one row of a gate panel and the up panel behind it.
template <class V>
TRIVET_INLINE void finish_gate_up(const Linear& w, const Rows& x, size_t panel, size_t row, const V& gate, const V& up,
                                  float* out, size_t ld) {
  const vf g = with_bias(w, panel, scaled(w, x, panel, row, gate));
  const vf u = with_bias(w, panel + 1, scaled(w, x, panel + 1, row, up));
  store(out + row * ld + 8 * panel, silu(g) * u);
}

}  // namespace
}  // namespace trivet
