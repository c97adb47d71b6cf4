// Tables of rotary position embedding, made once a model while packing.
//
// From + - * / of doubles alone, in a fixed order: the same bits on every CPU, where libm and NumPy choose their
// kernels by CPU and differ in the last place. The tables are part of a packed model's digest.
#pragma once

#include <cstddef>

namespace trivet {

enum class RopeScaling { kNone, kLinear, kLlama3 };
enum class RopePart { kCos, kSin };

struct Rope {
  double theta;  // 1 .. kMaxRopeTheta
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;  // linear and llama3: at least 1
  double low_freq_factor = 1, high_freq_factor = 4, original_max_position = 8192;  // llama3: low below high
};

constexpr double kMaxRopeTheta = 1e15;  // products with it must stay far from overflow and underflow
constexpr double kMaxRopeAngle = 2147483648;  // radians

// frequencies[i] = radians a position of pair i, i < head_dim / 2: theta^(-2i / head_dim) to the nearest double, then
// scaled.
void rope_frequencies(const Rope& rope, size_t head_dim, double* frequencies);

// table[t, i] = cos or sin of the double t * frequencies[i], within 1e-15 before it is rounded to float32.
//
//   frequencies  [num_pairs], at least 0; no angle may reach kMaxRopeAngle
//   table        f32 [num_positions, num_pairs] row-major, overwritten
void rope_table(const double* frequencies, size_t num_pairs, size_t num_positions, RopePart part, float* table);

}  // namespace trivet
