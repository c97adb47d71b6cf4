// Peak loops of the avx512_bf16 tier: those of avx512, but for bf16.
#include "kernels/avx512/peak_loop.h"
#include "kernels/peaks.h"

namespace trivet {
namespace {

PEAK_LOOP(bf16, "vdpbf16ps", 64)

}  // namespace

PeakLoops avx512_bf16_peaks() { return {avx512_peaks().int8, bf16, avx512_peaks().read}; }

}  // namespace trivet
