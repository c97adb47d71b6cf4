// Bindings of packing: every array is checked while the GIL is held, the work runs without it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>
#include <vector>

#include "trivet/pack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutCodes = nb::ndarray<int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutInts = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct Sources {
  std::vector<trivet::RowSource> rows;
  std::vector<Bytes> keep;  // holds the arrays while the GIL is released
  size_t padded_rows = 0;   // Np
};

trivet::SourceType source_type(const std::string& dtype) {
  if (dtype == "f32") return trivet::SourceType::kF32;
  if (dtype == "f16") return trivet::SourceType::kF16;
  if (dtype == "bf16") return trivet::SourceType::kBF16;
  throw nb::value_error(("source dtype is '" + dtype + "', but it must be f32, f16 or bf16").c_str());
}

Sources read_sources(const nb::list& sources, size_t k) {
  Sources out;
  if (k == 0 || k > (size_t(1) << 24)) throw nb::value_error("k must be between 1 and 2^24");
  size_t num_rows = 0;
  for (nb::handle item : sources) {
    const nb::tuple source = nb::cast<nb::tuple>(item);
    if (source.size() != 3) throw nb::value_error("a source is (bytes or None, dtype, num_rows)");
    trivet::RowSource row{nullptr, source_type(nb::cast<std::string>(source[1])), nb::cast<size_t>(source[2])};
    if (row.num_rows == 0 || row.num_rows > (size_t(1) << 31)) throw nb::value_error("num_rows must be 1 or more");
    if (!source[0].is_none()) {
      Bytes data;
      if (!nb::try_cast<Bytes>(source[0], data, false))
        throw nb::type_error("source data must be a 1-D contiguous uint8 array");
      const size_t expected = row.num_rows * k * (row.type == trivet::SourceType::kF32 ? 4 : 2);
      if (data.size() != expected)
        throw nb::value_error(("source data has " + std::to_string(data.size()) + " bytes, expected " +
                               std::to_string(expected)).c_str());
      row.data = data.data();
      out.keep.push_back(std::move(data));
    }
    num_rows += row.num_rows;
    out.rows.push_back(row);
  }
  if (num_rows == 0) throw nb::value_error("no sources");
  out.padded_rows = (num_rows + 15) / 16 * 16;
  return out;
}

template <class Array>
void expect_size(const char* name, const Array& array, size_t expected) {
  if (array.size() != expected)
    throw nb::value_error((std::string(name) + " has " + std::to_string(array.size()) + " elements, expected " +
                           std::to_string(expected)).c_str());
}

void expect_sums_in_int32(const char* kind, size_t k) {
  if (k > trivet::kMaxIntegerK)
    throw nb::value_error(("k is " + std::to_string(k) + ", but " + kind + " weights need one of at most " +
                           std::to_string(trivet::kMaxIntegerK) + ": longer sums can overflow int32").c_str());
}

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

bool pack_bf16(const nb::list& sources, size_t k, OutBytes codes, int num_threads) {
  const Sources s = read_sources(sources, k);
  expect_size("codes", codes, s.padded_rows * round_up(k, 32) * 2);
  const trivet::PackedParts out{codes.data(), nullptr, nullptr, nullptr};
  nb::gil_scoped_release release;
  return trivet::pack_bf16(s.rows.data(), s.rows.size(), k, out, num_threads);
}

bool pack_i8(const nb::list& sources, size_t k, OutBytes codes, OutFloats scales, OutInts colsum, int num_threads) {
  const Sources s = read_sources(sources, k);
  expect_sums_in_int32("int8", k);
  expect_size("codes", codes, s.padded_rows * round_up(k, 64));
  expect_size("scales", scales, s.padded_rows);
  expect_size("colsum", colsum, s.padded_rows);
  const trivet::PackedParts out{codes.data(), scales.data(), colsum.data(), nullptr};
  nb::gil_scoped_release release;
  return trivet::pack_i8(s.rows.data(), s.rows.size(), k, out, num_threads);
}

bool pack_i4(const nb::list& sources, size_t k, size_t group, OutBytes codes, OutCodes multipliers, OutFloats scales,
             OutInts colsum, int num_threads) {
  const Sources s = read_sources(sources, k);
  expect_sums_in_int32("int4", k);
  if ((group != 32 && group != 64 && group != 128) || k % group != 0)
    throw nb::value_error(("group is " + std::to_string(group) + ", but it must be 32, 64 or 128 and divide k = " +
                           std::to_string(k)).c_str());
  expect_size("codes", codes, s.padded_rows * round_up(k, 64) / 2);
  expect_size("multipliers", multipliers, s.padded_rows * (round_up(k, 64) / 32));
  expect_size("scales", scales, s.padded_rows);
  expect_size("colsum", colsum, s.padded_rows);
  const trivet::PackedParts out{codes.data(), scales.data(), colsum.data(), multipliers.data()};
  nb::gil_scoped_release release;
  return trivet::pack_i4(s.rows.data(), s.rows.size(), k, group, out, num_threads);
}

}  // namespace

void bind_pack(nb::module_& m) {
  m.def("pack_bf16", &pack_bf16, "sources"_a, "k"_a, "codes"_a.noconvert(), "num_threads"_a,
        "Fills `codes` from sources [(uint8 array or None, dtype, num_rows)]; False if a value is NaN or infinite.");
  m.def("pack_i8", &pack_i8, "sources"_a, "k"_a, "codes"_a.noconvert(), "scales"_a.noconvert(), "colsum"_a.noconvert(),
        "num_threads"_a, "Fills codes, scales [Np] and colsum [Np]; False if a value is NaN or infinite.");
  m.def("pack_i4", &pack_i4, "sources"_a, "k"_a, "group"_a, "codes"_a.noconvert(), "multipliers"_a.noconvert(),
        "scales"_a.noconvert(), "colsum"_a.noconvert(), "num_threads"_a,
        "Fills codes, multipliers, scales [Np] and colsum [Np]; False if a value is NaN or infinite.");
}
