// The plain tier: SSE2, no intrinsics. It is the slow twin of the others, which must give the same bits; for the one tier
// that sums bf16 in another order there is a second twin, baseline_pairs, which differs from the first in that alone.
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

// Sixteen pairs at p, times the pair at x, added to the sums so far.
struct EvenOdd {  // as tdpbf16ps: 32 k at a time, even and odd apart
  vf total, even{}, odd{};
  void add(const uint16_t* p, const uint16_t* x) {  // a product of two bf16 is exact in f32
    even = even + lanes(p, 0) * bf16_to_float(x[0]);
    odd = odd + lanes(p, 1) * bf16_to_float(x[1]);
  }
  void after_32() {
    total = total + (even + odd);
    even = odd = vf{};
  }
  static vf lanes(const uint16_t* p, int which) {
    float a[16];
    for (int c = 0; c < 16; ++c) a[c] = bf16_to_float(p[2 * c + which]);
    return load(a);
  }
};
struct Pairs {  // as vdpbf16ps: one chain, odd before even
  vf total;
  void add(const uint16_t* p, const uint16_t* x) {
    total = total + EvenOdd::lanes(p, 1) * bf16_to_float(x[1]);
    total = total + EvenOdd::lanes(p, 0) * bf16_to_float(x[0]);
  }
  void after_32() {}
};

template <class Sum>
vf panel_bf16(const Linear& w, const uint16_t* x, size_t panel) {
  Sum sum{vf{}};
  const uint16_t* p = reinterpret_cast<const uint16_t*>(w.codes) + panel * (w.panel_bytes() / 2);
  for (size_t k = 0; k < w.kp; k += 32) {
    for (int r = 0; r < 16; ++r, p += 32) sum.add(p, x + k + 2 * r);
    sum.after_32();
  }
  return sum.total;
}

template <class X, auto panel_of>
void linear(const Linear& w, const Rows& x, size_t begin, size_t end, const Output& out, uint8_t*) {
  for (size_t t = 0; t < x.num; ++t) {
    const X* row = x.at<X>(t);
    if (out.epilogue == Epilogue::kSiluMul)
      for (size_t p = begin; p < end; p += 2) finish_gate_up(w, x, p, t, panel_of(w, row, p), panel_of(w, row, p + 1), out);
    else
      for (size_t p = begin; p < end; ++p) finish(w, x, p, t, panel_of(w, row, p), out);
  }
}

template <class Sum>
struct Chain {
  template <bool kAdd>
  static void chain(size_t rows, const uint16_t* a, size_t lda, const uint16_t* const* b, size_t num, size_t ldb,
                    float* c, size_t ldc) {
    for (size_t r = 0; r < rows; ++r) {
      Sum sum{kAdd ? load(c + r * ldc) : vf{}};
      for (size_t i = 0; i < num; ++i) {
        for (size_t j = 0; j < 16; ++j) sum.add(b[i] + j * ldb, a + r * lda + 32 * i + 2 * j);
        sum.after_32();
      }
      store(c + r * ldc, sum.total);
    }
  }
};

struct PlainCodes {
  using Query = Words;
  using Weights = Words;
  static constexpr bool kByLines = false;
  static constexpr size_t kMostAsking = 0;
  static void scores(size_t rows, const Words& q, size_t pp, const uint8_t* keys, int32_t* s, const RunsAhead&, size_t) {
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = 0; c < 32; ++c) {
        uint32_t sum = 0;
        for (size_t p = 0; p < pp; ++p) sum += uint32_t(q.words(r)[p] * keys[key_at(c, p, pp, true)]);
        s[r * kKeyStep + c] = int32_t(sum);
      }
  }
  static void values(size_t rows, const Words& w, const uint8_t* const* vals, size_t runs, size_t pp, int32_t* o, const RunsAhead&, uint8_t*) {
    for (size_t r = 0; r < rows; ++r)
      for (size_t p = 0; p < pp; ++p) {
        uint32_t sum = 0;
        for (size_t j = 0; j < 32 * runs; ++j) sum += uint32_t(w.words(r)[j] * vals[j / 32][value_at(j % 32, p, pp, 0, true)]);
        o[r * pp + p] = int32_t(sum);
      }
  }
};

template <class Sum>
Kernels table(const char* name) {
  return make_table<TileProducts<Chain<Sum>>, PlainCodes>(name, linear<uint16_t, panel_bf16<Sum>>, linear<int8_t, panel_i8>,
                                              linear<int8_t, panel_i4>);
}

}  // namespace

Kernels baseline_table() { return table<EvenOdd>("baseline"); }
Kernels baseline_pairs_table() { return table<Pairs>("baseline_pairs"); }

}  // namespace trivet
