// Attention of one work item, written once; a tier supplies two kinds of products (attend_bf16.h, attend_int8.h).
//
// For each step of kKeyStep keys at fixed multiples of position (rows r, keys j, widths p):
//   s[r, j] = q[r] . k[j]                   score(r, j) times unit(r), as the form of the cache says
//   keys past position[r]: s = -inf
//   m' = max_j s if that is above m by more than 8 / c, else m; a = 2^((m - m') c); e[r, j] = 2^(s[r, j] c - m' c), the exponent
//   rounded once and the power near to 1.1e-4, where c = scale * log2(e). m only has to keep powers in range: moved at every new
//   maximum, it cost a pass through o each time
//   l = l * a + sum_j e[r, j]               16 lanes, in order of j, then one tree
//   o[r] = o[r] * a + e[r] . v              e rounded as the form of the cache says
// A step that a row does not see at all leaves it as it was, bit for bit, so a row's result depends on its own position
// alone and not on the rows beside it.
//
// Form, one of the cache's: class with
//   kByLines                                whether its products ask ahead line by line
//   kMostAsking                             rows of an item up to which asking ahead pays
//   Form(item, scratch)
//   float* row(r)                           [kKeyStep] floats that row r may use until its step is over
//   multiply_keys(i, run, ahead)            the i-th run of a step, for all rows
//   vf score(r, j)                          s of sixteen keys in units of unit(r); may be stored where row(r) has them
//   float unit(r)                           above 0
//   put_weights(r, j, e[, more])            e of sixteen keys (of 32), which may replace what row(r) has there
//   skip_row(r, keys)                       the row sees nothing of a step of that many keys
//   finish_row(r, seen, keys, a, out)       all weights of a row that sees no more than `seen` of them are put
//   add_values(runs, num, out, ahead)       o of all rows
#pragma once

#include "kernels/common/attend_bf16.h"
#include "kernels/common/attend_int8.h"
#include "kernels/common/kv_runs.h"
#include "kernels/common/vec.h"

namespace trivet {
namespace {

// Weights of N times sixteen keys from j on, out of x, the exponents of 2; adds them to `total`.
template <size_t N, class Form>
TRIVET_INLINE void weigh(Form& form, size_t r, size_t j, vf (&x)[N], vf& total) {
  exp2<kRough>(x);
  for (size_t i = 0; i < N; ++i) total = total + x[i];
  if constexpr (N % 2 == 0)
    for (size_t i = 0; i < N; i += 2) form.put_weights(r, j + 16 * i, x[i], x[i + 1]);
  else
    for (size_t i = 0; i < N; ++i) form.put_weights(r, j + 16 * i, x[i]);
}

#ifdef __AVX512F__
// Whether the row sees the whole step and its maximum stays: then that need not be found, and the row never leaves registers.
template <class Form>
TRIVET_INLINE bool take_whole_row(Form& form, size_t r, float c, float m, vf& total) {
  constexpr size_t kVecs = kKeyStep / 16;
  const vf factor = splat(c * form.unit(r)), moved = splat(-(m * c));
  vf x[kVecs];
  __mmask16 stays = 0xffff;
#pragma GCC unroll 8
  for (size_t i = 0; i < kVecs; ++i) {
    x[i] = fma(form.score(r, 16 * i), factor, moved);
    stays = _mm512_mask_cmp_ps_mask(stays, (__m512)x[i], (__m512)splat(8.0f), _CMP_LE_OQ);
  }
  if (stays != 0xffff) return false;
#pragma GCC unroll 8
  for (size_t i = 0; i < kVecs; i += 4) {
    vf four[4] = {x[i], x[i + 1], x[i + 2], x[i + 3]};
    weigh(form, r, 16 * i, four, total);
  }
  return true;
}
#else
template <class Form>
TRIVET_INLINE bool take_whole_row(Form&, size_t, float, float, vf&) { return false; }
#endif

// What row r makes of the scores of a step of `keys` keys, of which it sees the first `visible`.
template <class Form>
TRIVET_INLINE void take_scores(Form& form, size_t r, int64_t visible, size_t keys, float c, float* out, float* row_max, float* row_sum) {
  const size_t seen = visible <= 0 ? 0 : visible < int64_t(keys) ? (size_t(visible) + 15) / 16 * 16 : keys;
  if (seen == 0) return form.skip_row(r, keys);
  vf total{};
  if (keys == kKeyStep && visible >= int64_t(keys) && take_whole_row(form, r, c, row_max[r], total)) {
    row_sum[r] += sum(total);
    return form.finish_row(r, seen, keys, 1.0f, out);
  }
  float* row = form.row(r);
  for (size_t j = 0; j < seen; j += 16) store(row + j, form.score(r, j));
  if (size_t(visible) < seen) {
    static constexpr int32_t kLane[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float* last = row + seen - 16;
    store(last, select(load(kLane) < int32_t(size_t(visible) + 16 - seen), load(last), splat(-__builtin_inff())));
  }
  vf m = load(row);
  for (size_t j = 16; j < seen; j += 16) m = max(m, load(row + j));
  const float top = max_lane(m), old_max = row_max[r];
  // decided as in take_whole_row, to the bit: rounding keeps the order, so the highest score decides for all; NaN moves it
  const bool stays = __builtin_fmaf(top, c * form.unit(r), -(old_max * c)) <= 8.0f;
  const float new_max = stays ? old_max : top * form.unit(r);
  const bool is_first = old_max == -__builtin_inff();  // then o and l are 0, whatever they are multiplied with
  const float a = old_max == new_max || is_first ? 1.0f : exp2(splat((old_max - new_max) * c))[0];
  const vf factor = splat(c * form.unit(r)), moved = splat(-(new_max * c));
  size_t j = 0;
  const auto weigh_next = [&]<size_t N>(vf(&x)[N]) {
    for (size_t i = 0; i < N; ++i) x[i] = fma(load(row + j + 16 * i), factor, moved);
    weigh(form, r, j, x, total);
    j += 16 * N;
  };
#ifdef __AVX512F__
  for (vf x[4]; j + 64 <= seen;) weigh_next(x);
#endif
  for (vf x[1]; j < seen;) weigh_next(x);
  row_max[r] = new_max;
  row_sum[r] = row_sum[r] * a + sum(total);
  form.finish_row(r, seen, keys, a, out);
}

template <class Form>
void attend_as(const AttendItem& it, float* out, float* row_max, float* row_sum, uint8_t* scratch) {
  const size_t pp = it.kv.pp, rows = it.num_rows, run_bytes = 32 * pp * (it.kv.int8 ? 1 : 2);
  const bool waits = rows <= Form::kMostAsking;
  Form form(it, scratch);
  if (!it.resume) {
    for (size_t r = 0; r < rows; ++r) {
      row_max[r] = -__builtin_inff();
      row_sum[r] = 0;
    }
    std::memset(out, 0, (rows <= 16 ? 16 : kQueryTile) * pp * 4);
  }
  Run runs[kStepRuns], next[kStepRuns];
  size_t num = runs_of(it, it.key_begin, runs);
  if (waits && !it.is_asked_for) {  // by whoever was before: keys wait for memory, values shall not
    RunsAhead mine{{}, num, run_bytes, 0};
    for (size_t i = 0; i < num; ++i) mine.runs[i] = runs[i].values;
    mine.rest();
  }
  for (size_t begin = it.key_begin; begin < it.key_end; begin += kKeyStep) {
    const size_t num_next = runs_of(it, begin + kKeyStep, next);
    const AttendItem* after = num_next || !waits ? nullptr : it.next;
    Run theirs[kStepRuns];
    const size_t num_ahead = after ? runs_of(*after, after->key_begin, theirs) : waits ? num_next : 0;
    RunsAhead keys{{}, num_ahead, run_bytes, num}, values{{}, num_ahead, run_bytes, num};
    for (size_t i = 0; i < std::max(num, num_ahead); ++i) {
      const Run& run = i >= num_ahead ? runs[i] : after ? theirs[i] : next[i];
      keys.runs[i] = run.keys;
      values.runs[i] = run.values;
      if (it.kv.int8) fetch_scales(run);
    }

    for (size_t i = 0; i < num; ++i) form.multiply_keys(i, runs[i], keys);
    const float c = it.scale * kLog2E;
    for (size_t r = 0; r < rows; ++r)
      take_scores(form, r, int64_t(it.position[r]) + 1 - int64_t(begin), 32 * num, c, out, row_max, row_sum);
    form.add_values(runs, num, out, values);
    if (Form::kByLines) {
      keys.rest();
      values.rest();
    }
    std::copy(next, next + num_next, runs);
    num = num_next;
  }
}

template <class Halves, class Codes>
void attend_item(const AttendItem& it, float* out, float* row_max, float* row_sum, uint8_t* scratch) {
  if (it.kv.int8) return attend_as<Int8Kv<Codes>>(it, out, row_max, row_sum, scratch);
  attend_as<Bf16Kv<Halves>>(it, out, row_max, row_sum, scratch);
}

// After the merge rule of attention partials: both sides scaled to the larger maximum, then added.
void merge_partials(size_t num_rows, size_t pp, float* out, float* row_max, float* row_sum, const float* out2,
                    const float* max2, const float* sum2) {
  for (size_t r = 0; r < num_rows; ++r) {
    if (max2[r] == -__builtin_inff()) continue;
    const float m = row_max[r] > max2[r] ? row_max[r] : max2[r];
    const float a = row_max[r] == m ? 1.0f : exp2(splat(row_max[r] - m))[0];
    const float b = max2[r] == m ? 1.0f : exp2(splat(max2[r] - m))[0];
    row_max[r] = m;
    row_sum[r] = row_sum[r] * a + sum2[r] * b;
    for (size_t p = 0; p < pp; p += 16)
      store(out + r * pp + p, load(out + r * pp + p) * a + load(out2 + r * pp + p) * b);
  }
}

}  // namespace
}  // namespace trivet
