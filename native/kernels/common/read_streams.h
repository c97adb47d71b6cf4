// Reads memory in 1, 2 or 4 interleaved streams. Included by each tier's peak.cc with its own vector type.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivet {
namespace {  // a tier's flags must not leak through a shared inline function

// Vec has load(p), its own ^=, and fold().
template <class Vec, size_t Streams>
uint64_t read_interleaved(const uint8_t* data, size_t length) {
  constexpr size_t kAtOnce = 256 / sizeof(Vec);
  Vec sums[4] = {};
  for (size_t i = 0; i < length; i += 256)
    for (size_t s = 0; s < Streams; ++s)
      for (size_t v = 0; v < kAtOnce; ++v) sums[v % 4] ^= Vec::load(data + s * length + i + v * sizeof(Vec));
  uint64_t folded = 0;
  for (const Vec& sum : sums) folded ^= sum.fold();
  return folded;
}

template <class Vec>
uint64_t read_streams(const uint8_t* data, size_t length, size_t num_streams) {
  if (num_streams == 4) return read_interleaved<Vec, 4>(data, length);
  if (num_streams == 2) return read_interleaved<Vec, 2>(data, length);
  return read_interleaved<Vec, 1>(data, length);
}

}  // namespace
}  // namespace trivet
