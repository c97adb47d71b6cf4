// Peak loops of the avx512 tier: VNNI for int8, float FMA for bf16 (its bf16 kernels widen to float).
#include <immintrin.h>

#include "kernels/common/read_streams.h"
#include "kernels/peaks.h"

namespace trivet {
namespace {

struct Vec {
  __m512i v;
  static Vec load(const uint8_t* p) { return {_mm512_load_si512(p)}; }
  void operator^=(Vec other) { v = _mm512_xor_si512(v, other.v); }
  uint64_t fold() const {
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, v);
    return words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ words[5] ^ words[6] ^ words[7];
  }
};

// Two units of latency 4 or 5 need ten chains; there are twelve. In assembly, since GCC 12 copies or spills the
// accumulators of the intrinsics. One step reads 768 bytes at %13.
constexpr size_t kSteps = 20;  // 15 KiB a round

#define CHAIN(op, i, offset) op " " #offset "(%13), %12, %" #i "\n\t"
#define STEP(op)                                                                                              \
  CHAIN(op, 0, 0) CHAIN(op, 1, 64) CHAIN(op, 2, 128) CHAIN(op, 3, 192) CHAIN(op, 4, 256) CHAIN(op, 5, 320)    \
  CHAIN(op, 6, 384) CHAIN(op, 7, 448) CHAIN(op, 8, 512) CHAIN(op, 9, 576) CHAIN(op, 10, 640) CHAIN(op, 11, 704)

#define PEAK_LOOP(name, op, operations_per_vector)                                                            \
  double name(size_t rounds, uint8_t* scratch) {                                                              \
    const __m512i a = _mm512_load_si512(scratch);                                                             \
    __m512i s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{};                         \
    for (size_t r = 0; r < rounds; ++r)                                                                       \
      for (size_t k = 0; k < kSteps; ++k)                                                                     \
        asm volatile(STEP(op)                                                                                 \
                     : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7),        \
                       "+v"(s8), "+v"(s9), "+v"(s10), "+v"(s11)                                               \
                     : "v"(a), "r"(scratch + 768 * k)                                                         \
                     : "memory");                                                                             \
    const __m512i sums[] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11};                                \
    for (size_t i = 0; i < 12; ++i) _mm512_store_si512(scratch + 64 * i, sums[i]);                            \
    return static_cast<double>(rounds) * kSteps * 12 * operations_per_vector;                                 \
  }

PEAK_LOOP(int8, "vpdpbusd", 128)
PEAK_LOOP(f32, "vfmadd231ps", 32)

}  // namespace

PeakLoops avx512_peaks() { return {int8, f32, read_streams<Vec>}; }

}  // namespace trivet
