// Measurements of this machine: `trivet doctor` and the benchmarks print them beside every speed.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <new>
#include <stdexcept>

#include "trivet/cpu.h"
#include "trivet/measure.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

void check_threads(int num_threads) {
  if (num_threads < 1 || num_threads > 1023)
    throw std::invalid_argument("`num_threads` is " + std::to_string(num_threads) +
                                ", but it must be between 1 and 1023");
}

nb::dict measure_bandwidth(size_t num_bytes, int num_threads) {
  check_threads(num_threads);
  if (num_bytes == 0) throw std::invalid_argument("`num_bytes` is 0, but it must be 1 or more");
  trivet::Bandwidth result;
  bool measured;
  {
    nb::gil_scoped_release release;
    measured = trivet::measure_bandwidth(num_bytes, num_threads, &result);
  }
  if (!measured) throw std::bad_alloc();
  nb::dict by_streams, out;
  for (int i = 0; i < 3; ++i) by_streams[nb::int_(1 << i)] = result.by_streams[i] * 1e-9;
  out["gb_per_s"] = result.best * 1e-9;
  out["by_streams"] = by_streams;
  return out;
}

double measure_peak(const std::string& kind, int num_threads, const std::string& isa) {
  check_threads(num_threads);
  if (kind != "int8" && kind != "bf16")
    throw std::invalid_argument("`kind` is '" + kind + "', but it must be int8 or bf16");
  const std::string tier = isa.empty() ? trivet::isa() : isa;
  double rate;
  {
    nb::gil_scoped_release release;
    rate = trivet::measure_peak(kind == "int8" ? trivet::PeakKind::kInt8 : trivet::PeakKind::kBf16, tier, num_threads);
  }
  if (rate == 0) throw std::invalid_argument("`isa` is '" + tier + "', which this CPU or this build does not have");
  return rate;
}

}  // namespace

void bind_measure(nb::module_& m) {
  m.def("measure_bandwidth", &measure_bandwidth, "num_bytes"_a = size_t{1} << 30, "num_threads"_a = 1,
        "Memory read speed: {'gb_per_s': the best, 'by_streams': {1: .., 2: .., 4: ..}} in 10^9 bytes a second.\n\n"
        "Best of 5 for 1, 2 and 4 streams a thread. Takes `num_bytes` of memory and about a second a GiB.");
  m.def("measure_peak", &measure_peak, "kind"_a, "num_threads"_a = 1, "isa"_a = "",
        "Operations a second (a multiply-add is two) of the innermost loop for 'int8' or 'bf16', fed from L1, in tier\n"
        "`isa` (default: the one in use). Takes about 0.1 s.");
}
