// Packing of weights into the layout of docs/design/packed-layout.md. Runs once a model, on the pool.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trivet {

// The longest sum of products of int8 values, each at most 127, that int32 holds whatever the values: floor((2^31 - 1) /
// 127^2). int8 and int4 weights of more columns are refused.
constexpr size_t kMaxIntegerK = 133144;

enum class SourceType { kF32, kF16, kBF16 };

// One run of consecutive output rows: rows [row, row + num_rows) of the packed tensor come from `data` [num_rows, k]
// row-major; a null `data` means zeros (pads, e.g. between gate and up panels).
struct RowSource {
  const void* data;
  SourceType type;
  size_t num_rows;
};

struct PackedParts {  // where the parts of one linear tensor go; unused ones are null
  void* codes;
  float* scales;
  int32_t* colsum;
  int8_t* multipliers;
};

// Each returns false if a source value is NaN or infinite (nothing of use was written then).
bool pack_bf16(const RowSource* sources, size_t num_sources, size_t k, const PackedParts& out, int num_threads);
bool pack_i8(const RowSource* sources, size_t num_sources, size_t k, const PackedParts& out, int num_threads);
// group, a multiple of 32, divides k. Round to nearest with a clip search and an integer multiplier a group, one scale a
// channel.
bool pack_i4(const RowSource* sources, size_t num_sources, size_t k, size_t group, const PackedParts& out,
             int num_threads);

}  // namespace trivet
