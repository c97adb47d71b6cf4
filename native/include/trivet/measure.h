// What this machine can do: bytes read from memory a second, and multiply-adds a second. The limits beside every speed.
#pragma once

#include <cstddef>
#include <string>

namespace trivet {

struct Bandwidth {
  double best;          // bytes a second
  double by_streams[3];  // best of 5, with 1, 2 and 4 streams a thread
};

// Reads `num_bytes` of memory, five times a pattern, with num_threads threads of the pool; a stream is a run of
// consecutive bytes. Takes 1 GiB or more to be out of every cache. False: there was no memory for it.
bool measure_bandwidth(size_t num_bytes, int num_threads, Bandwidth* out);

enum class PeakKind { kInt8, kBf16 };

// Operations a second (a multiply-add is two) of the kernels' innermost loop in tier `isa`, fed from L1, best of 5 runs
// of some 10 ms: tiles for amx; for avx512 VNNI (int8) and float FMA (what its bf16 kernels use); for avx2
// 16-bit pairs (int8) and float FMA; SSE2 for baseline.
// 0: this CPU or this build has no such tier.
double measure_peak(PeakKind kind, const std::string& isa, int num_threads);

}  // namespace trivet
