// SPDX-License-Identifier: Apache-2.0
// The extension module attentile._core: what Python calls of the library, and nothing else. Shapes,
// defaults and results are Python's matter (attentile/_arrays.py, attentile/torch); see call.h for
// the order of tensors.
#include <nanobind/nanobind.h>

#include "attentile/attention.h"
#include "attentile/version.h"
#include "call.h"
#include "cpu/cpu_info.h"
#include "cpu/executor.h"
#include "cpu/peak.h"
#include "cuda/backend.h"
#include "openmp.h"
#include "options.h"
#ifdef ATTENTILE_HAVE_JAX
#include "jax.h"
#endif

namespace attentile::python {
namespace {

namespace nb = nanobind;

constexpr const char* kDTypes[] = {"float32", "float64", "float16", "bfloat16"};
constexpr DType kDTypeValues[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16,
                                  DType::kBFloat16};

nb::list measured_peaks(int threads) {
  nb::list peaks;
  for (Isa isa : available_isas()) {
    for (size_t i = 0; i < std::size(kDTypes); ++i) {
      nb::dict peak;
      peak["isa"] = to_string(isa);
      peak["dtype"] = kDTypes[i];
      peak["gflops_1_thread"] = cpu::measure_peak_gflops(isa, kDTypeValues[i], 1);
      peak["gflops"] = cpu::measure_peak_gflops(isa, kDTypeValues[i], threads);
      peak["product_gflops_1_thread"] = cpu::measure_product_gflops(isa, kDTypeValues[i], 1);
      peak["product_gflops"] = cpu::measure_product_gflops(isa, kDTypeValues[i], threads);
      peaks.append(peak);
    }
  }
  return peaks;
}

nb::dict machine_facts(bool measure) {
  const cpu::CpuInfo cpu = cpu::cpu_info();
  nb::list isas;
  for (Isa isa : available_isas()) isas.append(to_string(isa));
  nb::dict facts;
  facts["version"] = ATTENTILE_VERSION;
  facts["cpu"] = cpu.model;
  facts["cores"] = cpu.cores;
  facts["usable_cores"] = cpu::usable_cores();
  facts["l1d_bytes"] = cpu.l1d_bytes;
  facts["l2_bytes"] = cpu.l2_bytes;
  facts["l3_bytes"] = cpu.l3_bytes;
  facts["isas"] = isas;
  facts["devices"] = cuda::backend().ok() ? nb::make_tuple("cpu", "cuda") : nb::make_tuple("cpu");
  if (measure) facts["peaks"] = measured_peaks(cpu::usable_cores());
  return facts;
}

}  // namespace

NB_MODULE(_core, module) {
  nb::set_leak_warnings(false);  // frameworks keep functions until after the interpreter's end
  module.attr("__version__") = ATTENTILE_VERSION;
  bind_errors(module);
  nb::class_<Options>(module, "Options", "Scalars of a call, made from keywords; immutable.")
      .def("__init__",
           [](Options* self, nb::kwargs keywords) { new (self) Options(make_options(keywords)); });
  module.def("forward", forward, nb::arg("tensors"), nb::arg("options"),
             nb::arg("num_threads").none(), nb::arg("progress").none());
  module.def("backward", backward, nb::arg("tensors"), nb::arg("gradients"), nb::arg("options"),
             nb::arg("num_threads").none(), nb::arg("progress").none());
  module.def("merge", merge, nb::arg("parts"), nb::arg("result"), nb::arg("heads_second"),
             nb::arg("num_threads").none());
  module.def("plan", plan, nb::arg("tensors"), nb::arg("gradients").none(), nb::arg("options"),
             nb::arg("num_threads").none());
  module.def("use_openmp", use_openmp, nb::arg("path"));
  module.def("machine_facts", machine_facts, nb::arg("measure"));
#ifdef ATTENTILE_HAVE_JAX
  bind_jax(module);
#endif
}

}  // namespace attentile::python
