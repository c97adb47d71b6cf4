// Rows of a checkpoint's matrices as the packer reads them. Internal to packing.
#pragma once

#include <vector>

#include "trivet/pack.h"

namespace trivet {

constexpr size_t kPanel = 16;  // output rows of a panel

struct Row {
  const char* data;  // null: zeros
  SourceType type;
};

// The source rows one after another, followed by null rows up to a whole panel.
std::vector<Row> list_rows(const RowSource* sources, size_t num_sources, size_t k);

// out[0..k) = the row as float32; false if a value is NaN or infinite.
bool load_row(const Row& row, size_t k, float* out);

// out[0..k) = the row as bf16, nearest, half to even; false if a value is, or would become, NaN or infinite.
// `scratch` has room for k floats.
bool load_bf16_row(const Row& row, size_t k, float* scratch, uint16_t* out);

}  // namespace trivet
