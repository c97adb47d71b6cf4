// Single kernels, for the tests: each runs in the tier in use.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bind/arrays.h"
#include "trivet/kernels.h"

namespace {

using namespace trivet;

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};
std::unique_ptr<uint8_t, Free> scratch(size_t bytes) {
  return std::unique_ptr<uint8_t, Free>(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
}

// Number: float for the epilogues store and add, uint16_t (bf16) for store_bf16 and silu_mul.
template <class Number>
void linear(const std::string& kind, Array<const uint8_t, 1> codes, Array<const int8_t, 1> multipliers,
            Array<const float, 1> scales, Array<const int32_t, 1> colsum, nb::object bias, size_t n, size_t k,
            Array<const uint8_t, 2> x, Array<const float, 1> x_scales, size_t num_rows, const std::string& epilogue,
            Array<Number, 2> out) {
  Linear w;
  w.kind = kind == "bf16" ? LinearKind::kBF16 : kind == "i8" ? LinearKind::kI8 : LinearKind::kI4;
  check(kind == "bf16" || kind == "i8" || kind == "i4", "kind must be bf16, i8 or i4");
  const bool wide = sizeof(Number) == 4;
  const std::string names[] = {"store", "add", "store_bf16", "silu_mul"};
  const auto* name = std::find(names + (wide ? 0 : 2), names + (wide ? 2 : 4), epilogue);
  check(name != names + (wide ? 2 : 4), wide ? "epilogue must be store or add" : "epilogue must be store_bf16 or silu_mul");
  const Epilogue e = Epilogue(name - names);
  const size_t unit = w.kind == LinearKind::kBF16 ? 32 : 64, item = w.kind == LinearKind::kBF16 ? 2 : 1;
  w.n = n;
  w.k = k;
  w.np = (n + 15) / 16 * 16;
  w.kp = (k + unit - 1) / unit * unit;
  check(e != Epilogue::kSiluMul || w.np % 32 == 0, "silu_mul needs gate and up panels in pairs");
  check(codes.shape(0) == w.np / 16 * w.panel_bytes(), "codes has the wrong size");
  check(x.shape(0) >= (num_rows + 31) / 32 * 32 && x.shape(1) == w.kp * item, "x must be [rows rounded up to 32, Kp]");
  if (w.kind != LinearKind::kBF16)
    check(scales.shape(0) == w.np && colsum.shape(0) == w.np && x_scales.shape(0) >= num_rows, "scales, colsum or x_scales is too short");
  if (w.kind == LinearKind::kI4) check(multipliers.shape(0) == w.np * w.kp / 32, "multipliers has the wrong size");
  check(reinterpret_cast<uintptr_t>(codes.data()) % 64 == 0, "codes must be aligned to 64 bytes");
  check(out.shape(0) == num_rows && out.shape(1) >= (e == Epilogue::kSiluMul ? w.np / 2 : n), "out is too small");
  w.codes = codes.data();
  w.multipliers = multipliers.data();
  w.scales = scales.data();
  w.colsum = colsum.data();
  Array<const float, 1> bias_array;
  if (!bias.is_none()) {
    bias_array = nb::cast<Array<const float, 1>>(bias, false);
    check(bias_array.shape(0) == n, "bias must be [N]");
    w.bias = bias_array.data();
  }
  const Rows rows{num_rows, w.kp, x.data(), x_scales.data()};
  auto s = scratch(linear_scratch_bytes(w.kp));
  const FlushDenormals flush;
  tiles_begin();
  kernels().linear[int(w.kind)](w, rows, 0, w.np / 16, {e, out.data(), out.shape(1)}, s.get());
  tiles_end();
}

template <class Number>
void def_linear(nb::module_& m) {
  m.def("linear", &linear<Number>, nb::arg("kind"), nb::arg("codes").noconvert(), nb::arg("multipliers").noconvert(),
        nb::arg("scales").noconvert(), nb::arg("colsum").noconvert(), nb::arg("bias").none(), nb::arg("n"), nb::arg("k"),
        nb::arg("x").noconvert(), nb::arg("x_scales").noconvert(), nb::arg("num_rows"), nb::arg("epilogue"),
        nb::arg("out").noconvert(), "y = x w' + bias for packed weights; x holds the bytes of bf16 or int8 rows.");
}

}  // namespace

void bind_kernels(nb::module_& parent) {
  nb::module_ m = parent.def_submodule("kernels", "Single kernels, for the tests.");
  def_linear<float>(m);
  def_linear<uint16_t>(m);
  m.def("rms_norm", [](Array<const float, 1> x, Array<const float, 1> weight, float eps, Array<float, 1> out) {
    check(x.shape(0) == weight.shape(0) && x.shape(0) == out.shape(0), "x, weight and out must be [D]");
    kernels().rms_norm(x.data(), weight.data(), eps, x.shape(0), out.data());
  }, nb::arg("x").noconvert(), nb::arg("weight").noconvert(), nb::arg("eps"), nb::arg("out").noconvert());
  m.def("quantize", [](Array<const float, 1> x, Array<int8_t, 1> out) {
    check(out.shape(0) >= x.shape(0) && out.shape(0) % 64 == 0, "out must be [Kp], a multiple of 64");
    float scale = 0;
    kernels().quantize(x.data(), x.shape(0), out.shape(0), out.data(), &scale);
    return scale;
  }, nb::arg("x").noconvert(), nb::arg("out").noconvert(), "Int8 codes of x; gives the scale.");
  m.def("to_bf16", [](Array<const float, 1> x, Array<uint16_t, 1> out) {
    check(out.shape(0) >= x.shape(0) && out.shape(0) % 32 == 0, "out must be [Kp], a multiple of 32");
    kernels().to_bf16(x.data(), x.shape(0), out.shape(0), out.data());
  }, nb::arg("x").noconvert(), nb::arg("out").noconvert());
  m.def("turn", [](Array<const uint16_t, 1> x, nb::object norm_weight, float eps, Array<const float, 1> cos,
                   Array<const float, 1> sin, Array<float, 1> out) {
    const size_t p = x.shape(0);
    check(p == 2 * cos.shape(0) && cos.shape(0) == sin.shape(0) && p == out.shape(0), "x and out must be [P], cos and sin [P / 2]");
    check(p <= kMaxHeadDim, "P is too large");
    HeadTurn head{x.data(), nullptr, eps, cos.data(), sin.data(), p};
    Array<const float, 1> weight;
    if (!norm_weight.is_none()) {
      weight = nb::cast<Array<const float, 1>>(norm_weight, false);
      check(weight.shape(0) == p, "norm_weight must be [P]");
      head.norm_weight = weight.data();
    }
    std::vector<uint16_t> half(p);
    kernels().turn(head, out.data());
    kernels().turn_bf16(head, half.data());
    return nb::bytes(reinterpret_cast<const char*>(half.data()), 2 * p);
  }, nb::arg("x").noconvert(), nb::arg("norm_weight").none(), nb::arg("eps"), nb::arg("cos").noconvert(),
     nb::arg("sin").noconvert(), nb::arg("out").noconvert(), "One head as f32 into `out`; gives the same rounded to bf16, as bytes.");
}
