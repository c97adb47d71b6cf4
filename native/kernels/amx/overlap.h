// Attention of more than 16 rows. The tile unit multiplies the scores of the next rows and the values of the last ones while
// vectors make weights of these rows' scores, a share after each row: 0.8x of the time of one after the other.
#pragma once

#include "kernels/amx/amx.h"
#include "kernels/amx/tiles.h"
#include "kernels/common/attention.h"

namespace trivet {
namespace {

// A macro, since the intrinsics paste their register numbers into the assembly text.
#define TRIVET_DOT(c, a, b)       \
  do {                            \
    if constexpr (kCodes)         \
      _tile_dpbsud(c, a, b);      \
    else                          \
      _tile_dpbf16ps(c, a, b);    \
  } while (0)

// Products that wait for the tile unit, first come, first done, in chunks of 64 bytes of a row.
class WaitingProducts {
 public:
  static constexpr size_t kMostChunks = 8;
  // c (+)= a . b for two tiles of a and two of b, side by side in b and c; distances in bytes. a and c: from the first row to the
  // next, and from the first tile to the second. b: the tiles of chunk i at b[i] and b[i] + b_second.
  struct Product {
    const uint8_t* a;
    size_t lda, a_second;
    const uint8_t* b[kMostChunks];
    size_t num, ldb, b_second;
    uint8_t* c;
    size_t ldc, c_second;
    bool goes_on;
  };
  Product& add(size_t num) {
    num_chunks_ += num;
    return products_[num_products_++];
  }
  // What falls to the i-th of n, if all is to be done with the last.
  template <bool kCodes>
  TRIVET_INLINE_MEMBER void share(uint32_t i, uint32_t n) {
    for (const size_t end = uint32_t(num_chunks_) * (i + 1) / n; num_done_ < end; ++num_done_) one<kCodes>();
  }
  template <bool kCodes>
  void rest() {
    stored();
    share<kCodes>(0, 1);
    stored();
    num_products_ = num_chunks_ = num_done_ = at_ = chunk_ = 0;
  }

 private:
  template <bool kCodes>
  TRIVET_INLINE_MEMBER void one() {
    const Product& p = products_[at_];
    const uint8_t *a = p.a + 64 * chunk_, *b = p.b[chunk_];
    uint8_t *c = p.c, *lower = c + p.c_second;
    if (chunk_ == 0 && p.goes_on) {
      _tile_loadd(0, c, p.ldc);
      _tile_loadd(1, c + 64, p.ldc);
      _tile_loadd(2, lower, p.ldc);
      _tile_loadd(3, lower + 64, p.ldc);
    } else if (chunk_ == 0) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    _tile_loadd(4, a, p.lda);
    _tile_loadd(6, b, p.ldb);
    TRIVET_DOT(0, 4, 6);
    _tile_loadd(7, b + p.b_second, p.ldb);
    TRIVET_DOT(1, 4, 7);
    _tile_loadd(5, a + p.a_second, p.lda);
    TRIVET_DOT(2, 5, 6);
    TRIVET_DOT(3, 5, 7);
    if (++chunk_ < p.num) return;
    chunk_ = 0;
    ++at_;
    _tile_stored(0, c, p.ldc);
    _tile_stored(1, c + 64, p.ldc);
    _tile_stored(2, lower, p.ldc);
    _tile_stored(3, lower + 64, p.ldc);
  }

  Product products_[kStepRuns + kMaxHeadDim / 32];
  size_t num_products_ = 0, num_chunks_ = 0, num_done_ = 0, at_ = 0, chunk_ = 0;
};
static_assert(WaitingProducts::kMostChunks >= kStepRuns && WaitingProducts::kMostChunks >= kMaxHeadDim / 32);

// Some rows of a step.
struct Phase {
  size_t begin, first_row, num_runs;
  Run runs[kStepRuns];
};

// Forms of the cache as in attention.h, for rows first_row .. first_row + kRows - 1 of two phases in turn:
//   multiply_keys(phase, turn, waiting)   its scores are to be multiplied
//   turn_to(phase, turn)                  take_scores() is about to be called for it
//   add_values(phase, turn, waiting)      its weights are to be multiplied with values
//   values_added(phase, turn)             that is done
//   weights_made()                        its weights are made, and the values of the phase before are added
class OverlapHalves {
 public:
  static constexpr bool kCodes = false;
  static constexpr size_t kRows = kQueryTile;
  static_assert(8 * kQueryTile * kKeyStep <= attend_scratch_bytes(32));

  OverlapHalves(const AttendItem& it, float* out, uint8_t* scratch) : it_(it), out_(out), s_(reinterpret_cast<float*>(scratch)) {}

  void multiply_keys(const Phase& phase, size_t turn, WaitingProducts& waiting) {
    const size_t pp = it_.kv.pp;
    for (size_t i = 0; i < phase.num_runs; ++i) {
      auto& p = waiting.add(pp / 32);
      p = {bytes(it_.q), 2 * pp, 32 * pp, {}, pp / 32, 64, 32 * pp, bytes(scores(turn) + 32 * i), 4 * kKeyStep, 64 * kKeyStep, false};
      for (size_t j = 0; j < p.num; ++j) p.b[j] = phase.runs[i].keys + 1024 * j;
    }
  }
  void add_values(const Phase& phase, size_t turn, WaitingProducts& waiting) {
    const size_t pp = it_.kv.pp;
    for (size_t col = 0; col < pp; col += 32) {
      auto& p = waiting.add(phase.num_runs);
      p = {bytes(scores(turn)), 4 * kKeyStep, 64 * kKeyStep, {}, phase.num_runs, 4 * pp, 64, bytes(out_ + col), 4 * pp, 64 * pp, true};
      for (size_t i = 0; i < p.num; ++i) p.b[i] = phase.runs[i].values + 4 * col;
    }
  }
  void turn_to(const Phase&, size_t turn) { turn_ = turn; }
  void values_added(const Phase&, size_t) {}
  void weights_made() {
    const size_t pp = it_.kv.pp;
    for (size_t r = 0; r < it_.num_rows; ++r)
      if (decay_[r] != 1.0f)
        for (size_t p = r * pp; p < (r + 1) * pp; p += 16) store(out_ + p, load(out_ + p) * decay_[r]);
  }

  float* row(size_t r) { return scores(turn_) + r * kKeyStep; }
  vf score(size_t r, size_t j) const { return load(scores(turn_) + r * kKeyStep + j); }
  void put_weights(size_t r, size_t j, const vf& e) { store_bf16_quick(weights(r) + j, e); }
  void put_weights(size_t r, size_t j, const vf& e, const vf& more) { store_bf16_quick(weights(r) + j, e, more); }
  void skip_row(size_t r, size_t keys) {
    std::memset(weights(r), 0, 2 * keys);
    decay_[r] = 1.0f;
  }
  void finish_row(size_t r, size_t seen, size_t keys, float a, float*) {
    if (seen < keys) std::memset(weights(r) + seen, 0, 2 * (keys - seen));
    decay_[r] = a;
  }

 private:
  template <class T>
  static uint8_t* bytes(T* at) { return reinterpret_cast<uint8_t*>(at); }
  static const uint8_t* bytes(const uint16_t* at) { return reinterpret_cast<const uint8_t*>(at); }
  float* scores(size_t turn) const { return s_ + turn * kQueryTile * kKeyStep; }
  uint16_t* weights(size_t r) { return reinterpret_cast<uint16_t*>(row(r)); }  // bf16, in place of the scores

  const AttendItem& it_;
  float *out_, *s_;  // s_: [2][kQueryTile][kKeyStep]
  size_t turn_ = 0;
  float decay_[kQueryTile];
};

// Half as many rows at a time, since each has sums of products for the high and for the low halves of its numbers.
class OverlapCodes {
 public:
  static constexpr bool kCodes = true;
  static constexpr size_t kRows = 16;

  OverlapCodes(const AttendItem& it, float* out, uint8_t* scratch)
      : it_(it),
        out_(out),
        s_(reinterpret_cast<int32_t*>(scratch)),
        w_{{reinterpret_cast<uint8_t*>(s_ + 4 * kRows * kKeyStep), kKeyStep}, {w_[0].at + kRows * w_[0].row_bytes(), kKeyStep}},
        q_{w_[1].at + kRows * w_[1].row_bytes(), (it.kv.pp + 63) / 64 * 64},
        o_(reinterpret_cast<int32_t*>(q_.at + kQueryTile * q_.row_bytes())),
        values_(reinterpret_cast<uint8_t*>(o_ + 2 * kRows * it.kv.pp)) {
    for (size_t r = 0; r < it.num_rows; ++r) query_[r] = put_query(q_, r, it.q + r * it.kv.pp, it.kv.pp);
  }
  static constexpr size_t scratch_bytes(size_t pp) {
    return 4 * (4 * kRows * kKeyStep + 2 * kRows * pp) + 4 * kRows * kKeyStep + 2 * kQueryTile * ((pp + 63) / 64 * 64) + kKeyStep * pp;
  }

  void multiply_keys(const Phase& phase, size_t turn, WaitingProducts& waiting) {
    const size_t pp = it_.kv.pp, num = q_.length / 64;
    for (size_t i = 0; i < phase.num_runs; ++i) {
      auto& p = waiting.add(num);
      p = {q_.halves(phase.first_row), q_.row_bytes(), q_.length, {}, num, 64, 16 * pp, bytes(sums(turn, 0) + 32 * i), 8 * kKeyStep,
           4 * kKeyStep, false};
      for (size_t j = 0; j < num; ++j) p.b[j] = phase.runs[i].keys + 1024 * j;
    }
  }
  // Values are copied together, since 64 keys are two runs.
  void add_values(const Phase& phase, size_t turn, WaitingProducts& waiting) {
    const size_t pp = it_.kv.pp, num = (phase.num_runs + 1) / 2;
    if (phase.first_row == 0)
      for (size_t i = 0; i < phase.num_runs; ++i) std::memcpy(values_ + i * 32 * pp, phase.runs[i].values, 32 * pp);
    for (size_t col = 0; col < pp; col += 32) {
      auto& p = waiting.add(num);
      p = {w_[turn].halves(0), w_[turn].row_bytes(), kKeyStep, {}, num, 4 * pp, 64, bytes(o_ + col), 8 * pp, 4 * pp, false};
      for (size_t i = 0; i < num; ++i) p.b[i] = values_ + i * 64 * pp + 4 * col;
    }
  }
  void turn_to(const Phase& phase, size_t turn) {
    phase_ = &phase;
    turn_ = turn;
  }
  void values_added(const Phase& phase, size_t turn) {
    const size_t pp = it_.kv.pp, end = std::min(phase.first_row + kRows, it_.num_rows);
    for (size_t r = phase.first_row, i = 0; r < end; ++r, ++i) {
      if (!is_seen_[turn][i]) continue;
      for (size_t p = 0; p < pp; p += 16) {
        const int32_t* o = o_ + 2 * i * pp + p;
        add_weighted((load(o) << 8) + load(o + pp), weights_[turn][i], decay_[turn][i], out_ + r * pp + p);
      }
    }
  }
  void weights_made() { round_last(); }

  float* row(size_t r) { return reinterpret_cast<float*>(sums(turn_, r % kRows)); }
  vf score(size_t r, size_t j) const {
    const int32_t* s = sums(turn_, r % kRows) + j;
    return score_of((load(s) << 8) + load(s + kKeyStep), query_[r], phase_->runs[j / 32].key_scales + j % 32);
  }
  void put_weights(size_t r, size_t j, const vf& e) { store(row(r) + j, e * load(phase_->runs[j / 32].value_scales + j % 32)); }
  void put_weights(size_t r, size_t j, const vf& e, const vf& more) {
    put_weights(r, j, e);
    put_weights(r, j + 16, more);
  }
  void skip_row(size_t r, size_t keys) {
    w_[turn_].clear(r % kRows, 0, (keys + 63) / 64 * 64);
    is_seen_[turn_][r % kRows] = false;
  }
  // The row before is rounded now: this one's maximum is on its way for long.
  void finish_row(size_t r, size_t seen, size_t keys, float a, float*) {
    round_last();
    last_ = {r, seen, keys};
    is_seen_[turn_][r % kRows] = true;
    decay_[turn_][r % kRows] = a;
  }

 private:
  void round_last() {
    const size_t r = last_.row;
    if (last_.seen > 0) weights_[turn_][r % kRows] = put_weights_of_row(w_[turn_], r % kRows, row(r), last_.seen, last_.keys);
    last_.seen = 0;
  }
  static uint8_t* bytes(int32_t* at) { return reinterpret_cast<uint8_t*>(at); }
  int32_t* sums(size_t turn, size_t r) const { return s_ + (turn * kRows + r) * 2 * kKeyStep; }  // high halves, then low ones

  const AttendItem& it_;
  float* out_;
  int32_t* s_;  // [2][kRows][2][kKeyStep]
  Operand<false> w_[2], q_;
  int32_t* o_;  // [kRows][2][Pp]
  uint8_t* values_;
  const Phase* phase_ = nullptr;
  size_t turn_ = 0;
  Numbers query_[kQueryTile], weights_[2][kRows];
  float decay_[2][kRows];
  bool is_seen_[2][kRows];
  struct {
    size_t row, seen, keys;
  } last_{};  // whose weights are not rounded yet
};
static_assert(OverlapCodes::scratch_bytes(32) <= attend_scratch_bytes(32) && OverlapCodes::scratch_bytes(96) <= attend_scratch_bytes(96) &&
              OverlapCodes::scratch_bytes(kMaxHeadDim) <= attend_scratch_bytes(kMaxHeadDim));

template <class Form>
void attend_overlapped(const AttendItem& it, float* out, float* row_max, float* row_sum, uint8_t* scratch) {
  const size_t pp = it.kv.pp, rows = it.num_rows;
  const float c = it.scale * kLog2E;
  if (!it.resume) {
    for (size_t r = 0; r < rows; ++r) {
      row_max[r] = -__builtin_inff();
      row_sum[r] = 0;
    }
    std::memset(out, 0, kQueryTile * pp * 4);
  }
  Form form(it, out, scratch);
  WaitingProducts waiting;
  Phase phases[3]{};  // the last, this and the next
  Phase *last = &phases[0], *mine = &phases[1], *next = &phases[2];
  mine->begin = it.key_begin;
  mine->first_row = 0;
  mine->num_runs = runs_of(it, mine->begin, mine->runs);
  form.multiply_keys(*mine, 0, waiting);
  waiting.rest<Form::kCodes>();
  size_t turn = 0;
  for (; mine->num_runs > 0; turn ^= 1) {
    if (last->num_runs > 0) form.add_values(*last, turn ^ 1, waiting);  // before the scores that take their weights' place
    const size_t first = mine->first_row, end = std::min(first + Form::kRows, rows);
    *next = *mine;
    next->first_row = end < rows ? end : 0;
    if (end == rows) next->num_runs = runs_of(it, next->begin += kKeyStep, next->runs);
    if (next->num_runs > 0) form.multiply_keys(*next, turn ^ 1, waiting);
    stored();
    form.turn_to(*mine, turn);
    for (size_t r = first; r < end; ++r) {
      take_scores(form, r, int64_t(it.position[r]) + 1 - int64_t(mine->begin), 32 * mine->num_runs, c, out, row_max, row_sum);
      waiting.share<Form::kCodes>(r - first, end - first);
    }
    waiting.rest<Form::kCodes>();
    if (last->num_runs > 0) form.values_added(*last, turn ^ 1);
    form.weights_made();
    Phase* const free = last;
    last = mine;
    mine = next;
    next = free;
  }
  if (last->num_runs == 0) return;  // there was no key
  form.add_values(*last, turn ^ 1, waiting);
  waiting.rest<Form::kCodes>();
  form.values_added(*last, turn ^ 1);
}

#undef TRIVET_DOT

}  // namespace
}  // namespace trivet
