// Attention of one work item, written once; a tier supplies the product of bf16 tiles.
//
// For each step of kKeyStep keys at fixed multiples of position (rows r, keys j, widths p):
//   s[r, j] = q[r] . k[j]                   bf16 products in the order of the tier; int8 keys: times their key's scale
//   keys past position[r]: s = -inf
//   m' = max_j s if that is above m by more than 8 / c, else m; a = 2^((m - m') c); w[r, j] = 2^((s[r, j] - m') c), where
//   c = scale * log2(e). m only has to keep powers in range: moved at every new maximum, it cost a pass through o each time
//   l = l * a + sum_j w[r, j]               16 lanes, in order of j, then one tree
//   o[r] = o[r] * a + w[r] . v              w rounded to bf16 (int8 values: after the factor of the key's value scale);
//                                           the product is added 32 keys at a time
// A step that a row does not see at all leaves it as it was, bit for bit (a = 1, w = 0), so a row's result depends
// on its own position alone and not on the rows beside it.
#pragma once

#include <algorithm>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// bf16 from int8, exactly: 32 values.
TRIVET_INLINE void widen(const int8_t* in, uint16_t* out) {
#ifdef __AVX512BW__  // GCC 12 makes thirty instructions of the other way
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 16))));
#ifdef __AVX512BF16__
  const __m512bh v = _mm512_cvtne2ps_pbh(high, low);
#else
  alignas(64) static constexpr uint16_t kUpper[] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i v = _mm512_permutex2var_epi16(_mm512_castps_si512(low), _mm512_load_si512(kUpper), _mm512_castps_si512(high));
#endif
  __builtin_memcpy(out, &v, 64);
#else
  for (int h = 0; h < 2; ++h) {
    vb b;
    __builtin_memcpy(&b, in + 16 * h, 16);
    const vf f = to_float(widened(b));
    const vh v = low_halves((vu)as_int(f) >> 16);
    __builtin_memcpy(out + 16 * h, &v, 32);
  }
#endif
}

// 32 keys that lie together: what is read of the cache at once.
struct Run {
  const uint8_t *keys, *values;
  const float *key_scales, *value_scales;  // int8 only
};

// The runs of the step that begins with key `begin`; those past key_end are not touched.
TRIVET_INLINE size_t runs_of(const AttendItem& it, size_t begin, Run* runs) {
  const KvView& kv = it.kv;
  const size_t num = begin >= it.key_end ? 0 : std::min((it.key_end - begin + 31) / 32, kKeyStep / 32);
  const size_t item = kv.int8 ? 1 : 2;
  for (size_t i = 0; i < num; ++i) {
    const size_t key = begin + 32 * i, in_block = key % kv.block_size;
    const uint8_t* block = kv.base + size_t(it.block_table[key / kv.block_size]) * kv.block_stride;
    const float* scales = reinterpret_cast<const float*>(block + 2 * kv.block_size * kv.pp) + in_block;
    runs[i] = {block + in_block * kv.pp * item, block + (kv.block_size + in_block) * kv.pp * item, scales, scales + kv.block_size};
  }
  return num;
}

// What is asked for from memory while a step is computed: the values of this one, or the keys of the next. Each run is a page
// or two of its own, and hardware looks ahead within a page only.
struct RunsAhead {
  const uint8_t* runs[kKeyStep / 32];
  size_t num = 0, bytes = 0;  // of each run

  // One of `parts` shares of every `stride`-th run from run i on.
  void fetch(size_t i, size_t stride, size_t part, size_t parts) const {
    for (; i < num; i += stride)
      for (size_t b = bytes / parts * part; b < bytes / parts * (part + 1); b += 64) __builtin_prefetch(runs[i] + b, 0, 2);
  }
};

// The two products of attention from one that chains tiles: c[r, 0..15] (+)= sum over i < num of a[r, 32 i ..] . b[i],
// with rows of a and c at lda and ldc, and 16 rows of 32 numbers of b[i] at ldb; kAdd: the chain begins with c, else with
// 0. Rows up to the next multiple of 4 may be computed. Chain: struct with
//   template <bool kAdd> static void chain(size_t rows, const uint16_t* a, size_t lda, const uint16_t* const* b, size_t num, size_t ldb, float* c, size_t ldc)
template <class Chain>
struct TileProducts {
  template <class F>
  static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, F&&) {
    for (size_t g = 0; g < 2; ++g) {
      const uint16_t* chunk[8];
      for (size_t i = 0; i < pp / 32; ++i) chunk[i] = keys + (16 * g) * pp + i * 512;
      Chain::template chain<false>(rows, q, pp, chunk, pp / 32, 32, s + 16 * g, kKeyStep);
    }
  }
  template <class F>
  static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, F&&) {
    for (size_t p = 0; p < pp; p += 16) {
      const uint16_t* run[kKeyStep / 32];
      for (size_t i = 0; i < runs; ++i) run[i] = vals[i] + 2 * p;
      Chain::template chain<true>(rows, w, kKeyStep, run, runs, 2 * pp, o + p, pp);
    }
  }
};

// Tier: struct with
//   scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* keys, float* s, F&& meanwhile)
//     s[r * kKeyStep + c] = q[r] . keys[:, c] for a run of 32 keys, bf16 [2][Pp/2][16][2]; at least `rows` rows.
//     meanwhile(part), once for each part < Pp / 32, may be called on the way
//   values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o, F&& meanwhile)
//     o[r * pp + p] += sum over runs of 32 keys, vals[i] is bf16 [16][Pp][2]; w is [kQueryTile][kKeyStep].
//     meanwhile(i, part) the same, for each run i
template <class Tier>
void attend_item(const AttendItem& it, float* out, float* row_max, float* row_sum, uint8_t* scratch) {
  const KvView& kv = it.kv;
  const size_t pp = kv.pp, rows = it.num_rows, parts = pp / 32;
  float* s = reinterpret_cast<float*>(scratch);                                     // [kQueryTile][kKeyStep]
  uint16_t* w = reinterpret_cast<uint16_t*>(scratch + kQueryTile * kKeyStep * 4);   // [kQueryTile][kKeyStep]
  uint16_t* wide = reinterpret_cast<uint16_t*>(scratch + kQueryTile * kKeyStep * 6);  // [32 Pp] int8 only: one run
  const float c = it.scale * kLog2E;
  float key_scale[kKeyStep], value_scale[kKeyStep];
  const auto widened_run = [&](const uint8_t* codes) {
    for (size_t j = 0; j < 32 * pp; j += 32) widen(reinterpret_cast<const int8_t*>(codes) + j, wide + j);
    return static_cast<const uint16_t*>(wide);
  };

  const size_t used = rows <= 16 ? 16 : kQueryTile;
  std::memset(w, 0, used * kKeyStep * 2);
  if (!it.resume) {
    for (size_t r = 0; r < rows; ++r) {
      row_max[r] = -__builtin_inff();
      row_sum[r] = 0;
    }
    std::memset(out, 0, used * pp * 4);
  }

  Run runs[kKeyStep / 32], next_runs[kKeyStep / 32];
  RunsAhead ahead;
  ahead.bytes = 32 * pp * (kv.int8 ? 1 : 2);
  size_t num = runs_of(it, it.key_begin, runs);
  for (size_t begin = it.key_begin; begin < it.key_end; begin += kKeyStep) {
    if (rows <= 16) {  // else memory is not what holds
      for (size_t i = 0; i < num; ++i) {
        ahead.runs[i] = runs[i].values;
        if (kv.int8)
          for (size_t j = 0; j < 32; j += 16) {
            __builtin_prefetch(runs[i].key_scales + j);
            __builtin_prefetch(runs[i].value_scales + j);
          }
      }
      ahead.num = num;
    }
    for (size_t i = 0; i < num; ++i) {
      const uint16_t* keys = kv.int8 ? widened_run(runs[i].keys) : reinterpret_cast<const uint16_t*>(runs[i].keys);
      Tier::scores(rows, it.q, pp, keys, s + 32 * i, [&](size_t part) { ahead.fetch(i, num, part, parts); });
      if (kv.int8) {
        std::memcpy(key_scale + 32 * i, runs[i].key_scales, 128);
        std::memcpy(value_scale + 32 * i, runs[i].value_scales, 128);
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      const int64_t visible = int64_t(it.position[r]) + 1 - int64_t(begin);  // keys of this step that the row sees
      float* row = s + r * kKeyStep;
      uint16_t* wr = w + r * kKeyStep;
      const size_t seen = visible <= 0 ? 0 : visible < int64_t(32 * num) ? (size_t(visible) + 15) / 16 * 16 : 32 * num;
      if (seen < 32 * num) std::memset(wr + seen, 0, 2 * (32 * num - seen));
      if (seen == 0) continue;  // sees nothing here: the row stays as it is
      if (kv.int8)
        for (size_t j = 0; j < seen; j += 16) store(row + j, load(row + j) * load(key_scale + j));
      if (size_t(visible) < seen) {
        static constexpr int32_t kLane[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        float* last = row + seen - 16;
        store(last, select(load(kLane) < int32_t(size_t(visible) + 16 - seen), load(last), splat(-__builtin_inff())));
      }
      vf m = load(row);
      for (size_t j = 16; j < seen; j += 16) m = max(m, load(row + j));
      const float step_max = max_lane(m);
      const float old_max = row_max[r], new_max = (step_max - old_max) * c <= 8.0f ? old_max : step_max;  // NaN moves it
      const float a = old_max == new_max ? 1.0f : exp2(splat((old_max - new_max) * c))[0];
      vf total{};
      for (size_t j = 0; j < seen; j += 16) {
        vf e = exp2((load(row + j) - new_max) * c);
        total = total + e;
        if (kv.int8) e = e * load(value_scale + j);
        store_bf16_quick(wr + j, e);
      }
      row_max[r] = new_max;
      row_sum[r] = row_sum[r] * a + sum(total);
      if (a != 1.0f)
        for (size_t p = 0; p < pp; p += 16) store(out + r * pp + p, load(out + r * pp + p) * a);
    }
    size_t num_next = runs_of(it, begin + kKeyStep, next_runs);
    if (rows <= 16) {
      const AttendItem* after = num_next ? nullptr : it.next;
      Run theirs[kKeyStep / 32];
      ahead.num = after ? runs_of(*after, after->key_begin, theirs) : num_next;
      for (size_t i = 0; i < ahead.num; ++i) ahead.runs[i] = (after ? theirs : next_runs)[i].keys;
    }
    const uint16_t* values[kKeyStep / 32];
    if (kv.int8) {
      for (size_t i = 0; i < num; ++i) {
        values[0] = widened_run(runs[i].values);
        Tier::values(rows, w + 32 * i, values, 1, pp, out, [&](size_t, size_t part) { ahead.fetch(i, num, part, parts); });
      }
    } else {
      for (size_t i = 0; i < num; ++i) values[i] = reinterpret_cast<const uint16_t*>(runs[i].values);
      Tier::values(rows, w, values, num, pp, out, [&](size_t i, size_t part) { ahead.fetch(i, num, part, parts); });
    }
    std::copy(next_runs, next_runs + num_next, runs);
    num = num_next;
  }
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
