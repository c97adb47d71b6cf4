// Products for more rows than a few, for CPUs without tiles: see many_rows.cc.
#pragma once

#include "trivet/kernels.h"

namespace trivet::avx512 {
void many_rows_i8(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void many_rows_i4(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void many_rows_bf16(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
}  // namespace trivet::avx512
