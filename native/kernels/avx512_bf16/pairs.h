// Products of bf16 by vdpbf16ps, which adds two products to each lane: first that of the odd k, then that of the even one,
// each rounded once. So a sum runs through K in pairs, k + 1 before k, in one chain: other bits than a tile's, which is why
// this tier has a twin of its own (baseline_pairs) and a name of its own in the fingerprint.
//
// Twice the work an instruction of what float fma does, and nothing has to be widened. Denormals count as zero whatever the
// thread has set; results are those of FlushDenormals.
#pragma once

#include <immintrin.h>

#include "kernels/common/vec.h"
#include "trivet/kernels.h"

namespace trivet {
namespace {

// acc + a pair of each lane times another. In assembly, since GCC 12 copies the accumulator of the intrinsic around; and by
// value, or it keeps the sums in memory.
TRIVET_INLINE __m512 add_pairs(__m512 acc, __m512i pairs, __m512i x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(pairs), "v"(x));
  return acc;
}
TRIVET_INLINE __m512i pair_of(const uint16_t* x) {
  int32_t both;
  __builtin_memcpy(&both, x, 4);
  return _mm512_set1_epi32(both);
}

// done(r, q, sum) for R rows and Q columns of lanes, where sum is start(r, q) and, in order of i < num and j < 16, the pair
// a[r, 32 i + 2 j ..] times the sixteen pairs at(i, j, q).
template <int R, int Q, class Start, class At, class Done>
TRIVET_INLINE void chains(const uint16_t* a, size_t lda, size_t num, Start&& start, At&& at, Done&& done) {
  __m512 acc[R][Q];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) acc[r][q] = start(r, q);
  for (size_t i = 0; i < num; ++i)
#pragma GCC unroll 16
    for (size_t j = 0; j < 16; ++j) {
      __m512i v[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) v[q] = _mm512_loadu_si512(at(i, j, q));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i x = pair_of(a + size_t(r) * lda + 32 * i + 2 * j);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) acc[r][q] = add_pairs(acc[r][q], v[q], x);
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) done(r, q, acc[r][q]);
}

constexpr size_t kMostRows = 8;  // of a block with two columns of lanes: sixteen sums in 32 registers

}  // namespace
}  // namespace trivet
