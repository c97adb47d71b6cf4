// The plain tier: SSE2, no intrinsics. It is the slow twin of the others, which must give the same bits.
#include "kernels/common/epilogue.h"
#include "kernels/common/table.h"
#include "kernels/tables.h"

namespace trivet {
namespace {

// One row of one panel; int32 is exact, so the order of the sum does not matter.
vi panel_i8(const Linear& w, const int8_t* x, size_t panel) {
  int32_t acc[16] = {0};
  const int8_t* p = reinterpret_cast<const int8_t*>(w.codes) + panel * w.panel_bytes();
  for (size_t k = 0; k < w.kp; k += 4, p += 64)
    for (int c = 0; c < 16; ++c)
      for (int e = 0; e < 4; ++e) acc[c] += int32_t(x[k + e]) * p[4 * c + e];
  return load(acc);
}

vi panel_i4(const Linear& w, const int8_t* x, size_t panel) {
  int32_t acc[16] = {0};
  const uint8_t* p = w.codes + panel * w.panel_bytes();
  const int8_t* m = w.multipliers + panel * (w.kp / 32) * 16;
  for (size_t k = 0; k < w.kp; k += 64, p += 512, m += 32)
    for (int r = 0; r < 8; ++r)
      for (int c = 0; c < 16; ++c)
        for (int e = 0; e < 4; ++e) {
          const uint8_t byte = p[64 * r + 4 * c + e];
          acc[c] += int32_t(x[k + 4 * r + e]) * m[c] * ((byte & 15) - 8);
          acc[c] += int32_t(x[k + 32 + 4 * r + e]) * m[16 + c] * ((byte >> 4) - 8);
        }
  return load(acc);
}

vf panel_bf16(const Linear& w, const uint16_t* x, size_t panel) {
  vf acc{};
  const uint16_t* p = reinterpret_cast<const uint16_t*>(w.codes) + panel * (w.panel_bytes() / 2);
  for (size_t k = 0; k < w.kp; k += 32) {
    vf even{}, odd{};
    for (int r = 0; r < 16; ++r, p += 32) {
      float a[16], b[16];
      for (int c = 0; c < 16; ++c) {
        a[c] = bf16_to_float(p[2 * c]);
        b[c] = bf16_to_float(p[2 * c + 1]);
      }
      even = even + load(a) * bf16_to_float(x[k + 2 * r]);  // a product of two bf16 is exact in f32
      odd = odd + load(b) * bf16_to_float(x[k + 2 * r + 1]);
    }
    acc = acc + (even + odd);
  }
  return acc;
}

template <class X, auto panel_of>
void linear(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t*) {
  for (size_t t = 0; t < x.num; ++t) {
    const X* row = static_cast<const X*>(x.data) + t * x.kp;
    if (out.epilogue == Epilogue::kSiluMul)
      for (size_t p = begin; p < end; p += 2) finish_gate_up(w, x, p, t, panel_of(w, row, p), panel_of(w, row, p + 1), out);
    else
      for (size_t p = begin; p < end; ++p) finish(w, x, p, t, panel_of(w, row, p), out);
  }
}

struct Chain {
  template <bool kAdd>
  static void chain(size_t rows, const uint16_t* a, size_t lda, const uint16_t* const* b, size_t num, size_t ldb,
                    float* c, size_t ldc) {
    for (size_t r = 0; r < rows; ++r) {
      vf acc = kAdd ? load(c + r * ldc) : vf{};
      for (size_t i = 0; i < num; ++i) {
        vf even{}, odd{};
        for (int j = 0; j < 16; ++j) {
          float x[16], y[16];
          for (int l = 0; l < 16; ++l) {
            x[l] = bf16_to_float(b[i][j * ldb + 2 * l]);
            y[l] = bf16_to_float(b[i][j * ldb + 2 * l + 1]);
          }
          even = even + load(x) * bf16_to_float(a[r * lda + i * 32 + 2 * j]);
          odd = odd + load(y) * bf16_to_float(a[r * lda + i * 32 + 2 * j + 1]);
        }
        acc = acc + (even + odd);
      }
      store(c + r * ldc, acc);
    }
  }
};

}  // namespace

Kernels baseline_table() {
  return make_table<TileProducts<Chain>>("baseline", linear<uint16_t, panel_bf16>, linear<int8_t, panel_i8>, linear<int8_t, panel_i4>);
}

}  // namespace trivet
