// Keys and values on their way into the cache. Inside a block keys lie as [block_size / 16][Pp / 2][16][2] and values as
// [block_size / 2][Pp][2], so tokens are woven: 16 of them for keys, two for values. Writing all tokens of a group
// at once fills whole cache lines.
#pragma once

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// NaN becomes 0, infinity the largest finite number.
TRIVET_INLINE vf finite(const vf& x) {
  const vi magnitude = as_int(x) & 0x7fffffff;
  const vi largest = (as_int(x) & int32_t(0x80000000)) | 0x7f7f0000;  // of bf16
  const vi kept = select(magnitude > 0x7f7f0000, largest, as_int(x));
  return as_float(select(magnitude > 0x7f800000, vi{}, kept));
}

// int8 codes of one token, and their scale.
template <class X>
TRIVET_INLINE float codes_of(const X* x, size_t p, int8_t* out) {
  vf m{};
  for (size_t i = 0; i < p; i += 16) m = max(m, abs(finite(p - i >= 16 ? load(x + i) : load_first(x + i, p - i))));
  const float most = max_lane(m), absmax = most < 3.0e38f ? most : 3.0e38f;
  const float inverse = absmax > 1e-30f ? 127.0f / absmax : 0.0f;
  for (size_t i = 0; i < p; i += 16) {
    const vf q = finite(p - i >= 16 ? load(x + i) : load_first(x + i, p - i)) * inverse;
    const vf cut = max(min(q, splat(127.0f)), splat(-127.0f));
    const vb b = low_bytes(to_int(round_even(cut)));
    __builtin_memcpy(out + i, &b, 16);
  }
  return absmax / 127.0f;
}
template <class X>
TRIVET_INLINE void halves_of(const X* x, size_t p, uint16_t* out) {
  for (size_t i = 0; i < p; i += 16)
    store_bf16_quick(out + i, finite(p - i >= 16 ? load(x + i) : load_first(x + i, p - i)));
}

// Code: uint16_t (bf16) or int8_t; Pair: an integer of two codes. What `rows` tokens have at [token][kMaxHeadDim] goes to
// its slots.
template <class Code, class Pair>
TRIVET_INLINE void weave(const KvRows& r, const Code* keys, const Code* values) {
  Code* to = reinterpret_cast<Code*>(r.block);
  Code* k = to + r.in_block / 16 * 16 * r.pp + r.in_block % 16 * 2;
  for (size_t i = 0; i < r.p; i += 2, k += 32)
    for (size_t t = 0; t < r.num; ++t) __builtin_memcpy(k + 2 * t, keys + t * kMaxHeadDim + i, sizeof(Pair));
  for (size_t t = 0; t < r.num;) {
    const size_t slot = r.in_block + t;
    Code* v = to + (r.block_size + slot / 2 * 2) * r.pp;
    const Code* a = values + t * kMaxHeadDim;
    if (slot % 2 == 0 && t + 1 < r.num) {
      const Code* b = a + kMaxHeadDim;
      for (size_t i = 0; i < r.p; ++i) {
        v[2 * i] = a[i];
        v[2 * i + 1] = b[i];
      }
      t += 2;
    } else {
      for (size_t i = 0; i < r.p; ++i) v[2 * i + slot % 2] = a[i];
      t += 1;
    }
  }
}

void write_kv(const KvRows& r) {
  if (!r.int8) {
    alignas(64) uint16_t keys[16 * kMaxHeadDim], values[16 * kMaxHeadDim];
    for (size_t t = 0; t < r.num; ++t) {
      halves_of(r.keys + t * r.key_ld, r.p, keys + t * kMaxHeadDim);
      halves_of(r.values + t * r.value_ld, r.p, values + t * kMaxHeadDim);
    }
    weave<uint16_t, uint32_t>(r, keys, values);
    return;
  }
  alignas(64) int8_t keys[16 * kMaxHeadDim], values[16 * kMaxHeadDim];
  float* scales = reinterpret_cast<float*>(r.block + 2 * r.block_size * r.pp);
  for (size_t t = 0; t < r.num; ++t) {
    scales[r.in_block + t] = codes_of(r.keys + t * r.key_ld, r.p, keys + t * kMaxHeadDim);
    scales[r.block_size + r.in_block + t] = codes_of(r.values + t * r.value_ld, r.p, values + t * kMaxHeadDim);
  }
  weave<int8_t, uint16_t>(r, keys, values);
}

}  // namespace
}  // namespace trivet
