// vpdpbusd takes one unsigned operand.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// int8 rows with 128 added to each code, in `scratch` [num][Kp]. Products with them have 128 * colsum too much.
TRIVET_INLINE Rows moved_up(const Rows& x, uint8_t* scratch) {
  const __m512i high = _mm512_set1_epi8(int8_t(-128));
  const uint8_t* from = static_cast<const uint8_t*>(x.data);
  for (size_t i = 0; i < x.num * x.kp; i += 64)
    _mm512_store_si512(scratch + i, _mm512_xor_si512(_mm512_loadu_si512(from + i), high));
  return {x.num, x.kp, scratch, x.scales};
}

}  // namespace
}  // namespace trivet
