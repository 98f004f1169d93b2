// SPDX-License-Identifier: Apache-2.0
// Plans for tensors that are here, or nowhere yet, as if they lay in a GPU's memory.
#pragma once

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "cli/arguments.h"
#include "cli/facts.h"
#include "cli/tensors.h"
#include "cuda/plan.h"

namespace attentile::cli {

// The options of a call on a device: with the longest sequences, which the library does not look
// for in device memory.
AttentionOptions device_options(const CallTensors& call, AttentionOptions options);

// The library's plan for the device at hand; visible pairs as the lengths here say.
Plan plan_on_device(const CallTensors& call, const AttentionOptions& options, bool backward);

// A GPU by name, at hand or not.
struct Gpu {
  std::string name;
  cuda::DeviceLimits limits;
  int32_t architecture = 80;
  double peak_flops = 0;      // of 16-bit products on tensor cores, by the data sheet
  double peak_flops_f32 = 0;  // of float32, which tensor cores do not compute
  double bytes_per_s = 0;     // of device memory

  double peak_flops_of(DType dtype) const {
    return dtype == DType::kFloat32 ? peak_flops_f32 : peak_flops;
  }
};
void declare_gpu(Arguments& arguments);
std::optional<Gpu> read_gpu(const Arguments& arguments);

// What a call would launch on it, and what it has to do at least.
struct GpuPass {
  const char* name;
  cuda::DevicePlan plan;
  double flops = 0;       // useful ones
  double bytes = 0;       // every tensor once
  double peak_flops = 0;  // of its dtype
  std::string note;       // what was asked for and is not done; empty: nothing
};
std::vector<GpuPass> plan_for_gpu(const Gpu& gpu, const CallTensors& call,
                                  const AttentionOptions& options, bool backward);
Json gpu_facts(const Gpu& gpu, const std::vector<GpuPass>& passes);
void print_gpu(std::FILE* out, const Gpu& gpu, const std::vector<GpuPass>& passes);

}  // namespace attentile::cli
