// Inside the avx512_bf16 tier only.
#pragma once

#include "trivet/kernels.h"

namespace trivet::avx512_bf16 {
void linear_bf16(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
}  // namespace trivet::avx512_bf16
