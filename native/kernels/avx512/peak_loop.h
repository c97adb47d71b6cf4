// The peak loop of an instruction that multiplies and adds 64-byte vectors.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace trivet {
namespace {

// Two units of latency 4 or 5 need ten chains; there are twelve, and each number from L1 is used twice, since two loads a
// cycle would only just do. In assembly, since GCC 12 copies or spills the accumulators of the intrinsics. One step reads
// 384 bytes at %15.
constexpr size_t kSteps = 40;  // 15 KiB a round

#define CHAINS(op, i, j, offset)               \
  "vmovdqa64 " #offset "(%15), %12\n\t"        \
  op " %12, %13, %" #i "\n\t"                  \
  op " %12, %14, %" #j "\n\t"
#define STEP(op)                                                                                              \
  CHAINS(op, 0, 1, 0) CHAINS(op, 2, 3, 64) CHAINS(op, 4, 5, 128)                                              \
  CHAINS(op, 6, 7, 192) CHAINS(op, 8, 9, 256) CHAINS(op, 10, 11, 320)

#define PEAK_LOOP(name, op, operations_per_vector)                                                            \
  double name(size_t rounds, uint8_t* scratch) {                                                              \
    const __m512i a = _mm512_load_si512(scratch), b = _mm512_load_si512(scratch + 64);                        \
    __m512i s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{}, loaded;                 \
    for (size_t r = 0; r < rounds; ++r)                                                                       \
      for (size_t k = 0; k < kSteps; ++k)                                                                     \
        asm volatile(STEP(op)                                                                                 \
                     : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7),        \
                       "+v"(s8), "+v"(s9), "+v"(s10), "+v"(s11), "=&v"(loaded)                                \
                     : "v"(a), "v"(b), "r"(scratch + 384 * k)                                                 \
                     : "memory");                                                                             \
    const __m512i sums[] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11};                                \
    for (size_t i = 0; i < 12; ++i) _mm512_store_si512(scratch + 64 * i, sums[i]);                            \
    return static_cast<double>(rounds) * kSteps * 12 * operations_per_vector;                                 \
  }

}  // namespace
}  // namespace trivet
