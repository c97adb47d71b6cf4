#include "trivet/rope.h"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace trivet {
namespace {

// ---- The unevaluated sum of two doubles, hi the nearest double to hi + lo: some 106 bits.

struct Twofold {
  double hi, lo;
};

// hi + lo = a + b exactly (Knuth).
inline Twofold two_sum(double a, double b) {
  const double hi = a + b, from_b = hi - a;
  return {hi, (a - (hi - from_b)) + (b - from_b)};
}

// The same where |a| >= |b| (Dekker).
inline Twofold quick_two_sum(double a, double b) {
  const double hi = a + b;
  return {hi, b - (hi - a)};
}

// a in two parts of 26 bits each (Veltkamp), so that products of parts are exact.
inline Twofold split(double a) {
  const double big = a * 134217729.0;  // 2^27 + 1
  const double hi = big - (big - a);
  return {hi, a - hi};
}

inline Twofold times(Twofold a, Twofold b) {
  const double hi = a.hi * b.hi;
  const Twofold x = split(a.hi), y = split(b.hi);
  const double error = ((x.hi * y.hi - hi) + x.hi * y.lo + x.lo * y.hi) + x.lo * y.lo;
  return quick_two_sum(hi, error + (a.hi * b.lo + a.lo * b.hi));
}

// theta^(-1/n): halving in doubles, then two Newton steps on theta y^n = 1, each of which squares the error.
Twofold inverse_root(double theta, size_t n) {
  double low = 0, high = 1;
  for (int i = 0; i < 110; ++i) {
    const double middle = 0.5 * (low + high);
    double product = theta;
    for (size_t j = 0; j < n; ++j) product *= middle;
    (product < 1 ? low : high) = middle;
  }
  Twofold y{high, 0};
  for (int i = 0; i < 2; ++i) {
    Twofold product{theta, 0};
    for (size_t j = 0; j < n; ++j) product = times(product, y);
    const double excess = (product.hi - 1) + product.lo;  // of theta y^n over 1: small, so a double will do
    const Twofold step = times(y, {-excess / double(n), 0});
    const Twofold sum = two_sum(y.hi, step.hi);
    y = quick_two_sum(sum.hi, sum.lo + (y.lo + step.lo));
  }
  return y;
}

// ---- cos and sin of doubles below 2^31

constexpr double kRound = 6755399441055744;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
// pi / 2 in parts of 22 bits, so that n times a part is exact for n < 2^31, and the next 53 bits.
constexpr double kHalfPi[] = {0x1.921fb0p+0, 0x1.5110b0p-22, 0x1.184698p-44, 0x1.3198a2e037073p-69};

// Minimax would save a term; Taylor's series says where its numbers come from. |r| <= pi/4: the rest is below 1e-19.
inline double sin_series(double z) {  // (sin r - r) / (r z), z = r^2
  double p = 1.0 / 355687428096000;   // 17!
  p = p * z - 1.0 / 1307674368000;
  p = p * z + 1.0 / 6227020800;
  p = p * z - 1.0 / 39916800;
  p = p * z + 1.0 / 362880;
  p = p * z - 1.0 / 5040;
  p = p * z + 1.0 / 120;
  return p * z - 1.0 / 6;
}

inline double cos_series(double z) {  // (cos r - 1 + z / 2) / z^2
  double p = -1.0 / 6402373705728000;  // 18!
  p = p * z + 1.0 / 20922789888000;
  p = p * z - 1.0 / 87178291200;
  p = p * z + 1.0 / 479001600;
  p = p * z - 1.0 / 3628800;
  p = p * z + 1.0 / 40320;
  p = p * z - 1.0 / 720;
  return p * z + 1.0 / 24;
}

// sin(x + quarters * pi/2) for 0 <= x < 2^31.
inline double sin_shifted(double x, int64_t quarters) {
  const double shifted = x * kTwoOverPi + kRound, n = shifted - kRound;
  const Twofold second = two_sum(x - n * kHalfPi[0], -n * kHalfPi[1]);  // the first difference is exact (Sterbenz)
  const Twofold third = two_sum(second.hi, -n * kHalfPi[2]);
  const Twofold r = quick_two_sum(third.hi, (second.lo + third.lo) - n * kHalfPi[3]);

  const double z = r.hi * r.hi, half = 0.5 * z, near_one = 1 - half;
  const double sine = r.hi + (r.hi * z * sin_series(z) + r.lo * near_one);
  const double cosine = near_one + (((1 - near_one) - half) + (z * z * cos_series(z) - r.hi * r.lo));

  const int64_t quarter = std::bit_cast<int64_t>(shifted) + quarters;  // its two low bits count
  const double value = quarter & 1 ? cosine : sine;
  return quarter & 2 ? -value : value;
}

}  // namespace

void rope_frequencies(const Rope& rope, size_t head_dim, double* frequencies) {
  const size_t num_pairs = head_dim / 2;
  const Twofold ratio = inverse_root(rope.theta, num_pairs);
  Twofold power{1, 0};
  for (size_t i = 0; i < num_pairs; ++i) {
    const double f = power.hi;
    frequencies[i] = f;
    if (rope.scaling == RopeScaling::kLinear) frequencies[i] = f / rope.factor;
    if (rope.scaling == RopeScaling::kLlama3) {
      const double turns = rope.original_max_position * f / 6.283185307179586;  // of the pair over the original context
      const double smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
      const double kept = std::clamp(smooth, 0.0, 1.0);  // 1: many turns, left as they are; 0: few, slowed
      frequencies[i] = f * (kept + (1 - kept) / rope.factor);
    }
    power = times(power, ratio);
  }
}

void rope_table(const double* frequencies, size_t num_pairs, size_t num_positions, RopePart part, float* table) {
  const int64_t quarters = part == RopePart::kCos ? 1 : 0;
  for (size_t t = 0; t < num_positions; ++t)
    for (size_t i = 0; i < num_pairs; ++i)
      table[t * num_pairs + i] = float(sin_shifted(double(t) * frequencies[i], quarters));
}

}  // namespace trivet
