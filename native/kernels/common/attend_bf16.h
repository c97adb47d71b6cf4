// Attention with keys and values in bf16: products in the order of the tier. Weights e are rounded to bf16; their product with the
// values goes on from o, 32 keys at a time.
#pragma once

#include "kernels/common/kv_runs.h"
#include "kernels/common/vec.h"

namespace trivet {
namespace {

// The two products from one that chains tiles: c[r, 0..15] (+)= sum over i < num of a[r, 32 i ..] . b[i],
// with rows of a and c at lda and ldc, and 16 rows of 32 numbers of b[i] at ldb; kAdd: the chain begins with c, else with
// 0. Rows up to the next multiple of 4 may be computed. Chain: struct with
//   template <bool kAdd> static void chain(size_t rows, const uint16_t* a, size_t lda, const uint16_t* const* b, size_t num, size_t ldb, float* c, size_t ldc)
template <class Chain>
struct TileProducts {
  static constexpr bool kByLines = false;
  static constexpr size_t kMostAsking = 0;
  static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, const RunsAhead&, size_t) {
    for (size_t g = 0; g < 2; ++g) {
      const uint16_t* chunk[8];
      for (size_t i = 0; i < pp / 32; ++i) chunk[i] = keys + (16 * g) * pp + i * 512;
      Chain::template chain<false>(rows, q, pp, chunk, pp / 32, 32, s + 16 * g, kKeyStep);
    }
  }
  static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, const RunsAhead&) {
    for (size_t p = 0; p < pp; p += 16) {
      const uint16_t* run[kStepRuns];
      for (size_t i = 0; i < runs; ++i) run[i] = vals[i] + 2 * p;
      Chain::template chain<true>(rows, w, kKeyStep, run, runs, 2 * pp, o + p, pp);
    }
  }
};

// A form of the cache (attention.h). Products: struct with
//   kByLines, kMostAsking  whether it asks ahead line by line, and up to how many rows
//   scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, const RunsAhead& ahead, size_t i)
//     s[r * kKeyStep + c] = q[r] . keys[:, c] for the i-th run, bf16 [2][Pp/2][16][2]; at least `rows` rows
//   values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, const RunsAhead& ahead)
//     o[r * pp + p] += sum over runs of 32 keys, vals[i] is bf16 [16][Pp][2]; w is [kQueryTile][kKeyStep]
template <class Products>
class Bf16Kv {
 public:
  static constexpr bool kByLines = Products::kByLines;
  static constexpr size_t kMostAsking = Products::kMostAsking;
  Bf16Kv(const AttendItem& it, uint8_t* scratch)
      : it_(it),
        s_(reinterpret_cast<float*>(scratch)),
        w_(reinterpret_cast<uint16_t*>(scratch + kQueryTile * kKeyStep * 4)) {
    std::memset(w_, 0, (it.num_rows <= 16 ? 16 : kQueryTile) * kKeyStep * 2);
  }
  float* row(size_t r) { return s_ + r * kKeyStep; }
  void multiply_keys(size_t i, const Run& run, const RunsAhead& ahead) {
    Products::scores(it_.num_rows, it_.q, it_.kv.pp, reinterpret_cast<const uint16_t*>(run.keys), s_ + 32 * i, ahead, i);
  }
  float unit(size_t) const { return 1.0f; }
  vf score(size_t r, size_t j) const { return load(s_ + r * kKeyStep + j); }
  void put_weights(size_t r, size_t j, const vf& e) { store_bf16_quick(w_ + r * kKeyStep + j, e); }
  void put_weights(size_t r, size_t j, const vf& e, const vf& more) { store_bf16_quick(w_ + r * kKeyStep + j, e, more); }
  void skip_row(size_t r, size_t keys) { std::memset(w_ + r * kKeyStep, 0, 2 * keys); }
  void finish_row(size_t r, size_t seen, size_t keys, float a, float* out) {
    if (seen < keys) std::memset(w_ + r * kKeyStep + seen, 0, 2 * (keys - seen));
    if (a != 1.0f)
      for (size_t p = 0; p < it_.kv.pp; p += 16) store(out + r * it_.kv.pp + p, load(out + r * it_.kv.pp + p) * a);
  }
  void add_values(const Run* runs, size_t num, float* out, const RunsAhead& ahead) {
    const uint16_t* values[kStepRuns];
    for (size_t i = 0; i < num; ++i) values[i] = reinterpret_cast<const uint16_t*>(runs[i].values);
    Products::values(it_.num_rows, w_, values, num, it_.kv.pp, out, ahead);
  }

 private:
  const AttendItem& it_;
  float* s_;      // [kQueryTile][kKeyStep]
  uint16_t* w_;  // the same
};

}  // namespace
}  // namespace trivet
