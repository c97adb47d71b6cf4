// Attention of one work item, written once; a tier supplies the product of bf16 tiles.
//
// For each step of kKeyStep keys at fixed multiples of position (rows r, keys j, widths p):
//   s[r, j] = q[r] . k[j]                   bf16 products in the order of tdpbf16ps; int8 keys: times their key's scale
//   keys past position[r]: s = -inf
//   m' = max(m, max_j s); a = 2^((m - m') c); w[r, j] = 2^((s[r, j] - m') c), where c = scale * log2(e)
//   l = l * a + sum_j w[r, j]               16 lanes, in order of j, then one tree
//   o[r] = o[r] * a + w[r] . v              w rounded to bf16 (int8 values: after the factor of the key's value scale);
//                                           the product is added 32 keys at a time
// What is given back as a maximum is m c, so that partials merge without the scale.
// A step that a row does not see at all leaves it as it was, bit for bit (a = 1, w = 0), so a row's result depends
// on its own position alone and not on the rows beside it.
#pragma once

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// bf16 from int8, exactly: 32 values.
TRIVET_INLINE void widen(const int8_t* in, uint16_t* out) {
  for (int h = 0; h < 2; ++h) {
    vb b;
    __builtin_memcpy(&b, in + 16 * h, 16);
    const vf f = to_float(widened(b));
    const vh v = low_halves((vu)as_int(f) >> 16);
    __builtin_memcpy(out + 16 * h, &v, 32);
  }
}

// The two products of attention from one that chains tiles: c[r, 0..15] (+)= sum over i < num of a[r, 32 i ..] . b[i],
// with rows of a and c at lda and ldc, and 16 rows of 32 numbers of b[i] at ldb; kAdd: the chain begins with c, else with
// 0. Rows up to the next multiple of 4 may be computed. Chain: struct with
//   template <bool kAdd> static void chain(size_t rows, const uint16_t* a, size_t lda, const uint16_t* const* b, size_t num, size_t ldb, float* c, size_t ldc)
template <class Chain>
struct TileProducts {
  static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* const* keys, size_t groups, float* s) {
    for (size_t g = 0; g < groups; ++g) {
      const uint16_t* chunk[8];
      for (size_t i = 0; i < pp / 32; ++i) chunk[i] = keys[g] + i * 512;
      Chain::template chain<false>(rows, q, pp, chunk, pp / 32, 32, s + 16 * g, kKeyStep);
    }
  }
  static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o) {
    for (size_t p = 0; p < pp; p += 16) {
      const uint16_t* run[kKeyStep / 32];
      for (size_t i = 0; i < runs; ++i) run[i] = vals[i] + 2 * p;
      Chain::template chain<true>(rows, w, kKeyStep, run, runs, 2 * pp, o + p, pp);
    }
  }
};

// Tier: struct with
//   static void scores(size_t rows, const uint16_t* q, size_t pp, const uint16_t* const* keys, size_t groups, float* s);
//     s[r * kKeyStep + 16 g + c] = q[r] . keys[g][:, c], keys[g] is bf16 [Pp/2][16][2]; at least `rows` rows
//   static void values(size_t rows, const uint16_t* w, const uint16_t* const* vals, size_t runs, size_t pp, float* o);
//     o[r * pp + p] += sum over runs of 32 keys, vals[i] is bf16 [16][Pp][2]; w is [kQueryTile][kKeyStep]
template <class Tier>
void attend_item(const AttendItem& it, float* out, float* row_max, float* row_sum, uint8_t* scratch) {
  const KvView& kv = it.kv;
  const size_t pp = kv.pp, rows = it.num_rows;
  float* s = reinterpret_cast<float*>(scratch);                                     // [kQueryTile][kKeyStep]
  uint16_t* w = reinterpret_cast<uint16_t*>(scratch + kQueryTile * kKeyStep * 4);   // [kQueryTile][kKeyStep]
  uint16_t* wide_k = reinterpret_cast<uint16_t*>(scratch + kQueryTile * kKeyStep * 6);  // [kKeyStep * Pp] int8 only
  uint16_t* wide_v = wide_k + kKeyStep * pp;
  const float c = it.scale * kLog2E;
  float key_scale[kKeyStep], value_scale[kKeyStep];
  const uint16_t* keys[kKeyStep / 16];
  const uint16_t* values[kKeyStep / 32];

  std::memset(w, 0, kQueryTile * kKeyStep * 2);
  for (size_t r = 0; r < rows; ++r) {
    row_max[r] = -__builtin_inff();
    row_sum[r] = 0;
  }
  std::memset(out, 0, kQueryTile * pp * 4);

  for (size_t begin = it.key_begin; begin < it.key_end; begin += kKeyStep) {
    // Keys of this step, in runs of 32; runs past key_end are not touched.
    const size_t runs = (it.key_end - begin + 31) / 32 < kKeyStep / 32 ? (it.key_end - begin + 31) / 32 : kKeyStep / 32;
    for (size_t i = 0; i < runs; ++i) {
      const size_t key = begin + 32 * i, in_block = key % kv.block_size;
      const uint8_t* block = kv.base + size_t(it.block_table[key / kv.block_size]) * kv.block_stride;
      if (!kv.int8) {
        const uint16_t* k = reinterpret_cast<const uint16_t*>(block);
        keys[2 * i] = k + in_block * pp;
        keys[2 * i + 1] = k + (in_block + 16) * pp;
        values[i] = k + (kv.block_size + in_block) * pp;
      } else {
        const int8_t* k = reinterpret_cast<const int8_t*>(block);
        const float* scales = reinterpret_cast<const float*>(k + 2 * kv.block_size * pp);
        for (size_t j = 0; j < 32 * pp; j += 32) {
          widen(k + in_block * pp + j, wide_k + 32 * i * pp + j);
          widen(k + (kv.block_size + in_block) * pp + j, wide_v + 32 * i * pp + j);
        }
        std::memcpy(key_scale + 32 * i, scales + in_block, 128);
        std::memcpy(value_scale + 32 * i, scales + kv.block_size + in_block, 128);
        keys[2 * i] = wide_k + 32 * i * pp;
        keys[2 * i + 1] = wide_k + (32 * i + 16) * pp;
        values[i] = wide_v + 32 * i * pp;
      }
    }
    Tier::scores(rows, it.q, pp, keys, 2 * runs, s);
    for (size_t r = 0; r < rows; ++r) {
      const int64_t visible = int64_t(it.position[r]) + 1 - int64_t(begin);  // keys of this step that the row sees
      float* row = s + r * kKeyStep;
      uint16_t* wr = w + r * kKeyStep;
      const size_t seen = visible <= 0 ? 0 : visible < int64_t(32 * runs) ? (size_t(visible) + 15) / 16 * 16 : 32 * runs;
      if (seen < 32 * runs) std::memset(wr + seen, 0, 2 * (32 * runs - seen));
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
      const float old_max = row_max[r], new_max = old_max > step_max ? old_max : step_max;
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
    Tier::values(rows, w, values, runs, pp, out);
  }
  for (size_t r = 0; r < rows; ++r) row_max[r] = row_max[r] * c;
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
