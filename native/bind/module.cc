// The Python module `trivet._core`. Each file under bind/ adds its part; no arithmetic lives here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "trivet/threads.h"

namespace nb = nanobind;

void bind_kernels(nb::module_& m);
void bind_step(nb::module_& m);
void bind_pack(nb::module_& m);
void bind_rope(nb::module_& m);
void bind_sample(nb::module_& m);
void bind_measure(nb::module_& m);

NB_MODULE(_core, m) {
  m.doc() = "Trivet's native core: kernels, one transformer step a call, packing, sampling, measuring.";
  m.def("allowed_threads", &trivet::allowed_threads,
        "Compute threads unless said: one for each core that the affinity mask and the CPU quota allow.");
  m.def("num_cores", &trivet::num_cores, nb::arg("cpus"), nb::arg("root") = "/sys/devices/system/cpu",
        "Cores that these CPUs lie on: two that are threads of one core count once.");
  m.def("cgroup_quota", &trivet::cgroup_quota, nb::arg("membership") = "/proc/self/cgroup", nb::arg("root") = "/sys/fs/cgroup",
        "CPUs that the quota of this process's cgroups, and of those above them, allows; 0: no quota.");
  bind_kernels(m);
  bind_step(m);
  bind_pack(m);
  bind_rope(m);
  bind_sample(m);
  bind_measure(m);
}
