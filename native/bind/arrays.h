// Array arguments of the bindings: exact dtype, C order, on the CPU, never converted.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

namespace nb = nanobind;

template <class T, size_t kDims>
using Array = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

[[noreturn]] inline void bad_value(const std::string& message) { throw nb::value_error(message.c_str()); }

inline void check(bool ok, const std::string& message) {
  if (!ok) bad_value(message);
}
