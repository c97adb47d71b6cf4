// Inside the amx tier only.
#pragma once

#include <cstdint>
#include <type_traits>

#include "trivet/kernels.h"

namespace trivet::amx {

void linear_i8(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_i4(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_bf16(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);

}  // namespace trivet::amx
