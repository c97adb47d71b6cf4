// The search for multipliers and scale of a row of int4 weights.
//
// 1. A group whose largest weight is positive is flipped, and its multiplier negative: the side that reaches farthest
//    has the code more. For each group the squared error is measured on a grid of steps absmax / d, d in kGridFirst ..
//    kGridLast (above 8 the largest values are clipped); the best is the group's ideal step.
// 2. Candidates for the row's scale are the largest ideal step over 8, 9 .. 17. What each would cost with the nearest
//    multipliers is read off the measured curves. The two cheapest are tried in full.
// 3. In full: each group tries its nearest multiplier and both neighbours; then the row's scale is refitted to the
//    codes by least squares.
// On normal, Student-t and column-scaled rows: 1.06-1.07x the squared error of float16 group scales of either sign at
// group 32 (which cost 0.5 bit a weight where multipliers cost 0.25), 1.03x at 64, 1.01-1.02x at 128. See
// tests/formats/test_pack.py.
#include "core/quantize_int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/row_math.h"

namespace trivet {
namespace {

constexpr int kCandidates = 10, kFirstCandidate = 8;
constexpr float kTinyGroup = 1e-4f;  // of a row scaled to 1..2, a group below half of the smallest step: zeros
constexpr float kGridFirst = 7.0f, kGridLast = 11.0f;
constexpr float kGridStep = (kGridLast - kGridFirst) / (Int4Quantizer::kGrid - 1);

inline float rounded(float x) { return x + kMagic - kMagic; }

using Lanes = float __attribute__((vector_size(16)));  // four floats: one register on any x86-64
inline Lanes all(float x) { return Lanes{x, x, x, x}; }

// (x - step * clamp(round(x / step)))^2 of four values.
inline Lanes square_error(const float* x, Lanes step, Lanes inverse, Lanes low, Lanes high) {
  Lanes v;
  std::memcpy(&v, x, sizeof v);
  Lanes q = v * inverse + all(kMagic) - all(kMagic);
  q = q > low ? q : low;
  q = q < high ? q : high;
  const Lanes e = v - step * q;
  return e * e;
}

// Sum of the squared errors of n values at this step, n a multiple of 8; eight lanes added in a fixed order.
float group_error(const float* x, size_t n, float step, float low) {
  float high = 7;
  asm("" : "+x"(low), "+x"(high));  // of constant bounds GCC 12 makes compare, and, andn, or; of others max and min
  const Lanes steps = all(step), inverse = all(1.0f / step), lows = all(low), highs = all(high);
  Lanes a = all(0), b = all(0);
  for (size_t i = 0; i < n; i += 8) {
    a += square_error(x + i, steps, inverse, lows, highs);
    b += square_error(x + i + 4, steps, inverse, lows, highs);
  }
  a += b;
  return (a[0] + a[1]) + (a[2] + a[3]);
}

int nearest_multiplier(float step, float scale) { return std::clamp(int(rounded(step / scale)), 1, 16); }
float lowest_code(int m) { return m == 16 ? -7.0f : -8.0f; }  // |m q| <= 120

}  // namespace

Int4Quantizer::Int4Quantizer(size_t k, size_t group) : k_(k), group_(group), groups_(k / group) {
  for (std::vector<uint8_t>& multipliers : candidates_) multipliers.resize(k / group);
}

// The squared error at step top / d, between and beyond the measured points.
float Int4Quantizer::curve(const Group& group, float d) {
  const float x = (d - kGridFirst) * (1 / kGridStep);
  if (x <= 0) return group.error[0] * (kGridFirst / d) * (kGridFirst / d);  // coarser: grows as the step's square
  if (x >= kGrid - 1) return group.error[kGrid - 1] * (1 + 0.5f * (x - (kGrid - 1)));
  const int i = int(x);
  return group.error[i] + (group.error[i + 1] - group.error[i]) * (x - float(i));
}

void Int4Quantizer::measure_groups(float* x) {
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& it = groups_[g];
    float* group = x + g * group_;
    it.top = abs_max(group, group_);
    it.step = 0;
    it.flipped = it.top >= kTinyGroup && highest(group, group_) == it.top;
    if (it.top < kTinyGroup) continue;
    if (it.flipped)
      for (size_t i = 0; i < group_; ++i) group[i] = -group[i];
    int best = 0;
    for (int i = 0; i < kGrid; ++i) {
      it.error[i] = group_error(group, group_, it.top / (kGridFirst + float(i) * kGridStep), -8);
      if (it.error[i] < it.error[best]) best = i;
    }
    it.step = it.top / (kGridFirst + float(best) * kGridStep);
  }
}

// The two candidates for the row's scale that the curves call cheapest.
void Int4Quantizer::choose_scales(float out[2]) const {
  float largest = 0, cost[2] = {INFINITY, INFINITY};
  for (const Group& it : groups_) largest = std::max(largest, it.step);
  for (int c = kFirstCandidate; c < kFirstCandidate + kCandidates; ++c) {
    const float scale = largest / float(c);
    float total = 0;
    for (const Group& it : groups_)
      if (it.step > 0) total += curve(it, it.top / (float(nearest_multiplier(it.step, scale)) * scale));
    if (total < cost[0]) {
      cost[1] = cost[0], out[1] = out[0];
      cost[0] = total, out[0] = scale;
    } else if (total < cost[1]) {
      cost[1] = total, out[1] = scale;
    }
  }
}

// The best multiplier of each group for this scale, and the row's squared error with them.
float Int4Quantizer::choose_multipliers(const float* x, float scale, uint8_t* out) const {
  float total = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    out[g] = 1;
    if (groups_[g].step == 0) continue;
    const int nearest = nearest_multiplier(groups_[g].step, scale);
    float best = INFINITY;
    for (int m = std::max(1, nearest - 1); m <= std::min(16, nearest + 1); ++m) {
      const float error = group_error(x + g * group_, group_, float(m) * scale, lowest_code(m));
      if (error < best) best = error, out[g] = uint8_t(m);
    }
    total += best;
  }
  return total;
}

float Int4Quantizer::row(float* x, int8_t* codes, int8_t* multipliers) {
  std::fill(multipliers, multipliers + groups_.size(), int8_t(1));
  const float top = abs_max(x, k_);
  if (top < kTiny) return 1.0f;
  const float unit = std::ldexp(1.0f, std::ilogb(top));  // exact, so that squares neither vanish nor overflow
  for (size_t i = 0; i < k_; ++i) x[i] *= 1 / unit;
  measure_groups(x);
  float scales[2] = {0, 0};
  choose_scales(scales);
  float errors[2];
  for (int i = 0; i < 2; ++i) errors[i] = choose_multipliers(x, scales[i], candidates_[i].data());
  const int chosen = errors[1] < errors[0];
  double xw = 0, ww = 0;  // least squares: scale = sum(x w8) / sum(w8^2)
  for (size_t g = 0; g < groups_.size(); ++g) {
    const float m = candidates_[chosen][g], inverse = 1.0f / (m * scales[chosen]), low = lowest_code(int(m));
    float xq = 0, qq = 0;
    for (size_t i = g * group_; i < (g + 1) * group_; ++i) {
      const float q = std::clamp(rounded(x[i] * inverse), low, 7.0f);
      codes[i] = int8_t(q);
      xq += x[i] * q;
      qq += q * q;
    }
    xw += double(m) * xq;
    ww += double(m * m) * qq;
    multipliers[g] = int8_t(groups_[g].flipped ? -m : m);
  }
  return float(xw / ww) * unit;
}

}  // namespace trivet
