// vpdpbusd takes one unsigned operand.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// int8 rows with 128 added to each code, in `scratch` [num][spread_bytes(kp)]. Products with them have 128 * colsum too much.
TRIVET_INLINE Rows moved_up(const Rows& x, size_t kp, uint8_t* scratch) {
  const size_t stride = spread_bytes(kp);
  const __m512i high = _mm512_set1_epi8(int8_t(-128));
  for (size_t r = 0; r < x.num; ++r)
    for (size_t k = 0; k < kp; k += 64)
      _mm512_store_si512(scratch + r * stride + k, _mm512_xor_si512(_mm512_loadu_si512(x.at<uint8_t>(r) + k), high));
  return {x.num, stride, scratch, x.scales};
}

}  // namespace
}  // namespace trivet
