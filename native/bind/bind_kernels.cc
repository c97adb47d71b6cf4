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
// Scratch with a line behind it by which it is seen if a kernel leaves it.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(bytes), data_(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64))) {
    std::fill_n(get(), bytes, uint8_t(0xff));
    std::fill_n(get() + bytes, 64, kCanary);
  }
  uint8_t* get() const { return data_.get(); }
  void check_end() const {
    check(std::all_of(get() + bytes_, get() + bytes_ + 64, [](uint8_t b) { return b == kCanary; }), "the kernel wrote past its scratch");
  }

 private:
  static constexpr uint8_t kCanary = 0xa5;
  size_t bytes_;
  std::unique_ptr<uint8_t, Free> data_;
};

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
  check(x.shape(0) >= (num_rows + 31) / 32 * 32 && x.shape(1) >= w.kp * item, "x must be [rows rounded up to 32, at least Kp]");
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
  const Rows rows{num_rows, x.shape(1), x.data(), x_scales.data()};
  const Scratch scratch(linear_scratch_bytes(w.kp));
  const FlushDenormals flush;
  tiles_begin();
  kernels().linear[int(w.kind)](w, rows, 0, w.np / 16, {e, out.data(), out.shape(1)}, scratch.get());
  tiles_end();
  scratch.check_end();
}

template <class Number>
void def_linear(nb::module_& m) {
  m.def("linear", &linear<Number>, nb::arg("kind"), nb::arg("codes").noconvert(), nb::arg("multipliers").noconvert(),
        nb::arg("scales").noconvert(), nb::arg("colsum").noconvert(), nb::arg("bias").none(), nb::arg("n"), nb::arg("k"),
        nb::arg("x").noconvert(), nb::arg("x_scales").noconvert(), nb::arg("num_rows"), nb::arg("epilogue"),
        nb::arg("out").noconvert(), "y = x w' + bias for packed weights; x holds the bytes of bf16 or int8 rows.");
}

// Attention of one item with keys [0, cuts[0]), then [cuts[0], cuts[1]) and so on.
void attend(Array<const uint16_t, 2> q, Array<const int32_t, 1> position, Array<const int32_t, 1> block_table, Array<const uint8_t, 1> kv,
            size_t block_size, bool int8, float scale, Array<const int32_t, 1> cuts, Array<float, 2> out, Array<float, 1> row_max,
            Array<float, 1> row_sum) {
  const size_t rows = position.shape(0), pp = q.shape(1), head_bytes = kv_head_bytes(block_size, pp, int8);
  check(rows >= 1 && rows <= kQueryTile && q.shape(0) == kQueryTile && out.shape(0) == kQueryTile, "q and out must have 32 rows, and no fewer than position");
  check(pp % 32 == 0 && pp <= kMaxHeadDim && out.shape(1) == pp, "the padded head width must be a multiple of 32, at most 256");
  check(row_max.shape(0) == kQueryTile && row_sum.shape(0) == kQueryTile, "row_max and row_sum must be [32]");
  check(block_size % 32 == 0 && kv.shape(0) % head_bytes == 0, "kv must be whole blocks");
  for (size_t i = 0; i < block_table.shape(0); ++i)
    check(block_table(i) >= 0 && size_t(block_table(i)) < kv.shape(0) / head_bytes, "block_table names a block that is not there");
  const size_t num = cuts.shape(0);
  check(num > 0 && cuts(num - 1) > 0 && size_t(cuts(num - 1)) <= block_table.shape(0) * block_size, "cuts must end within the blocks");
  for (size_t i = 0; i + 1 < num; ++i)
    check(cuts(i) > 0 && cuts(i) < cuts(i + 1) && cuts(i) % int32_t(kKeyStep) == 0, "cuts must rise, all but the last by whole steps of 128 keys");
  const Scratch scratch(attend_scratch_bytes(pp));
  const KvView view{const_cast<uint8_t*>(kv.data()), head_bytes, block_size, pp, int8};
  const FlushDenormals flush;
  tiles_begin();
  for (size_t i = 0, begin = 0; i < num; begin = size_t(cuts(i++))) {
    AttendItem item{q.data(), rows, position.data(), block_table.data(), view, scale, begin, size_t(cuts(i))};
    item.resume = i > 0;
    kernels().attend(item, out.data(), row_max.data(), row_sum.data(), scratch.get());
  }
  tiles_end();
  scratch.check_end();
}

void write_kv(Array<uint8_t, 1> block, size_t block_size, size_t head_dim, bool int8, size_t slot, Array<const float, 2> keys,
              Array<const uint16_t, 2> values) {
  const size_t num = keys.shape(0), pp = (head_dim + 31) / 32 * 32;
  check(head_dim <= kMaxHeadDim && block.shape(0) == kv_head_bytes(block_size, pp, int8), "block must be that of one head");
  check(keys.shape(1) >= head_dim && values.shape(1) >= head_dim && values.shape(0) == num, "keys and values must be [num, head_dim or more]");
  check(num >= 1 && slot / 16 == (slot + num - 1) / 16 && slot + num <= block_size, "slots must be of one group of 16");
  kernels().write_kv({block.data(), block_size, head_dim, pp, slot, num, int8, keys.data(), keys.shape(1), values.data(), values.shape(1)});
}

template <class X>
void def_quantize(nb::module_& m, const char* name, void (*Kernels::*quantize)(const X*, size_t, size_t, int8_t*, float*)) {
  m.def(name, [quantize](Array<const X, 1> x, Array<int8_t, 1> out) {
    check(out.shape(0) >= x.shape(0) && out.shape(0) % 64 == 0, "out must be [Kp], a multiple of 64");
    float scale = 0;
    (kernels().*quantize)(x.data(), x.shape(0), out.shape(0), out.data(), &scale);
    return scale;
  }, nb::arg("x").noconvert(), nb::arg("out").noconvert(), "Int8 codes of x; gives the scale.");
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
  def_quantize(m, "quantize", &Kernels::quantize);
  def_quantize(m, "quantize_bf16", &Kernels::quantize_bf16);
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
  m.def("attend", &attend, nb::arg("q").noconvert(), nb::arg("position").noconvert(), nb::arg("block_table").noconvert(),
        nb::arg("kv").noconvert(), nb::arg("block_size"), nb::arg("int8"), nb::arg("scale"), nb::arg("cuts").noconvert(),
        nb::arg("out").noconvert(), nb::arg("row_max").noconvert(), nb::arg("row_sum").noconvert(),
        "Attention of up to 32 rows of one head, not yet divided by row_sum; scratch begins with no numbers.");
  m.def("write_kv", &write_kv, nb::arg("block").noconvert(), nb::arg("block_size"), nb::arg("head_dim"), nb::arg("int8"),
        nb::arg("slot"), nb::arg("keys").noconvert(), nb::arg("values").noconvert(), "Tokens of one head to the slots from `slot` on.");
}
