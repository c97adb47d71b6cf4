// Peak loops of the avx2 tier: 16-bit pairs for int8, as its int8 kernels compute, and float FMA for bf16. (int4 is
// computed in fewer instructions a product than int8, so it may pass the int8 figure.)
#include <immintrin.h>

#include "kernels/common/read_streams.h"
#include "kernels/peaks.h"

namespace trivet {
namespace {

struct Vec {
  __m256i v;
  static Vec load(const uint8_t* p) { return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p))}; }
  void operator^=(Vec other) { v = _mm256_xor_si256(v, other.v); }
  uint64_t fold() const {
    alignas(32) uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), v);
    return words[0] ^ words[1] ^ words[2] ^ words[3];
  }
};

// Two units of latency 4 or 5 need ten chains; there are twelve. In assembly, since GCC 12 copies or spills the
// accumulators of the intrinsics. One step reads 384 bytes at %14.
constexpr size_t kSteps = 40;  // 15 KiB a round

#define PAIRS(i, offset) "vpmaddwd " #offset "(%14), %13, %12\n\tvpaddd %12, %" #i ", %" #i "\n\t"
#define FMA(i, offset) "vfmadd231ps " #offset "(%14), %13, %" #i "\n\t"
#define STEP(chain)                                                                                              \
  chain(0, 0) chain(1, 32) chain(2, 64) chain(3, 96) chain(4, 128) chain(5, 160)                                 \
  chain(6, 192) chain(7, 224) chain(8, 256) chain(9, 288) chain(10, 320) chain(11, 352)

#define PEAK_LOOP(name, chain, operations_per_vector)                                                            \
  double name(size_t rounds, uint8_t* scratch) {                                                                 \
    const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(scratch));                              \
    __m256i s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{}, product;                   \
    for (size_t r = 0; r < rounds; ++r)                                                                          \
      for (size_t k = 0; k < kSteps; ++k)                                                                        \
        asm volatile(STEP(chain)                                                                                 \
                     : "+x"(s0), "+x"(s1), "+x"(s2), "+x"(s3), "+x"(s4), "+x"(s5), "+x"(s6), "+x"(s7),           \
                       "+x"(s8), "+x"(s9), "+x"(s10), "+x"(s11), "=&x"(product)                                  \
                     : "x"(a), "r"(scratch + 384 * k)                                                            \
                     : "memory");                                                                                \
    const __m256i sums[] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11};                                   \
    for (size_t i = 0; i < 12; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(scratch) + i, sums[i]);        \
    return static_cast<double>(rounds) * kSteps * 12 * operations_per_vector;                                    \
  }

PEAK_LOOP(int8, PAIRS, 32)
PEAK_LOOP(f32, FMA, 16)

}  // namespace

PeakLoops avx2_peaks() { return {int8, f32, read_streams<Vec>}; }

}  // namespace trivet
