// The loops behind measure_bandwidth and measure_peak, one set a tier. They do nothing of use, at full speed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivet {

constexpr size_t kPeakScratch = 36 * 1024;  // bytes a thread: fits L1 (48 KiB), 64-byte aligned, filled by the caller

struct PeakLoops {
  // Runs `rounds` rounds and returns how many operations that were; the result of the arithmetic ends in scratch.
  double (*int8)(size_t rounds, uint8_t* scratch);
  double (*bf16)(size_t rounds, uint8_t* scratch);
  // Reads num_streams runs of `length` bytes (a multiple of 256), `length` apart; what it returns needs them all.
  uint64_t (*read)(const uint8_t* data, size_t length, size_t num_streams);
};

PeakLoops baseline_peaks();
PeakLoops avx2_peaks();
PeakLoops avx512_peaks();
PeakLoops avx512_bf16_peaks();
PeakLoops amx_peaks();

}  // namespace trivet
