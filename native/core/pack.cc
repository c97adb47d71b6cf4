// Packing of linear weights into panels of 16 output rows (docs/design/packed-layout.md).
//
// A panel is packed by one thread from start to end and depends on nothing else, so the bytes are the same for any
// thread count. Loops are plain C++ in lanes of fixed width, written so that the compiler vectorizes them for any x86-64.
#include "trivet/pack.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "trivet/threads.h"

namespace trivet {
namespace {

constexpr size_t kPanel = 16;        // output rows of a panel
constexpr float kTiny = 1e-30f;      // a row whose largest magnitude is below this is packed as zeros
constexpr float kTinyGroup = 1e-4f;  // the same for a group, of a row scaled to 1..2: below half of the smallest step
constexpr float kMagic = 12582912;   // 1.5 * 2^23: adding it rounds to an integer, half to even, in the low bits
constexpr int32_t kMagicBits = 0x4B400000;

struct Row {
  const char* data;  // null: zeros
  SourceType type;
};

size_t source_bytes(SourceType type) { return type == SourceType::kF32 ? 4 : 2; }

// The source rows one after another, followed by null rows up to a whole panel.
std::vector<Row> list_rows(const RowSource* sources, size_t num_sources, size_t k) {
  std::vector<Row> rows;
  for (size_t s = 0; s < num_sources; ++s)
    for (size_t r = 0; r < sources[s].num_rows; ++r) {
      const char* base = static_cast<const char*>(sources[s].data);
      rows.push_back({base ? base + r * k * source_bytes(sources[s].type) : nullptr, sources[s].type});
    }
  rows.resize((rows.size() + kPanel - 1) / kPanel * kPanel, Row{nullptr, SourceType::kF32});
  return rows;
}

template <class T>
T load(const char* p, size_t i) {  // sources may be unaligned in their file
  T value;
  std::memcpy(&value, p + i * sizeof(T), sizeof(T));
  return value;
}

// out[0..k) = the row as float32; false if a value is NaN or infinite.
bool load_row(const Row& row, size_t k, float* out) {
  if (!row.data) {
    std::fill(out, out + k, 0.0f);
    return true;
  }
  if (row.type == SourceType::kF32) {
    int32_t top = 0;
    for (size_t i = 0; i < k; ++i) {
      const uint32_t bits = load<uint32_t>(row.data, i);
      top = std::max(top, int32_t(bits & 0x7FFFFFFF));
      out[i] = std::bit_cast<float>(bits);
    }
    return top < 0x7F800000;
  }
  int16_t top = 0;
  if (row.type == SourceType::kBF16) {
    for (size_t i = 0; i < k; ++i) {
      const uint16_t bits = load<uint16_t>(row.data, i);
      top = std::max(top, int16_t(bits & 0x7FFF));
      out[i] = std::bit_cast<float>(uint32_t(bits) << 16);
    }
    return top < 0x7F80;
  }
  for (size_t i = 0; i < k; ++i) {  // float16: exponent and fraction moved in place, then rebiased by 2^112
    const uint32_t bits = load<uint16_t>(row.data, i);
    top = std::max(top, int16_t(bits & 0x7FFF));
    const float magnitude = std::bit_cast<float>((bits & 0x7FFF) << 13) * 0x1p112f;
    out[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | (bits & 0x8000) << 16);
  }
  return top < 0x7C00;
}

float abs_max(const float* x, size_t n) {
  int32_t top = 0;  // magnitudes of floats order as integers
  for (size_t i = 0; i < n; ++i) top = std::max(top, std::bit_cast<int32_t>(x[i]) & 0x7FFFFFFF);
  return std::bit_cast<float>(top);
}

// out[w][c] = rows[c][w] for 32-bit words: the 16 rows of a panel, interleaved as the tiles want them.
void interleave(const char* rows, size_t num_words, size_t row_bytes, char* out) {
  for (size_t w = 0; w < num_words; ++w)
    for (size_t c = 0; c < kPanel; ++c) std::memcpy(out + (w * kPanel + c) * 4, rows + c * row_bytes + w * 4, 4);
}

uint16_t round_to_bf16(float x) {  // nearest, half to even
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

bool bf16_row(const Row& row, size_t k, float* scratch, uint16_t* out) {
  int16_t top = 0;
  if (row.data && row.type == SourceType::kBF16) {
    std::memcpy(out, row.data, 2 * k);
    for (size_t i = 0; i < k; ++i) top = std::max(top, int16_t(out[i] & 0x7FFF));
    return top < 0x7F80;
  }
  if (!load_row(row, k, scratch)) return false;
  for (size_t i = 0; i < k; ++i) {
    out[i] = round_to_bf16(scratch[i]);
    top = std::max(top, int16_t(out[i] & 0x7FFF));
  }
  return top < 0x7F80;  // a float32 above the largest bf16 would round to infinity
}

int32_t sum(const int8_t* x, size_t n) {
  int32_t total = 0;
  for (size_t i = 0; i < n; ++i) total += x[i];
  return total;
}

// out[i] = round(x[i] * 127 / absmax); returns the scale.
float i8_row(const float* x, size_t k, int8_t* out) {
  const float top = abs_max(x, k);
  if (top < kTiny) return 1.0f;  // out is zero already
  const float inverse = 127.0f / top;
  for (size_t i = 0; i < k; ++i)
    out[i] = int8_t(std::bit_cast<int32_t>(x[i] * inverse + kMagic) - kMagicBits);
  return top / 127.0f;
}

// ---- int4: w ~ scale * m * q, q in -8..7, m in 1..16 a group, |m q| <= 120, one scale a row
//
// 1. For each group the squared error is measured on a grid of steps absmax / d, d in kGridFirst .. kGridLast (above
//    7.5 the largest values are clipped); the best is the group's ideal step.
// 2. Candidates for the row's scale are the largest ideal step over 8, 9 .. 17. What each would cost with the nearest
//    multipliers is read off the measured curves. The two cheapest are tried in full.
// 3. In full: each group tries its nearest multiplier and both neighbours; then the row's scale is refitted to the
//    codes by least squares.
// On normal, Student-t and column-scaled rows: 1.05-1.07x the squared error of float16 group scales at group 32 (which
// cost 0.5 bit a weight where multipliers cost 0.25), 1.03x at 64, 1.01-1.02x at 128. See tests/formats/test_pack.py.

constexpr int kGrid = 8, kCandidates = 10, kFirstCandidate = 8;
constexpr float kGridFirst = 6.5f, kGridLast = 11.5f, kGridStep = (kGridLast - kGridFirst) / (kGrid - 1);

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

struct Group {
  float top;           // largest magnitude
  float step;          // ideal step; 0 for a group of zeros
  float error[kGrid];  // at steps top / d
};

// The squared error at step top / d, between and beyond the measured points.
float curve(const Group& group, float d) {
  const float x = (d - kGridFirst) * (1 / kGridStep);
  if (x <= 0) return group.error[0] * (kGridFirst / d) * (kGridFirst / d);  // coarser: grows as the step's square
  if (x >= kGrid - 1) return group.error[kGrid - 1] * (1 + 0.5f * (x - (kGrid - 1)));
  const int i = int(x);
  return group.error[i] + (group.error[i + 1] - group.error[i]) * (x - float(i));
}

int nearest_multiplier(float step, float scale) { return std::clamp(int(rounded(step / scale)), 1, 16); }
float lowest_code(int m) { return m == 16 ? -7.0f : -8.0f; }  // |m q| <= 120

struct I4Scratch {
  std::vector<Group> groups;
  std::vector<uint8_t> multipliers[2];
};

void measure_groups(const float* x, size_t group, std::vector<Group>& groups) {
  for (size_t g = 0; g < groups.size(); ++g) {
    Group& it = groups[g];
    it.top = abs_max(x + g * group, group);
    it.step = 0;
    if (it.top < kTinyGroup) continue;
    int best = 0;
    for (int i = 0; i < kGrid; ++i) {
      it.error[i] = group_error(x + g * group, group, it.top / (kGridFirst + float(i) * kGridStep), -8);
      if (it.error[i] < it.error[best]) best = i;
    }
    it.step = it.top / (kGridFirst + float(best) * kGridStep);
  }
}

// The two candidates for the row's scale that the curves call cheapest.
void choose_scales(const std::vector<Group>& groups, float out[2]) {
  float largest = 0, cost[2] = {INFINITY, INFINITY};
  for (const Group& it : groups) largest = std::max(largest, it.step);
  for (int c = kFirstCandidate; c < kFirstCandidate + kCandidates; ++c) {
    const float scale = largest / float(c);
    float total = 0;
    for (const Group& it : groups)
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
float choose_multipliers(const float* x, size_t group, const std::vector<Group>& groups, float scale, uint8_t* out) {
  float total = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    out[g] = 1;
    if (groups[g].step == 0) continue;
    const int nearest = nearest_multiplier(groups[g].step, scale);
    float best = INFINITY;
    for (int m = std::max(1, nearest - 1); m <= std::min(16, nearest + 1); ++m) {
      const float error = group_error(x + g * group, group, float(m) * scale, lowest_code(m));
      if (error < best) best = error, out[g] = uint8_t(m);
    }
    total += best;
  }
  return total;
}

// Fills codes q and multipliers (one a group) of the row; returns the scale. x is scaled in place.
float i4_row(float* x, size_t k, size_t group, I4Scratch& scratch, int8_t* codes, uint8_t* multipliers) {
  const size_t num_groups = k / group;
  std::fill(multipliers, multipliers + num_groups, uint8_t(1));
  const float top = abs_max(x, k);
  if (top < kTiny) return 1.0f;
  const float unit = std::ldexp(1.0f, std::ilogb(top));  // exact, so that squares neither vanish nor overflow
  for (size_t i = 0; i < k; ++i) x[i] *= 1 / unit;
  measure_groups(x, group, scratch.groups);
  float scales[2] = {0, 0};
  choose_scales(scratch.groups, scales);
  float errors[2];
  for (int i = 0; i < 2; ++i) {
    scratch.multipliers[i].resize(num_groups);
    errors[i] = choose_multipliers(x, group, scratch.groups, scales[i], scratch.multipliers[i].data());
  }
  const int chosen = errors[1] < errors[0];
  std::copy_n(scratch.multipliers[chosen].begin(), num_groups, multipliers);
  double xw = 0, ww = 0;  // least squares: scale = sum(x w8) / sum(w8^2)
  for (size_t g = 0; g < num_groups; ++g) {
    const float m = multipliers[g], inverse = 1.0f / (m * scales[chosen]), low = lowest_code(int(m));
    float xq = 0, qq = 0;
    for (size_t i = g * group; i < (g + 1) * group; ++i) {
      const float q = std::clamp(rounded(x[i] * inverse), low, 7.0f);
      codes[i] = int8_t(q);
      xq += x[i] * q;
      qq += q * q;
    }
    xw += double(m) * xq;
    ww += double(m * m) * qq;
  }
  return float(xw / ww) * unit;
}

// Runs panel(nb, rows of the panel, worker) for each panel on the pool; a worker is made once a thread. Returns false
// as soon as a panel does.
template <class Worker>
bool for_each_panel(const RowSource* sources, size_t num_sources, size_t k, int num_threads, const Worker& prototype) {
  const std::vector<Row> rows = list_rows(sources, num_sources, k);
  const size_t num_panels = rows.size() / kPanel;
  std::atomic<size_t> next{0};
  std::atomic<bool> finite{true};
  parallel(int(std::clamp<size_t>(num_panels, 1, size_t(std::max(1, num_threads)))), [&](int, int) {
    Worker worker = prototype;
    for (size_t nb; finite.load(std::memory_order_relaxed) && (nb = next.fetch_add(1)) < num_panels;)
      if (!worker.panel(nb, &rows[nb * kPanel])) finite.store(false);
  });
  return finite.load();
}

struct Bf16Worker {
  size_t k, kp;
  PackedParts out;
  std::vector<float> x{};
  std::vector<uint16_t> codes{};

  bool panel(size_t nb, const Row* rows) {
    x.resize(kp);
    codes.assign(kPanel * kp, 0);
    for (size_t c = 0; c < kPanel; ++c)
      if (!bf16_row(rows[c], k, x.data(), &codes[c * kp])) return false;
    interleave(reinterpret_cast<const char*>(codes.data()), kp / 2, kp * 2,
               static_cast<char*>(out.codes) + nb * kPanel * kp * 2);
    return true;
  }
};

struct I8Worker {
  size_t k, kp;
  PackedParts out;
  std::vector<float> x{};
  std::vector<int8_t> codes{};

  bool panel(size_t nb, const Row* rows) {
    x.resize(kp);
    codes.assign(kPanel * kp, 0);
    for (size_t c = 0; c < kPanel; ++c) {
      if (!load_row(rows[c], k, x.data())) return false;
      out.scales[nb * kPanel + c] = i8_row(x.data(), k, &codes[c * kp]);
      out.colsum[nb * kPanel + c] = sum(&codes[c * kp], kp);
    }
    interleave(reinterpret_cast<const char*>(codes.data()), kp / 4, kp,
               static_cast<char*>(out.codes) + nb * kPanel * kp);
    return true;
  }
};

struct I4Worker {
  size_t k, kp, group;
  PackedParts out;
  std::vector<float> x{};
  std::vector<int8_t> codes{};
  std::vector<uint8_t> bytes{}, multipliers{};
  I4Scratch scratch{};

  bool panel(size_t nb, const Row* rows) {
    x.resize(kp);
    codes.resize(kp);
    bytes.resize(kPanel * kp / 2);
    multipliers.resize(k / group);
    scratch.groups.resize(k / group);
    for (size_t c = 0; c < kPanel; ++c) {
      if (!load_row(rows[c], k, x.data())) return false;
      std::fill(codes.begin(), codes.end(), int8_t(0));
      out.scales[nb * kPanel + c] = i4_row(x.data(), k, group, scratch, codes.data(), multipliers.data());
      int32_t colsum = 0;
      uint8_t* m = out.multipliers + nb * (kp / 32) * kPanel + c;
      for (size_t kb = 0; kb < kp / 32; ++kb) {
        m[kb * kPanel] = kb * 32 < k ? multipliers[kb * 32 / group] : uint8_t(1);
        colsum += m[kb * kPanel] * sum(&codes[kb * 32], 32);
      }
      out.colsum[nb * kPanel + c] = colsum;
      for (size_t i = 0; i < kp / 2; ++i) {  // 32 low nibbles, then the 32 high ones of each 64 values
        const size_t low = i / 32 * 64 + i % 32;
        bytes[c * kp / 2 + i] = uint8_t((codes[low] + 8) | (codes[low + 32] + 8) << 4);
      }
    }
    interleave(reinterpret_cast<const char*>(bytes.data()), kp / 8, kp / 2,
               static_cast<char*>(out.codes) + nb * kPanel * kp / 2);
    return true;
  }
};

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

bool pack_bf16(const RowSource* sources, size_t num_sources, size_t k, const PackedParts& out, int num_threads) {
  return for_each_panel(sources, num_sources, k, num_threads, Bf16Worker{k, round_up(k, 32), out});
}

bool pack_i8(const RowSource* sources, size_t num_sources, size_t k, const PackedParts& out, int num_threads) {
  return for_each_panel(sources, num_sources, k, num_threads, I8Worker{k, round_up(k, 64), out});
}

bool pack_i4(const RowSource* sources, size_t num_sources, size_t k, size_t group, const PackedParts& out,
             int num_threads) {
  return for_each_panel(sources, num_sources, k, num_threads, I4Worker{k, round_up(k, 64), group, out});
}

}  // namespace trivet
