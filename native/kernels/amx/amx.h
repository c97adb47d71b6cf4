// Inside the amx tier only.
#pragma once

#include <cstdint>
#include <type_traits>

#include "trivet/kernels.h"

namespace trivet {
// What was stored is in memory from here on: to the compiler a tile load reads nothing, so it might store later.
inline void stored() { asm volatile("" : : : "memory"); }
}  // namespace trivet

#define TRIVET_INLINE_MEMBER [[gnu::always_inline]] inline

namespace trivet::amx {

void linear_i8(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_i4(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_bf16(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);

}  // namespace trivet::amx
