// The tables that dispatch.cc chooses from; each is defined in its tier's folder.
#pragma once

#include "trivet/kernels.h"

namespace trivet {

Kernels baseline_table();
Kernels baseline_pairs_table();  // bf16 sums in the order of vdpbf16ps: the twin of avx512_bf16
Kernels avx2_table();
Kernels avx512_table();
Kernels avx512_bf16_table();
Kernels amx_table();
void amx_tiles_begin();
void amx_tiles_end();

namespace avx2 {
void linear_i8(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_i4(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_bf16(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
}  // namespace avx2

namespace avx512 {  // few-row products that the amx tier uses as well
void linear_i8(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_i4(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
void linear_bf16(const Linear&, const Rows&, size_t, size_t, const Output&, uint8_t*);
}  // namespace avx512

}  // namespace trivet
