// The part of a kernel table that is the same source in every tier.
#pragma once

#include "kernels/common/attention.h"
#include "kernels/common/elementwise.h"
#include "kernels/common/kv_write.h"
#include "kernels/common/quantize_int4.h"

namespace trivet {
namespace {

template <class Halves, class Codes>
Kernels make_table(const char* name, LinearFn bf16, LinearFn i8, LinearFn i4) {
  return {name, {bf16, i8, i4}, attend_item<Halves, Codes>, merge_partials, rms_norm, quantize<float>, quantize<uint16_t>,
          to_bf16, turn<float>, turn<uint16_t>, divide, write_kv, quantize_int4};
}

}  // namespace
}  // namespace trivet
