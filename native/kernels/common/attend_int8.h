// Attention with keys and values in int8, in integers: no order of sums matters, so all tiers agree.
//
//   q8[r] = round-half-even(q[r] (127 / absmax)); score(r, j) = (sum_p q8[r, p] k8[j, p]) times the scale of the key, in units of
//   absmax / 127
//   x[j] = e[r, j] times the scale of the value; w16 = round-half-even(x (32639 / max_j x))
//   o[r] = o[r] a + (sum_j w16[r, j] v8[j]) (max_j x / 32639)
// A number of 16 bits is 256 times a high int8 plus a low one, both products of one code each; 32639 is the largest that is.
// The cache holds codes moved up by 128, the unsigned operand of vpdpbusd: what that adds is 128 times the sum of a row.
// Scales are positive: write_kv makes no others.
#pragma once

#include "kernels/common/kv_runs.h"
#include "kernels/common/vec.h"

namespace trivet {
namespace {

constexpr int32_t kMost8 = 127, kMost16 = 32639;
static_assert(int64_t(kMost16) * 255 * kKeyStep < int64_t(1) << 31, "a sum of products with weights fits int32");
static_assert(kMost8 * 127 * kMaxHeadDim < 1 << 22, "a score can be made float by an addition");

// A row of numbers as the products of a tier take them, `length` (a multiple of 64) to a row:
//   Words  int16, for tiers that multiply these
//   Bytes  int8
//   Halves all high halves of the row's 16 bits, then all low ones
// put(r, k, x) takes numbers k..k + 15 of row r; put(r, k, x[4]) takes k..k + 63 in the low 16 bits of floats, each kMoved more
// than it is.
struct Words {
  static constexpr int32_t kMoved = 0;
  uint8_t* at;
  size_t length;
  size_t row_bytes() const { return 2 * length; }
  const int16_t* words(size_t r) const { return reinterpret_cast<const int16_t*>(at + r * row_bytes()); }
  void put(size_t r, size_t k, const vi& x) const {
    const vh words = low_halves((vu)x);
    __builtin_memcpy(at + r * row_bytes() + 2 * k, &words, 32);
  }
  void put(size_t r, size_t k, const vf (&x)[4]) const {
    for (size_t i = 0; i < 4; ++i) put(r, k + 16 * i, as_int(x[i]));
  }
  void clear(size_t r, size_t begin, size_t end) const { std::memset(at + r * row_bytes() + 2 * begin, 0, 2 * (end - begin)); }
};

struct Bytes {
  static constexpr size_t kParts = 1;
  static constexpr int32_t kMoved = 0;
  uint8_t* at;
  size_t length;
  size_t row_bytes() const { return length; }
  const uint8_t* bytes(size_t r) const { return at + r * length; }
  void put(size_t r, size_t k, const vi& x) const {
    const vb low = low_bytes(x);
    __builtin_memcpy(at + r * length + k, &low, 16);
  }
  void put(size_t r, size_t k, const vf (&x)[4]) const {
    for (size_t i = 0; i < 4; ++i) put(r, k + 16 * i, as_int(x[i]));
  }
  void clear(size_t r, size_t begin, size_t end) const { std::memset(at + r * length + begin, 0, end - begin); }
};

struct Halves {
  static constexpr size_t kParts = 2;
  static constexpr int32_t kMoved = 128;  // then the high half is the second byte, and the low half has its first bit turned
  uint8_t* at;
  size_t length;
  size_t row_bytes() const { return 2 * length; }
  const uint8_t* bytes(size_t r) const { return at + r * row_bytes(); }
  void put(size_t r, size_t k, const vi& x) const {
    uint8_t* row = at + r * row_bytes() + k;
    const vi moved = x + kMoved;
    const vb h = low_bytes(moved >> 8), l = low_bytes(x);
    __builtin_memcpy(row, &h, 16);
    __builtin_memcpy(row + length, &l, 16);
  }
  void put(size_t r, size_t k, const vf (&x)[4]) const {
#ifdef __AVX512BW__
    const auto in = [&](size_t i) { return (__m512i)x[i]; };
    uint8_t* row = at + r * row_bytes() + k;
#ifdef __AVX512VBMI__  // low bytes of 32 numbers, then their high bytes
    alignas(64) static constexpr uint8_t kOrder[64] = {
        0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 116, 120, 124,
        1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57, 61, 65, 69, 73, 77, 81, 85, 89, 93, 97, 101, 105, 109, 113, 117, 121, 125};
    const __m512i order = _mm512_load_si512(kOrder);
    const __m512i first = _mm512_permutex2var_epi8(in(0), order, in(1)), second = _mm512_permutex2var_epi8(in(2), order, in(3));
    const __m512i low = _mm512_shuffle_i64x2(first, second, 0x44), high = _mm512_shuffle_i64x2(first, second, 0xee);
#else
    const __m512i low16 = _mm512_set1_epi32(0xffff), low8 = _mm512_set1_epi16(0xff);
    const auto words = [&](size_t i) { return _mm512_and_si512(in(i), low16); };
    const __m512i a = _mm512_packus_epi32(words(0), words(1)), b = _mm512_packus_epi32(words(2), words(3));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // packed lane by lane
    const auto ordered = [&](__m512i a, __m512i b) { return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b)); };
    const __m512i low = ordered(_mm512_and_si512(a, low8), _mm512_and_si512(b, low8));
    const __m512i high = ordered(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
#endif
    _mm512_storeu_si512(row, high);
    _mm512_storeu_si512(row + length, _mm512_xor_si512(low, _mm512_set1_epi8(-128)));
#else
    for (size_t i = 0; i < 4; ++i) put(r, k + 16 * i, ((as_int(x[i]) << 16) >> 16) - kMoved);
#endif
  }
  void clear(size_t r, size_t begin, size_t end) const {
    uint8_t* row = at + r * row_bytes();
    std::memset(row + begin, 0, end - begin);
    std::memset(row + length + begin, 0, end - begin);
  }
};

// A row of n numbers from(k), the largest of magnitude `most`, as integers of up to kMost.
struct Numbers {
  float scale;
  int32_t moved;  // 128 times their sum
};
template <int32_t kMost, class To, class From>
TRIVET_INLINE Numbers put_numbers(const To& to, size_t r, size_t n, float most, From&& from) {
  const bool is_zero = most <= 1e-30f;  // not so of a NaN, which ends up in the scale
  const float inverse = most > 1e-30f ? float(kMost) / most : 0.0f;
  constexpr int32_t kZero = 0x4b400000 + To::kMoved;  // the bits of 1.5 * 2^23 + kMoved: rounds, half to even, in the low bits
  const auto moved_up = [&](size_t k) { return from(k) * inverse + (12582912.0f + float(To::kMoved)); };
  vu total{};
  size_t k = 0;
  for (; k + 64 <= n; k += 64) {
    vf x[4];
    for (size_t i = 0; i < 4; ++i) {
      x[i] = moved_up(k + 16 * i);
      total = total + (vu)as_int(x[i]);
    }
    to.put(r, k, x);
  }
  for (; k < n; k += 16) {
    const vi x = as_int(moved_up(k));
    total = total + (vu)x;
    to.put(r, k, (((x << 16) >> 16) - To::kMoved));
  }
  const uint32_t all = sum(total) - uint32_t(n) * uint32_t(kZero);  // modulo 2^32: it is that of numbers without NaN
  return {is_zero ? 1.0f : most / float(kMost), int32_t(all << 7)};
}
template <class To>
TRIVET_INLINE Numbers put_query(const To& to, size_t r, const uint16_t* q, size_t pp) {
  vi top{};  // as in `quantize`: a NaN is above all, and ends up in the scale
  for (size_t p = 0; p < pp; p += 16) top = max(top, as_int(abs(load(q + p))));
  const float most = as_float(vi{} + max_lane(top))[0];
  const Numbers numbers = put_numbers<kMost8>(to, r, pp, most, [&](size_t p) { return load(q + p); });
  if (pp < to.length) to.clear(r, pp, to.length);
  return numbers;
}
template <class To>
TRIVET_INLINE Numbers put_weights_of_row(const To& to, size_t r, const float* x, size_t seen, size_t keys) {
  vi top = as_int(load(x));  // they are not negative, so in the order of their bits
  for (size_t j = 16; j < seen; j += 16) top = max(top, as_int(load(x + j)));
  const float most = as_float(vi{} + max_lane(top))[0];
  const Numbers numbers = put_numbers<kMost16>(to, r, seen, most, [&](size_t j) { return load(x + j); });
  const size_t end = (keys + 63) / 64 * 64;
  if (seen < end) to.clear(r, seen, end);
  return numbers;
}
// dot: sum of products with codes moved up.
TRIVET_INLINE vf score_of(const vi& dot, const Numbers& query, const float* key_scales) {
  const vu bits = (vu)dot + (0x4b400000u - uint32_t(query.moved));  // those of 1.5 * 2^23 and the sum
  return (as_float((vi)bits) - 12582912.0f) * load(key_scales);
}
TRIVET_INLINE void add_weighted(const vi& dot, const Numbers& weights, float decay, float* out) {
  store(out, fma(to_float(dot - weights.moved), splat(weights.scale), load(out) * decay));
}

// Where things stand in the scratch of a thread; every part is a multiple of 64 bytes.
struct Int8Scratch {
  size_t weights, queries, sums, memory, end;
  constexpr explicit Int8Scratch(size_t pp)
      : weights(4 * kQueryTile * kKeyStep),
        queries(weights + 2 * kQueryTile * kKeyStep),
        sums(queries + 2 * kQueryTile * ((pp + 63) / 64 * 64)),
        memory(sums + 4 * kQueryTile * pp),
        end(memory + kKeyStep * pp) {}
};
static_assert(Int8Scratch(32).end <= attend_scratch_bytes(32) && Int8Scratch(96).end <= attend_scratch_bytes(96) &&
              Int8Scratch(kMaxHeadDim).end <= attend_scratch_bytes(kMaxHeadDim));

// A form of the cache (attention.h). Products: struct with
//   kByLines, kMostAsking  whether it asks ahead line by line, and up to how many rows
//   Query, Weights         Words, or Bytes and Halves
//   scores(size_t rows, const Query& q, size_t pp, const uint8_t* keys, int32_t* s, const RunsAhead& ahead, size_t i)
//     s[r * kKeyStep + c] = sum over p of q[r, p] keys[p, c] for the i-th run, u8 [2][Pp/4][16][4]
//   values(size_t rows, const Weights& w, const uint8_t* const* vals, size_t runs, size_t pp, int32_t* o,
//          const RunsAhead& ahead, uint8_t* memory)
//     o[r * pp + p] = sum over the keys j of all runs of w[r, j] vals[j, p]; vals[i] is u8 [8][Pp][4], memory [kKeyStep * pp]
// Rows of an operand are readable up to the next multiple of 16. Columns from Pp (or 32 runs) to the next multiple of 64 are 0.
template <class Products>
class Int8Kv {
 public:
  static constexpr bool kByLines = Products::kByLines;
  static constexpr size_t kMostAsking = Products::kMostAsking;
  Int8Kv(const AttendItem& it, uint8_t* scratch, const Int8Scratch& part)
      : it_(it),
        s_(reinterpret_cast<float*>(scratch)),
        w_{scratch + part.weights, kKeyStep},
        q_{scratch + part.queries, (it.kv.pp + 63) / 64 * 64},
        o_(reinterpret_cast<int32_t*>(scratch + part.sums)),
        memory_(scratch + part.memory) {
    for (size_t r = 0; r < it.num_rows; ++r) query_[r] = put_query(q_, r, it.q + r * it.kv.pp, it.kv.pp);
  }
  Int8Kv(const AttendItem& it, uint8_t* scratch) : Int8Kv(it, scratch, Int8Scratch(it.kv.pp)) {}

  float* row(size_t r) { return s_ + r * kKeyStep; }
  void multiply_keys(size_t i, const Run& run, const RunsAhead& ahead) {
    Products::scores(it_.num_rows, q_, it_.kv.pp, run.keys, reinterpret_cast<int32_t*>(s_) + 32 * i, ahead, i);
    std::memcpy(key_scale_ + 32 * i, run.key_scales, 128);
    std::memcpy(value_scale_ + 32 * i, run.value_scales, 128);
  }
  float unit(size_t r) const { return query_[r].scale; }
  vf score(size_t r, size_t j) const {
    return score_of(load(reinterpret_cast<const int32_t*>(s_) + r * kKeyStep + j), query_[r], key_scale_ + j);
  }
  void put_weights(size_t r, size_t j, const vf& e) { store(s_ + r * kKeyStep + j, e * load(value_scale_ + j)); }
  void put_weights(size_t r, size_t j, const vf& e, const vf& more) {
    put_weights(r, j, e);
    put_weights(r, j + 16, more);
  }
  void skip_row(size_t r, size_t keys) {
    w_.clear(r, 0, (keys + 63) / 64 * 64);
    is_seen_[r] = false;
  }
  void finish_row(size_t r, size_t seen, size_t keys, float a, float*) {
    weights_[r] = put_weights_of_row(w_, r, s_ + r * kKeyStep, seen, keys);
    is_seen_[r] = true;
    decay_[r] = a;
  }
  void add_values(const Run* runs, size_t num, float* out, const RunsAhead& ahead) {
    const size_t pp = it_.kv.pp;
    const uint8_t* values[kStepRuns];
    for (size_t i = 0; i < num; ++i) values[i] = runs[i].values;
    Products::values(it_.num_rows, w_, values, num, pp, o_, ahead, memory_);
    for (size_t r = 0; r < it_.num_rows; ++r) {
      if (!is_seen_[r]) continue;
      for (size_t p = 0; p < pp; p += 16) add_weighted(load(o_ + r * pp + p), weights_[r], decay_[r], out + r * pp + p);
    }
  }

 private:
  const AttendItem& it_;
  float* s_;  // [kQueryTile][kKeyStep]: sums of products, then scores, then weights
  typename Products::Weights w_;
  typename Products::Query q_;
  int32_t* o_;  // [kQueryTile][Pp]
  uint8_t* memory_;
  float key_scale_[kKeyStep], value_scale_[kKeyStep];
  Numbers query_[kQueryTile], weights_[kQueryTile];
  float decay_[kQueryTile];
  bool is_seen_[kQueryTile];
};

}  // namespace
}  // namespace trivet
