// SPDX-License-Identifier: Apache-2.0
// Custom calls of XLA on the CPU, for attentile.jax. Built where jaxlib's headers are found.
#pragma once

#include <nanobind/nanobind.h>

namespace attentile::python {

// Adds jax_handlers() to the module: a dict of capsules by name, for jax.ffi.register_ffi_target.
void bind_jax(nanobind::module_& module);

}  // namespace attentile::python
