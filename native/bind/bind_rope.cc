// Bindings of rope tables: every number is checked, outputs are written in place.
#include "trivet/rope.h"

#include <cmath>
#include <cstdio>

#include "bind/arrays.h"

using namespace nb::literals;

namespace {

std::string text(double x) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%g", x);
  return buffer;
}

trivet::RopeScaling rope_scaling(const std::string& name) {
  if (name == "none") return trivet::RopeScaling::kNone;
  if (name == "linear") return trivet::RopeScaling::kLinear;
  if (name == "llama3") return trivet::RopeScaling::kLlama3;
  bad_value("scaling is '" + name + "', but it must be none, linear or llama3");
}

void rope_frequencies(size_t head_dim, double theta, const std::string& scaling, double factor, double low_freq_factor,
                      double high_freq_factor, double original_max_position, Array<double, 1> frequencies) {
  check(head_dim >= 2 && head_dim <= 65536 && head_dim % 2 == 0,
        "head_dim is " + std::to_string(head_dim) + ", but it must be even, 2 to 65536");
  check(theta >= 1 && theta <= trivet::kMaxRopeTheta,
        "theta is " + text(theta) + ", but it must be 1 to " + text(trivet::kMaxRopeTheta));
  const trivet::Rope rope{theta, rope_scaling(scaling), factor, low_freq_factor, high_freq_factor,
                          original_max_position};
  if (rope.scaling != trivet::RopeScaling::kNone)
    check(factor >= 1 && std::isfinite(factor), "factor is " + text(factor) + ", but it must be 1 or more");
  if (rope.scaling == trivet::RopeScaling::kLlama3) {
    check(low_freq_factor < high_freq_factor, "low_freq_factor is " + text(low_freq_factor) +
                                                  ", but it must be below high_freq_factor, " + text(high_freq_factor));
    check(original_max_position >= 1 && std::isfinite(original_max_position),
          "original_max_position is " + text(original_max_position) + ", but it must be 1 or more");
  }
  check(frequencies.size() == head_dim / 2, "frequencies has " + std::to_string(frequencies.size()) +
                                                " elements, expected " + std::to_string(head_dim / 2));
  trivet::rope_frequencies(rope, head_dim, frequencies.data());
}

void rope_table(Array<const double, 1> frequencies, const std::string& part, Array<float, 2> table) {
  const size_t num_pairs = frequencies.size(), num_positions = table.shape(0);
  check(part == "cos" || part == "sin", "part is '" + part + "', but it must be cos or sin");
  check(table.shape(1) == num_pairs, "table has " + std::to_string(table.shape(1)) + " columns, expected " +
                                         std::to_string(num_pairs));
  for (size_t i = 0; i < num_pairs; ++i) {
    const double f = frequencies.data()[i];
    check(f >= 0 && f * double(num_positions) < trivet::kMaxRopeAngle,
          "frequencies[" + std::to_string(i) + "] is " + text(f) + ", but it must be 0 or more and less than 2^31 / " +
              std::to_string(num_positions));
  }
  nb::gil_scoped_release release;
  trivet::rope_table(frequencies.data(), num_pairs, num_positions,
                     part == "cos" ? trivet::RopePart::kCos : trivet::RopePart::kSin, table.data());
}

}  // namespace

void bind_rope(nb::module_& m) {
  m.def("rope_frequencies", &rope_frequencies, "head_dim"_a, "theta"_a, "scaling"_a, "factor"_a, "low_freq_factor"_a,
        "high_freq_factor"_a, "original_max_position"_a, "frequencies"_a.noconvert(),
        "Fills float64 [head_dim / 2] with radians a position; `scaling` is none, linear or llama3.");
  m.def("rope_table", &rope_table, "frequencies"_a.noconvert(), "part"_a, "table"_a.noconvert(),
        "Fills float32 [positions, pairs] with the cos or sin (`part`) of position * frequency, all below 2^31.");
}
