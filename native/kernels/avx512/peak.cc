// Peak loops of the avx512 tier: VNNI for int8, float FMA for bf16 (its bf16 kernels widen to float).
#include <immintrin.h>

#include "kernels/avx512/peak_loop.h"
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

PEAK_LOOP(int8, "vpdpbusd", 128)
PEAK_LOOP(f32, "vfmadd231ps", 32)

}  // namespace

PeakLoops avx512_peaks() { return {int8, f32, read_streams<Vec>}; }

}  // namespace trivet
