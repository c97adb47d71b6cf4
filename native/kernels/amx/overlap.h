// Attention of more than 16 rows. The tile unit multiplies the scores of the next step and the values of the last one while
// vectors make weights of this step's scores, a share after each row: 0.8x of the time of one after the other.
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
    int part = -1;  // of the values, if the form is to be told that it is done
  };
  Product& add(size_t num) {
    num_chunks_ += num;
    return products_[num_products_++];
  }
  // What falls to the i-th of n, if all is to be done with the last.
  template <class Form>
  TRIVET_INLINE_MEMBER void share(Form& form, uint32_t i, uint32_t n) {
    for (const size_t end = uint32_t(num_chunks_) * (i + 1) / n; num_done_ < end; ++num_done_) {
      const int part = one<Form::kCodes>();
      if (Form::kCodes && part >= 0) form.part_done(size_t(part));
    }
  }
  template <class Form>
  void rest(Form& form) {
    stored();
    share(form, 0, 1);
    stored();
    num_products_ = num_chunks_ = num_done_ = at_ = chunk_ = 0;
  }

 private:
  template <bool kCodes>
  TRIVET_INLINE_MEMBER int one() {
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
    const bool is_done = ++chunk_ == p.num;
    if (is_done) {
      chunk_ = 0;
      ++at_;
    }
    if (at_ < num_products_) {  // what comes next is fetched while vectors compute
      const Product& after = products_[at_];
      const uint8_t* next = after.b[chunk_];
      for (size_t i = 0; i < 16; ++i, next += after.ldb) {
        __builtin_prefetch(next);
        __builtin_prefetch(next + after.b_second);
      }
    }
    if (!is_done) return -1;
    _tile_stored(0, c, p.ldc);
    _tile_stored(1, c + 64, p.ldc);
    _tile_stored(2, lower, p.ldc);
    _tile_stored(3, lower + 64, p.ldc);
    return p.part;
  }

  Product products_[kStepRuns + 2 * kMaxHeadDim / 32];
  size_t num_products_ = 0, num_chunks_ = 0, num_done_ = 0, at_ = 0, chunk_ = 0;
};
static_assert(WaitingProducts::kMostChunks >= kStepRuns && WaitingProducts::kMostChunks >= kMaxHeadDim / 32);

// A step of keys.
struct Phase {
  size_t begin, num_runs;
  Run runs[kStepRuns];
};

// Forms of the cache as in attention.h, for two phases in turn:
//   multiply_keys(phase, turn, waiting)   its scores are to be multiplied
//   turn_to(phase, turn)                  take_scores() is about to be called for it
//   prepare(i, n)                         and has been, for the i-th of n rows: a share of what its values need
//   add_values(phase, turn, waiting)      its weights are to be multiplied with values
//   part_done(part)                       such a product is done, where it named a part
//   weights_made()                        its weights are made, and the values of the phase before are added
class OverlapHalves {
 public:
  static constexpr bool kCodes = false;
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
  void prepare(size_t, size_t) {}
  void part_done(size_t) {}
  void weights_made() {
    const size_t pp = it_.kv.pp;
    for (size_t r = 0; r < it_.num_rows; ++r)
      if (decay_[r] != 1.0f)
        for (size_t p = r * pp; p < (r + 1) * pp; p += 16) store(out_ + p, load(out_ + p) * decay_[r]);
  }

  float* row(size_t r) { return scores(turn_) + r * kKeyStep; }
  float unit(size_t) const { return 1.0f; }
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

class OverlapCodes {
 public:
  static constexpr bool kCodes = true;

  OverlapCodes(const AttendItem& it, float* out, uint8_t* scratch)
      : it_(it),
        out_(out),
        s_(reinterpret_cast<int32_t*>(scratch)),
        w_{{scratch + 8 * kQueryTile * kKeyStep, kKeyStep}, {w_[0].at + kQueryTile * w_[0].row_bytes(), kKeyStep}},
        q_{w_[1].at + kQueryTile * w_[1].row_bytes(), (it.kv.pp + 63) / 64 * 64},
        o_(reinterpret_cast<int32_t*>(q_.at + kQueryTile * q_.row_bytes())),
        values_(reinterpret_cast<uint8_t*>(o_ + 2 * 16 * 32)) {
    for (size_t r = 0; r < it.num_rows; ++r) query_[r] = put_query(q_, r, it.q + r * it.kv.pp, it.kv.pp);
  }
  static constexpr size_t scratch_bytes(size_t pp) {
    return kQueryTile * (12 * kKeyStep + (pp + 63) / 64 * 64) + 4 * 2 * 16 * 32 + 2 * kKeyStep * pp;
  }

  void multiply_keys(const Phase& phase, size_t turn, WaitingProducts& waiting) {
    const size_t pp = it_.kv.pp, num = q_.length / 64;
    for (size_t i = 0; i < phase.num_runs; ++i) {
      auto& p = waiting.add(num);
      p = {q_.bytes(0), q_.length, 16 * q_.length, {}, num, 64, 16 * pp, bytes(sums(turn, 0) + 32 * i), 4 * kKeyStep, 64 * kKeyStep, false};
      for (size_t j = 0; j < num; ++j) p.b[j] = phase.runs[i].keys + 1024 * j;
    }
  }
  // The two tiles of a are the high and the low halves of 16 rows.
  void add_values(const Phase& phase, size_t turn, WaitingProducts& waiting) {
    const size_t pp = it_.kv.pp, num = (phase.num_runs + 1) / 2;
    added_turn_ = turn;
    for (size_t col = 0; col < pp; col += 32)
      for (size_t row = 0; row < kQueryTile; row += 16) {
        auto& p = waiting.add(num);
        p = {w_[turn].bytes(row), w_[turn].row_bytes(), kKeyStep, {}, num, 4 * pp, 64, bytes(o_), 128, 2048, false, int(col + row / 16)};
        for (size_t i = 0; i < num; ++i) p.b[i] = values(turn) + i * 64 * pp + 4 * col;
      }
  }
  // 32 columns of 16 rows, while they are near.
  TRIVET_INLINE_MEMBER void part_done(size_t part) {
    const size_t pp = it_.kv.pp, col = part / 32 * 32, first = part % 32 * 16, end = std::min(first + 16, it_.num_rows);
    const int32_t* o = o_;
    for (size_t r = first; r < end; ++r, o += 32) {
      if (!is_seen_[added_turn_][r]) continue;
      float* out = out_ + r * pp + col;
      for (size_t p = 0; p < 32; p += 16)
        add_weighted((load(o + p) << 8) + load(o + p + 16 * 32), weights_[added_turn_][r], decay_[added_turn_][r], out + p);
    }
  }
  void turn_to(const Phase& phase, size_t turn) {
    phase_ = &phase;
    turn_ = turn;
  }
  // Values are copied together, since 64 keys are two runs.
  TRIVET_INLINE_MEMBER void prepare(size_t i, size_t n) {
    const size_t pp = it_.kv.pp, lines = pp / 2;
    uint8_t* to = values(turn_);
    for (size_t run = 0; run < phase_->num_runs; ++run)
      for (size_t at = 64 * (lines * i / n), end = 64 * (lines * (i + 1) / n); at < end; at += 64)
        std::memcpy(to + run * 32 * pp + at, phase_->runs[run].values + at, 64);
  }
  void weights_made() { round_last(); }

  float* row(size_t r) { return reinterpret_cast<float*>(sums(turn_, r)); }
  float unit(size_t r) const { return query_[r].scale; }
  vf score(size_t r, size_t j) const {
    return score_of(load(sums(turn_, r) + j), query_[r], phase_->runs[j / 32].key_scales + j % 32);
  }
  void put_weights(size_t r, size_t j, const vf& e) { store(row(r) + j, e * load(phase_->runs[j / 32].value_scales + j % 32)); }
  void put_weights(size_t r, size_t j, const vf& e, const vf& more) {
    put_weights(r, j, e);
    put_weights(r, j + 16, more);
  }
  void skip_row(size_t r, size_t keys) {
    w_[turn_].clear(r, 0, (keys + 63) / 64 * 64);
    is_seen_[turn_][r] = false;
  }
  // The row before is rounded now: this one's maximum is on its way for long.
  void finish_row(size_t r, size_t seen, size_t keys, float a, float*) {
    round_last();
    last_ = {r, seen, keys};
    is_seen_[turn_][r] = true;
    decay_[turn_][r] = a;
  }

 private:
  void round_last() {
    const size_t r = last_.row;
    if (last_.seen > 0) weights_[turn_][r] = put_weights_of_row(w_[turn_], r, row(r), last_.seen, last_.keys);
    last_.seen = 0;
  }
  static uint8_t* bytes(int32_t* at) { return reinterpret_cast<uint8_t*>(at); }
  uint8_t* values(size_t turn) const { return values_ + turn * kKeyStep * it_.kv.pp; }
  int32_t* sums(size_t turn, size_t r) const { return s_ + (turn * kQueryTile + r) * kKeyStep; }

  const AttendItem& it_;
  float* out_;
  int32_t* s_;  // [2][kQueryTile][kKeyStep]
  Halves w_[2];
  Bytes q_;
  int32_t* o_;  // [2][16][32]: of high halves, of low ones
  uint8_t* values_;  // [2][kKeyStep][Pp]
  const Phase* phase_ = nullptr;
  size_t turn_ = 0, added_turn_ = 0;
  Numbers query_[kQueryTile], weights_[2][kQueryTile];
  float decay_[2][kQueryTile];
  bool is_seen_[2][kQueryTile];
  struct {
    size_t row, seen, keys;
  } last_{};  // whose weights are not rounded yet
};
static_assert(OverlapCodes::scratch_bytes(32) <= attend_scratch_bytes(32) && OverlapCodes::scratch_bytes(96) <= attend_scratch_bytes(96) &&
              OverlapCodes::scratch_bytes(kMaxHeadDim) <= attend_scratch_bytes(kMaxHeadDim));

// What a step asks for: the keys of the one after the next, whose products come in the next, and the values of the next, whose
// products come in the one after it. Where there is no more, the first keys and values of what the thread computes then.
struct RunsAsked {
  const uint8_t* runs[3 * kStepRuns];
  size_t num = 0, bytes;

  RunsAsked(const AttendItem& it, size_t begin, const Phase& next) : bytes(32 * it.kv.pp * (it.kv.int8 ? 1 : 2)) {
    Run after[kStepRuns];
    const size_t num_after = runs_of(it, begin, after);
    for (size_t i = 0; i < num_after; ++i) runs[num++] = after[i].keys;
    for (size_t i = 0; i < next.num_runs; ++i) runs[num++] = next.runs[i].values;
    if (next.num_runs > 0 || it.next == nullptr) return;
    const size_t num_theirs = runs_of(*it.next, it.next->key_begin, after);
    for (size_t i = 0; i < num_theirs; ++i) {
      runs[num++] = after[i].keys;
      runs[num++] = after[i].values;
    }
  }
  // A line of each run in turn.
  void share(size_t i, size_t n) const {
    for (size_t at = bytes / 64 * i / n * 64, end = bytes / 64 * (i + 1) / n * 64; at < end; at += 64)
      for (size_t run = 0; run < num; ++run) __builtin_prefetch(runs[run] + at, 0, 2);
  }
};

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
  mine->num_runs = runs_of(it, mine->begin, mine->runs);
  form.multiply_keys(*mine, 0, waiting);
  waiting.rest(form);
  size_t turn = 0;
  for (; mine->num_runs > 0; turn ^= 1) {
    if (last->num_runs > 0) form.add_values(*last, turn ^ 1, waiting);  // before the scores that take their weights' place
    next->begin = mine->begin + kKeyStep;
    next->num_runs = runs_of(it, next->begin, next->runs);
    if (next->num_runs > 0) form.multiply_keys(*next, turn ^ 1, waiting);
    const RunsAsked asked(it, next->begin + kKeyStep, *next);
    stored();
    form.turn_to(*mine, turn);
    for (size_t r = 0; r < rows; ++r) {
      take_scores(form, r, int64_t(it.position[r]) + 1 - int64_t(mine->begin), 32 * mine->num_runs, c, out, row_max, row_sum);
      asked.share(r, rows);
      form.prepare(r, rows);
      waiting.share(form, r, rows);
    }
    waiting.rest(form);
    form.weights_made();
    Phase* const free = last;
    last = mine;
    mine = next;
    next = free;
  }
  if (last->num_runs == 0) return;  // there was no key
  form.add_values(*last, turn ^ 1, waiting);
  waiting.rest(form);
}

#undef TRIVET_DOT

}  // namespace
}  // namespace trivet
