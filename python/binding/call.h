// SPDX-License-Identifier: Apache-2.0
// Calls of the library from Python: tensors read from their tuples, the interpreter's lock given
// back, Ctrl-C and the caller's progress function asked for on the way, Status made an exception.
#pragma once

#include <nanobind/nanobind.h>

#include "options.h"

namespace attentile::python {

// Tensors come in tuples whose order is told in call.cc; a shorter tuple leaves out its end, None
// is an absent tensor.
void forward(nanobind::tuple tensors, const Options& options, nanobind::handle num_threads,
             nanobind::object progress);
void backward(nanobind::tuple tensors, nanobind::tuple gradients, const Options& options,
              nanobind::handle num_threads, nanobind::object progress);
// parts: (out, lse) pairs; result: one more. layout as of Options.
void merge(nanobind::list parts, nanobind::tuple result, bool heads_second,
           nanobind::handle num_threads);
nanobind::dict plan(nanobind::tuple tensors, nanobind::object gradients, const Options& options,
                    nanobind::handle num_threads);

// Adds UnsupportedError to the module.
void bind_errors(nanobind::module_& module);

}  // namespace attentile::python
