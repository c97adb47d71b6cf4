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

TRIVET_INLINE vf silu(const vf& x) { return x * reciprocal(1.0f + exp(-x)); }

// Writes one row of one panel; columns past N are not written.
template <class V>
TRIVET_INLINE void finish(const Linear& w, const Rows& x, size_t panel, size_t row, const V& acc, const Output& out) {
  vf y = with_bias(w, panel, scaled(w, x, panel, row, acc));
  const size_t left = w.n - 16 * panel, at = row * out.ld + 16 * panel;
  if (out.epilogue == Epilogue::kStoreBf16) {
    uint16_t* o = static_cast<uint16_t*>(out.data) + at;
    if (left >= 16) return store_bf16_quick(o, y);
    uint16_t last[16];
    store_bf16_quick(last, y);
    for (size_t i = 0; i < left; ++i) o[i] = last[i];
    return;
  }
  float* o = static_cast<float*>(out.data) + at;
  if (left >= 16) {
    if (out.epilogue == Epilogue::kAdd) y = load(o) + y;
    store(o, y);
  } else {
    if (out.epilogue == Epilogue::kAdd) y = load_first(o, left) + y;
    store_first(o, y, left);
  }
}

// Writes one row of a gate panel and the up panel behind it.
template <class V>
TRIVET_INLINE void finish_gate_up(const Linear& w, const Rows& x, size_t panel, size_t row, const V& gate, const V& up,
                                  const Output& out) {
  const vf g = with_bias(w, panel, scaled(w, x, panel, row, gate));
  const vf u = with_bias(w, panel + 1, scaled(w, x, panel + 1, row, up));
  store_bf16_quick(static_cast<uint16_t*>(out.data) + row * out.ld + 8 * panel, silu(g) * u);
}

}  // namespace
}  // namespace trivet
