// Keys and values on their way into the cache. Inside a block keys lie as [block_size / 16][Pp / n][16][n] and values as
// [block_size / n][Pp][n], n = 2 for bf16 and 4 for int8, so tokens are woven: 16 of them for keys, n for values. Writing all
// tokens of a group at once fills whole cache lines. A group may belong to two threads, so nothing beside a token is written.
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

// int8 codes of one token, moved up by 128, and their scale.
template <class X>
TRIVET_INLINE float codes_of(const X* x, size_t p, uint8_t* out) {
  vf m{};
  for (size_t i = 0; i < p; i += 16) m = max(m, abs(finite(p - i >= 16 ? load(x + i) : load_first(x + i, p - i))));
  const float most = max_lane(m), absmax = most < 3.0e38f ? most : 3.0e38f;
  const float inverse = absmax > 1e-30f ? 127.0f / absmax : 0.0f;
  for (size_t i = 0; i < p; i += 16) {
    const vf q = finite(p - i >= 16 ? load(x + i) : load_first(x + i, p - i)) * inverse;
    const vf cut = max(min(q, splat(127.0f)), splat(-127.0f));
    const vb b = low_bytes(to_int(round_even(cut)) + 128);
    __builtin_memcpy(out + i, &b, 16);
  }
  return absmax / 127.0f;
}
template <class X>
TRIVET_INLINE void halves_of(const X* x, size_t p, uint16_t* out) {
  for (size_t i = 0; i < p; i += 16)
    store_bf16_quick(out + i, finite(p - i >= 16 ? load(x + i) : load_first(x + i, p - i)));
}

// What r.num tokens have at [token][kMaxHeadDim] goes to its slots.
template <class Code>
TRIVET_INLINE void weave(const KvRows& r, const Code* keys, const Code* values) {
  constexpr size_t n = 4 / sizeof(Code);
  Code* to = reinterpret_cast<Code*>(r.block);
  Code* k = to + r.in_block / 16 * 16 * r.pp + r.in_block % 16 * n;
  for (size_t i = 0; i < r.p; i += n, k += 16 * n)
    for (size_t t = 0; t < r.num; ++t) __builtin_memcpy(k + n * t, keys + t * kMaxHeadDim + i, 4);
  for (size_t t = 0; t < r.num;) {
    const size_t slot = r.in_block + t;
    Code* v = to + (r.block_size + slot / n * n) * r.pp;
    const Code* a = values + t * kMaxHeadDim;
    if (slot % n == 0 && t + n <= r.num) {
      for (size_t i = 0; i < r.p; ++i)
        for (size_t e = 0; e < n; ++e) v[n * i + e] = a[e * kMaxHeadDim + i];
      t += n;
    } else {
      for (size_t i = 0; i < r.p; ++i) v[n * i + slot % n] = a[i];
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
    weave(r, keys, values);
    return;
  }
  alignas(64) uint8_t keys[16 * kMaxHeadDim], values[16 * kMaxHeadDim];
  float* scales = reinterpret_cast<float*>(r.block + 2 * r.block_size * r.pp);
  for (size_t t = 0; t < r.num; ++t) {
    scales[r.in_block + t] = codes_of(r.keys + t * r.key_ld, r.p, keys + t * kMaxHeadDim);
    scales[r.block_size + r.in_block + t] = codes_of(r.values + t * r.value_ld, r.p, values + t * kMaxHeadDim);
  }
  weave(r, keys, values);
}

}  // namespace
}  // namespace trivet
