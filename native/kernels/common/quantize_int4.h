// The search for multipliers and scale of a row of int4 weights, eight lanes at a time: the same bytes in every tier, for no
// sum depends on how wide registers are.
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
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/common/lanes.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));
typedef int8_t EightBytes __attribute__((vector_size(8)));

constexpr int kCandidates = 10, kFirstCandidate = 8;
constexpr float kTinyRow = 1e-30f;   // a row whose largest magnitude is below this is packed as zeros
constexpr float kTinyGroup = 1e-4f;  // of a row scaled to 1..2, a group below half of the smallest step: zeros
constexpr float kGridFirst = 7.0f, kGridLast = 11.0f;
constexpr int kGrid = Int4Group::kGrid;
constexpr float kGridStep = (kGridLast - kGridFirst) / (kGrid - 1);
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, half to even

TRIVET_INLINE Eight eight(float x) { return Eight{x, x, x, x, x, x, x, x}; }
TRIVET_INLINE Eight load8(const float* x) { Eight v; __builtin_memcpy(&v, x, 32); return v; }
TRIVET_INLINE float rounded(float x) { return x + kToInteger - kToInteger; }
TRIVET_INLINE Eight rounded(const Eight& x) { return x + eight(kToInteger) - eight(kToInteger); }
TRIVET_INLINE Eight larger8(const Eight& a, const Eight& b) {
#ifdef __AVX2__
  return (Eight)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
TRIVET_INLINE Eight smaller8(const Eight& a, const Eight& b) {
#ifdef __AVX2__
  return (Eight)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
TRIVET_INLINE Eight codes_of(const Eight& x, const Eight& inverse, const Eight& low) {
  return smaller8(larger8(rounded(x * inverse), low), eight(7));
}
TRIVET_INLINE Eight pick(const Eight& of, const EightInts& index) {
#ifdef __AVX2__
  return (Eight)_mm256_permutevar8x32_ps((__m256)of, (__m256i)index);
#else
  Eight out;
  for (int i = 0; i < 8; ++i) out[i] = of[index[i]];
  return out;
#endif
}

// The largest of n numbers, and the largest magnitude; 0 where none is above. Floats of one sign order as integers.
TRIVET_INLINE void reach(const float* x, size_t n, float* most, float* most_magnitude) {
  EightInts top{}, magnitude{};
  for (size_t i = 0; i < n; i += 8) {
    EightInts bits;
    __builtin_memcpy(&bits, x + i, 32);
    const EightInts absolute = bits & 0x7fffffff;
    top = bits > top ? bits : top;
    magnitude = absolute > magnitude ? absolute : magnitude;
  }
  int32_t a = 0, b = 0;
  for (int i = 0; i < 8; ++i) {
    a = top[i] > a ? top[i] : a;
    b = magnitude[i] > b ? magnitude[i] : b;
  }
  __builtin_memcpy(most, &a, 4);
  __builtin_memcpy(most_magnitude, &b, 4);
}

// The sums of the lanes of eight vectors, each added as halves, pairs and one.
TRIVET_INLINE Eight sums_of(const Eight (&v)[8]) {
#ifdef __AVX2__
  __m128 quarter[4];
  for (int i = 0; i < 4; ++i) {
    const auto half = [](const Eight& x) {
      return _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    };
    quarter[i] = _mm_hadd_ps(half(v[2 * i]), half(v[2 * i + 1]));
  }
  return (Eight)_mm256_set_m128(_mm_hadd_ps(quarter[2], quarter[3]), _mm_hadd_ps(quarter[0], quarter[1]));
#else
  Eight out;
  for (int i = 0; i < 8; ++i) {
    float a[8];
    __builtin_memcpy(a, &v[i], 32);
    out[i] = ((a[0] + a[4]) + (a[1] + a[5])) + ((a[2] + a[6]) + (a[3] + a[7]));
  }
  return out;
#endif
}

// The squared errors of groups of n values, side by side at x, at each of the first T of eight steps for each: the sum of
// (x - step clamp(round(x / step), low, 7))^2. Other lanes are 0.
template <int T>
TRIVET_INLINE void square_errors(const float* x, size_t n, const Eight (&steps)[1], const Eight (&lows)[1],
                                 Eight (&errors)[1]) {
  const Eight inverses = 1.0f / steps[0];
  Eight step[T], inverse[T], low[T], total[8] = {};
  for (int t = 0; t < T; ++t) {
    step[t] = eight(steps[0][t]);
    inverse[t] = eight(inverses[t]);
    low[t] = eight(lows[0][t]);
  }
  for (size_t i = 0; i < n; i += 8) {
    const Eight v = load8(x + i);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Eight e = v - step[t] * codes_of(v, inverse[t], low[t]);
      total[t] = total[t] + e * e;
    }
  }
  errors[0] = sums_of(total);
}

#ifdef __AVX512DQ__
typedef float Sixteen __attribute__((vector_size(64)));

TRIVET_INLINE Sixteen beside(const Eight& a, const Eight& b) {
  return (Sixteen)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)a), (__m256)b, 1);
}
TRIVET_INLINE Sixteen codes_of(const Sixteen& x, const Sixteen& inverse, const Sixteen& low) {
  const Sixteen code = x * inverse + kToInteger - kToInteger;
  return (Sixteen)_mm512_min_ps(_mm512_max_ps((__m512)code, (__m512)low), _mm512_set1_ps(7));
}

// A group in each half of the registers.
template <int T>
TRIVET_INLINE void square_errors(const float* x, size_t n, const Eight (&steps)[2], const Eight (&lows)[2],
                                 Eight (&errors)[2]) {
  const Eight inverses[2] = {1.0f / steps[0], 1.0f / steps[1]};
  Sixteen step[T], inverse[T], low[T], total[8] = {};
  for (int t = 0; t < T; ++t) {
    step[t] = beside(eight(steps[0][t]), eight(steps[1][t]));
    inverse[t] = beside(eight(inverses[0][t]), eight(inverses[1][t]));
    low[t] = beside(eight(lows[0][t]), eight(lows[1][t]));
  }
  for (size_t i = 0; i < n; i += 8) {
    const Sixteen v = beside(load8(x + i), load8(x + n + i));
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Sixteen e = v - step[t] * codes_of(v, inverse[t], low[t]);
      total[t] = total[t] + e * e;
    }
  }
  Eight half[8];
  for (int h = 0; h < 2; ++h) {
    for (int t = 0; t < 8; ++t) {
      const __m512 both = (__m512)total[t];
      half[t] = (Eight)(h ? _mm512_extractf32x8_ps(both, 1) : _mm512_castps512_ps256(both));
    }
    errors[h] = sums_of(half);
  }
}
constexpr int kGroupsAtOnce = 2;
#else
constexpr int kGroupsAtOnce = 1;
#endif

// body(first group, how many as a constant: kGroupsAtOnce or 1) until all num groups are through.
template <class F>
TRIVET_INLINE void for_groups(size_t num, F&& body) {
  size_t g = 0;
  for (; g + kGroupsAtOnce <= num; g += kGroupsAtOnce) body(g, std::integral_constant<int, kGroupsAtOnce>());
  for (; g < num; ++g) body(g, std::integral_constant<int, 1>());
}

TRIVET_INLINE Eight nearest_multipliers(float step, const Eight& scale) {
  return smaller8(larger8(rounded(step / scale), eight(1)), eight(16));
}
TRIVET_INLINE Eight lowest_codes(const Eight& m) { return m == 16.0f ? eight(-7) : eight(-8); }  // |m q| <= 120

TRIVET_INLINE void measure_groups(float* x, size_t size, size_t num, Int4Group* groups) {
  Eight grid;
  for (int i = 0; i < kGrid; ++i) grid[i] = kGridFirst + float(i) * kGridStep;
  for_groups(num, [&](size_t g, auto count) {
    constexpr int kCount = decltype(count)::value;
    Eight steps[kCount], lows[kCount], errors[kCount];
    for (int at = 0; at < kCount; ++at) {
      Int4Group& it = groups[g + at];
      float* group = x + (g + at) * size;
      float highest;
      reach(group, size, &highest, &it.top);
      it.is_flipped = it.top >= kTinyGroup && highest == it.top;
      const EightInts sign = EightInts{} + (it.is_flipped ? INT32_MIN : 0);  // half of all groups: no branch
      for (size_t i = 0; i < size; i += 8) {
        const Eight v = (Eight)((EightInts)load8(group + i) ^ sign);
        __builtin_memcpy(group + i, &v, 32);
      }
      steps[at] = std::max(it.top, kTinyGroup) / grid;
      lows[at] = eight(-8);
    }
    square_errors<kGrid>(x + g * size, size, steps, lows, errors);
    for (int at = 0; at < kCount; ++at) {
      Int4Group& it = groups[g + at];
      __builtin_memcpy(it.error, &errors[at], 32);
      float least = errors[at][0], step = steps[at][0];
      for (int i = 1; i < kGrid; ++i) {
        step = errors[at][i] < least ? steps[at][i] : step;
        least = errors[at][i] < least ? errors[at][i] : least;
      }
      it.step = it.top < kTinyGroup ? 0 : step;
    }
  });
}

// The squared error of a group at step top / d, between and beyond the measured points.
TRIVET_INLINE Eight curve(const Int4Group& group, const Eight& d) {
  const Eight x = (d - kGridFirst) * (1 / kGridStep), coarser = kGridFirst / d, last = eight(kGrid - 1);
  const EightInts i = __builtin_convertvector(smaller8(larger8(x, Eight{}), last - 1.0f), EightInts);
  const Eight errors = load8(group.error), from = pick(errors, i), to = pick(errors, i + 1);
  const Eight between = from + (to - from) * (x - __builtin_convertvector(i, Eight));
  const Eight below = group.error[0] * coarser * coarser;  // grows as the step's square
  const Eight above = group.error[kGrid - 1] * (1.0f + 0.5f * (x - last));
  return x <= 0.0f ? below : x >= last ? above : between;
}

// The two candidates for the row's scale that the curves call cheapest.
TRIVET_INLINE void choose_scales(const Int4Group* groups, size_t num, float out[2]) {
  static_assert(kGrid == 8 && kCandidates <= 16);
  float largest = 0, scales[16], totals[16];
  for (size_t g = 0; g < num; ++g) largest = std::max(largest, groups[g].step);
  for (int c = 0; c < 16; ++c) scales[c] = largest / float(kFirstCandidate + c);
  for (int half = 0; half < 16; half += 8) {
    const Eight scale = load8(scales + half);
    Eight total{};
    for (size_t g = 0; g < num; ++g) {
      if (groups[g].step == 0) continue;
      total = total + curve(groups[g], groups[g].top / (nearest_multipliers(groups[g].step, scale) * scale));
    }
    __builtin_memcpy(totals + half, &total, 32);
  }
  float cost[2] = {INFINITY, INFINITY};
  for (int c = 0; c < kCandidates; ++c) {
    if (totals[c] < cost[0]) {
      cost[1] = cost[0], out[1] = out[0];
      cost[0] = totals[c], out[0] = scales[c];
    } else if (totals[c] < cost[1]) {
      cost[1] = totals[c], out[1] = scales[c];
    }
  }
}

// The best multiplier of each group for both scales, and the row's squared error with them.
TRIVET_INLINE void choose_multipliers(const float* x, size_t size, size_t num, const float scales[2], Int4Group* groups,
                                      float errors[2]) {
  const float a = scales[0], b = scales[1];
  const Eight scale{a, a, a, b, b, b, b, b}, neighbours{-1, 0, 1, -1, 0, 1, 1, 1};
  errors[0] = errors[1] = 0;
  for_groups(num, [&](size_t g, auto count) {
    constexpr int kCount = decltype(count)::value;
    Eight multipliers[kCount], steps[kCount], lows[kCount], found[kCount];
    for (int at = 0; at < kCount; ++at) {  // at an end one multiplier stands twice
      multipliers[at] = smaller8(larger8(nearest_multipliers(groups[g + at].step, scale) + neighbours, eight(1)), eight(16));
      steps[at] = multipliers[at] * scale;
      lows[at] = lowest_codes(multipliers[at]);
    }
    square_errors<6>(x + g * size, size, steps, lows, found);
    for (int at = 0; at < kCount; ++at) {
      Int4Group& it = groups[g + at];
      it.tried[0] = it.tried[1] = 1;
      if (it.step == 0) continue;
      for (int i = 0; i < 2; ++i) {
        float least = found[at][3 * i], best = multipliers[at][3 * i];
        for (int t = 3 * i + 1; t < 3 * i + 3; ++t) {
          best = found[at][t] < least ? multipliers[at][t] : best;
          least = found[at][t] < least ? found[at][t] : least;
        }
        it.tried[i] = uint8_t(best);
        errors[i] += least;
      }
    }
  });
}

float quantize_int4(float* x, size_t k, size_t size, int8_t* codes, int8_t* multipliers, Int4Group* groups) {
  const size_t num = k / size;
  std::memset(multipliers, 1, num);
  float highest, top;
  reach(x, k, &highest, &top);
  if (top < kTinyRow) return 1.0f;
  const float unit = std::ldexp(1.0f, std::ilogb(top));  // exact, so that squares neither vanish nor overflow
  for (size_t i = 0; i < k; ++i) x[i] *= 1 / unit;
  measure_groups(x, size, num, groups);
  float scales[2] = {0, 0}, errors[2];
  choose_scales(groups, num, scales);
  choose_multipliers(x, size, num, scales, groups, errors);
  const int chosen = errors[1] < errors[0];
  double xw = 0, ww = 0;  // least squares: scale = sum(x w8) / sum(w8^2)
  for (size_t g = 0; g < num; ++g) {
    const int m = groups[g].tried[chosen];
    const Eight inverse = 1.0f / (eight(float(m)) * scales[chosen]), low = lowest_codes(eight(float(m)));
    float xq = 0, qq = 0;
    Eight squares{};
    for (size_t i = g * size; i < (g + 1) * size; i += 8) {
      const Eight v = load8(x + i), q = codes_of(v, inverse, low), product = v * q;
      const EightBytes bytes = __builtin_convertvector(__builtin_convertvector(q, EightInts), EightBytes);
      __builtin_memcpy(codes + i, &bytes, 8);
      squares = squares + q * q;
      float a[8];
      __builtin_memcpy(a, &product, 32);
      for (const float p : a) xq += p;
    }
    for (int i = 0; i < 8; ++i) qq += squares[i];  // whole numbers: exact in any order
    xw += double(m) * xq;
    ww += double(m * m) * qq;
    multipliers[g] = int8_t(groups[g].is_flipped ? -m : m);
  }
  return float(xw / ww) * unit;
}

}  // namespace
}  // namespace trivet
