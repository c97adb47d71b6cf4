// Attention with keys and values in int8, in integers: nothing is widened, and no order of sums matters, so all tiers agree.
//
//   q16[r] = q[r] in 16 bits, round-half-even(q (32639 / absmax)); s[r, j] = (sum_p q16[r, p] k8[j, p]) (absmax / 32639) times
//   the scale of the key
//   x[j] = e[r, j] times the scale of the value; w16 = round-half-even(x (32639 / max_j x))
//   o[r] = o[r] a + (sum_j w16[r, j] v8[j]) (max_j x / 32639)
// A number of 16 bits is 256 times a high int8 plus a low one, both products of one code each; 32639 is the largest that is.
// The cache holds codes moved up by 128, the unsigned operand of vpdpbusd: what that adds is 128 times the sum of a row.
#pragma once

#include "kernels/common/kv_runs.h"
#include "kernels/common/vec.h"

namespace trivet {
namespace {

// Rows of numbers of 16 bits, `length` (a multiple of 64) to a row: words, or all high halves and then all low ones.
struct Operand {
  uint8_t* at;
  size_t length;
  size_t row_bytes() const { return 2 * length; }
  const int16_t* words(size_t r) const { return reinterpret_cast<const int16_t*>(at + r * row_bytes()); }
  const uint8_t* halves(size_t r) const { return at + r * row_bytes(); }

  // Sixteen numbers from k on.
  template <bool kWords>
  TRIVET_INLINE void put(uint8_t* row, size_t length, size_t k, const vi& x) {
    if (kWords) {
      const vh words = low_halves((vu)x);
      __builtin_memcpy(row + 2 * k, &words, 32);
    } else {
      const vi high = (x + 128) >> 8;
      const vb h = low_bytes(high), l = low_bytes(x - (high << 8));
      __builtin_memcpy(row + k, &h, 16);
      __builtin_memcpy(row + length + k, &l, 16);
    }
  }
  TRIVET_INLINE void clear(uint8_t* row, size_t length, size_t begin, size_t end, bool words) {
    if (words) return void(std::memset(row + 2 * begin, 0, 2 * (end - begin)));
    std::memset(row + begin, 0, end - begin);
    std::memset(row + length + begin, 0, end - begin);
  }
};
constexpr float kMost16 = 32639.0f;

TRIVET_INLINE int32_t total(const vi& x) {
  alignas(64) int32_t a[16];
  __builtin_memcpy(a, &x, 64);
  uint32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += uint32_t(a[i]);
  return int32_t(sum);
}

// Products: struct with
//   kByLines, kWords  whether it asks ahead line by line; whether it takes words or halves
//   scores(size_t rows, const Operand& q, size_t pp, const uint8_t* keys, int32_t* s, const RunsAhead& ahead, size_t i)
//     s[r * kKeyStep + c] = sum over p of q[r, p] keys[p, c] modulo 2^32 for the i-th run, u8 [2][Pp/4][16][4]
//   values(size_t rows, const Operand& w, const uint8_t* const* vals, size_t runs, size_t pp, int32_t* o, const RunsAhead& ahead, uint8_t* memory)
//     o[r * pp + p] = sum over the keys j of all runs of w[r, j] vals[j, p] modulo 2^32, vals[i] is u8 [8][Pp][4];
//     memory: 64 Pp bytes to use
// Rows of an operand past what is said are readable up to the next multiple of 16, and zero past Pp (or 32 runs) up to
// the next multiple of 64.
template <class Products>
class Int8Kv {
 public:
  static constexpr bool kByLines = Products::kByLines;
  Int8Kv(const AttendItem& it, uint8_t* scratch)
      : it_(it),
        s_(reinterpret_cast<float*>(scratch)),
        w_{scratch + kQueryTile * kKeyStep * 4, kKeyStep},
        q_{scratch + kQueryTile * kKeyStep * 6, (it.kv.pp + 63) / 64 * 64},
        o_(reinterpret_cast<int32_t*>(q_.at + kQueryTile * q_.row_bytes())),
        memory_(reinterpret_cast<uint8_t*>(o_ + kQueryTile * it.kv.pp)) {
    for (size_t r = 0; r < it.num_rows; ++r) take_query(r);
  }
  float* row(size_t r) { return s_ + r * kKeyStep; }
  void scores(size_t i, const Run& run, const RunsAhead& ahead) {
    Products::scores(it_.num_rows, q_, it_.kv.pp, run.keys, reinterpret_cast<int32_t*>(s_) + 32 * i, ahead, i);
    std::memcpy(key_scale_ + 32 * i, run.key_scales, 128);
    std::memcpy(value_scale_ + 32 * i, run.value_scales, 128);
  }
  vf score(size_t r, size_t j) const {
    const vi dot = load(reinterpret_cast<const int32_t*>(s_) + r * kKeyStep + j) - moved_[r];
    return (to_float(dot) * scale_[r]) * load(key_scale_ + j);
  }
  void weigh(size_t r, size_t j, const vf& e) { store(s_ + r * kKeyStep + j, e * load(value_scale_ + j)); }
  void skip(size_t r, size_t keys) {
    Operand::clear(w_.at + r * w_.row_bytes(), w_.length, 0, (keys + 63) / 64 * 64, Products::kWords);
    is_seen_[r] = false;
  }
  void weighed(size_t r, size_t seen, size_t keys, float a, float*) {
    const float* x = s_ + r * kKeyStep;
    vf top = load(x);
    for (size_t j = 16; j < seen; j += 16) top = max(top, load(x + j));
    const float most = max_lane(top), inverse = most > 1e-30f ? kMost16 / most : 0.0f;
    uint8_t* to = w_.at + r * w_.row_bytes();
    vi sum{};
    for (size_t j = 0; j < seen; j += 16) {
      const vi w = to_int(round_even(load(x + j) * inverse));
      sum = sum + w;
      Operand::put<Products::kWords>(to, w_.length, j, w);
    }
    Operand::clear(to, w_.length, seen, (keys + 63) / 64 * 64, Products::kWords);
    is_seen_[r] = true;
    decay_[r] = a;
    weight_scale_[r] = most / kMost16;
    weight_moved_[r] = int32_t(uint32_t(total(sum)) << 7);
  }
  void add_values(const Run* runs, size_t num, float* out, const RunsAhead& ahead) {
    const size_t pp = it_.kv.pp;
    const uint8_t* values[kStepRuns];
    for (size_t i = 0; i < num; ++i) values[i] = runs[i].values;
    Products::values(it_.num_rows, w_, values, num, pp, o_, ahead, memory_);
    for (size_t r = 0; r < it_.num_rows; ++r) {
      if (!is_seen_[r]) continue;
      for (size_t p = 0; p < pp; p += 16) {
        const vf dot = to_float(load(o_ + r * pp + p) - weight_moved_[r]);
        store(out + r * pp + p, load(out + r * pp + p) * decay_[r] + dot * weight_scale_[r]);
      }
    }
  }

 private:
  void take_query(size_t r) {
    const size_t pp = it_.kv.pp;
    const uint16_t* q = it_.q + r * pp;
    vi top{};  // as in `quantize`: a NaN is above all, and ends up in the scale
    for (size_t p = 0; p < pp; p += 16) top = max(top, as_int(abs(load(q + p))));
    const float most = as_float(vi{} + max_lane(top))[0], inverse = most > 1e-30f ? kMost16 / most : 0.0f;
    uint8_t* to = q_.at + r * q_.row_bytes();
    vi sum{};
    for (size_t p = 0; p < pp; p += 16) {
      const vi x = to_int(round_even(load(q + p) * inverse));
      sum = sum + x;
      Operand::put<Products::kWords>(to, q_.length, p, x);
    }
    Operand::clear(to, q_.length, pp, q_.length, Products::kWords);
    scale_[r] = most / kMost16;
    moved_[r] = int32_t(uint32_t(total(sum)) << 7);
  }

  const AttendItem& it_;
  float* s_;  // [kQueryTile][kKeyStep]: products, then scores, then weights
  Operand w_, q_;
  int32_t* o_;  // [kQueryTile][Pp]
  uint8_t* memory_;
  float key_scale_[kKeyStep], value_scale_[kKeyStep];
  float scale_[kQueryTile], decay_[kQueryTile], weight_scale_[kQueryTile];
  int32_t moved_[kQueryTile], weight_moved_[kQueryTile];
  bool is_seen_[kQueryTile];
};

}  // namespace
}  // namespace trivet
