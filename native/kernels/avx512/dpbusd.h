// One instruction that GCC 12 does not use well.
#pragma once

#include <immintrin.h>

#include "kernels/common/lanes.h"

namespace trivet {
namespace {

// acc += u8 . s8 by fours. In assembly, since GCC 12 copies the accumulator of the intrinsic around at every use.
TRIVET_INLINE __m512i dpbusd(__m512i acc, __m512i u, __m512i s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
  return acc;
}

}  // namespace
}  // namespace trivet
