// SPDX-License-Identifier: Apache-2.0
// The table that a backend exports, written once over a Runtime: what a device can do by itself
// (gpu/runtime.h, emulator/runtime.h) and the two functions that start kernels.
#pragma once

#include "attentile/status.h"
#include "cuda/backend_table.h"
#include "cuda/backward_params.h"

namespace attentile::cuda {

template <class Runtime>
int32_t library_forward(DType dtype, const ForwardParams* params, void* stream, const Watch* watch,
                        Sentence* sentence);
template <class Runtime>
int32_t library_backward(DType dtype, const BackwardParams* params, void* stream,
                         const Watch* watch, Sentence* sentence);

template <class Runtime>
BackendTable make_table() {
  return {.version = kBackendVersion,
          .table_bytes = sizeof(BackendTable),
          .forward_params_bytes = sizeof(ForwardParams),
          .backward_params_bytes = sizeof(BackwardParams),
          .name = Runtime::kName,
          .device_count = Runtime::device_count,
          .device_info = Runtime::device_info,
          .current_device = Runtime::current_device,
          .set_device = Runtime::set_device,
          .allocate = Runtime::allocate,
          .release = Runtime::release,
          .copy_to_device = Runtime::copy_to_device,
          .copy_to_host = Runtime::copy_to_host,
          .synchronise = Runtime::synchronise,
          .forward = library_forward<Runtime>,
          .backward = library_backward<Runtime>,
          .allocate_on_stream = Runtime::allocate_on_stream,
          .release_on_stream = Runtime::release_on_stream};
}

}  // namespace attentile::cuda
