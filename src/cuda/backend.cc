// SPDX-License-Identifier: Apache-2.0
#include "cuda/backend.h"

#include <atomic>
#include <string>

#include "cpu/traffic.h"
#include "cuda/load.h"
#include "cuda/make_backward_params.h"

namespace attentile::cuda {
namespace {

Status told(int32_t code, const Sentence& sentence) {
  return code == 0 ? Status() : Status(static_cast<StatusCode>(code), sentence.text);
}

// num_sms and shared_bytes_per_block of a device in one word; 0: not asked yet. A table is one of
// the process, so one row of words serves it.
constexpr int32_t kMostDevices = 64;
std::atomic<uint64_t> known_limits[kMostDevices];

// Starts the passes of a call in memory that is there.
Status start(const BackendTable& table, const Problem& problem, const DeviceLimits& limits,
             void* workspace, const ExecutionContext& context) {
  const Watch watch = {context.poll, context.poll_data};
  Sentence sentence;
  if (problem.backward) {
    const BackwardParams params = backward_params(problem, limits, workspace);
    return told(table.backward(problem.dtype, &params, context.stream, &watch, &sentence),
                sentence);
  }
  const ForwardParams params = forward_params(problem, limits, workspace);
  return told(table.forward(problem.dtype, &params, context.stream, &watch, &sentence), sentence);
}

// Pairs of queries and keys. The lengths lie in device memory: where index arrays give them, all
// that there could be.
int64_t count_pairs(const Problem& p) {
  const bool known = !p.varlen && p.cu_seqlens_q.data == nullptr &&
                     p.cu_seqlens_k.data == nullptr && p.seqused_k.data == nullptr &&
                     p.leftpad_k.data == nullptr;
  if (known) return cpu::count_visible_pairs(p);
  return p.total_q * p.num_heads_q * p.max_seqlen_k;
}

}  // namespace

const Result<const BackendTable*>& backend() {
  static const Result<const BackendTable*> found = load_first(library_candidates());
  return found;
}

Result<DeviceLimits> current_limits(const BackendTable& table) {
  Sentence sentence;
  int32_t device = 0;
  Status status = told(table.current_device(&device, &sentence), sentence);
  if (!status.ok()) return status;
  const bool remembered = device >= 0 && device < kMostDevices;
  DeviceLimits limits;
  const uint64_t word = remembered ? known_limits[device].load(std::memory_order_relaxed) : 0;
  if (word != 0) {
    limits.num_sms = static_cast<int32_t>(word >> 32);
    limits.shared_bytes_per_block = static_cast<int32_t>(word & 0xFFFFFFFFu);
    return limits;
  }
  DeviceInfo info;
  status = told(table.device_info(device, &info, &sentence), sentence);
  if (!status.ok()) return status;
  if (info.compute_capability < 80) {
    return Status(StatusCode::kUnavailable, std::string("device: ") + info.name +
                                                " has compute capability " +
                                                std::to_string(info.compute_capability / 10) + "." +
                                                std::to_string(info.compute_capability % 10) +
                                                ", but the CUDA kernels need 8.0");
  }
  if (remembered) {
    known_limits[device].store(static_cast<uint64_t>(info.limits.num_sms) << 32 |
                                   static_cast<uint32_t>(info.limits.shared_bytes_per_block),
                               std::memory_order_relaxed);
  }
  return info.limits;
}

Status run(const BackendTable& table, const Problem& problem, const ExecutionContext& context) {
  const Result<DeviceLimits> limits = current_limits(table);
  if (!limits.ok()) return limits.status();
  if (Status status = check_problem(problem, *limits); !status.ok()) return status;
  if (context.traffic != nullptr) *context.traffic = {};
  const int64_t bytes = workspace_bytes(problem, *limits);
  if (context.workspace != nullptr && context.workspace_bytes < bytes) {
    return {StatusCode::kInvalidArgument,
            "workspace: has " + std::to_string(context.workspace_bytes) +
                " bytes, but this call needs " + std::to_string(bytes)};
  }
  if (bytes == 0 || context.workspace != nullptr) {
    return start(table, problem, *limits, context.workspace, context);
  }
  Sentence sentence;
  void* memory = nullptr;
  Status status =
      told(table.allocate_on_stream(bytes, context.stream, &memory, &sentence), sentence);
  if (!status.ok()) return status;
  status = start(table, problem, *limits, memory, context);
  const Status released =
      told(table.release_on_stream(memory, context.stream, &sentence), sentence);
  return status.ok() ? released : status;
}

Status run(const Problem& problem, const ExecutionContext& context) {
  const Result<const BackendTable*>& table = backend();
  return table.ok() ? run(**table, problem, context) : table.status();
}

Result<Plan> plan_call(const Problem& problem, const DeviceLimits& limits) {
  const Result<DevicePlan> device_plan = make_plan(problem, limits);
  if (!device_plan.ok()) return device_plan.status();
  Plan plan;
  plan.device = Device::kCuda;
  plan.backward = problem.backward;
  plan.algorithm = problem.algorithm;
  plan.visible_pairs = count_pairs(problem);
  const double width = problem.backward ? 3.0 * problem.head_dim + 2.0 * problem.head_dim_v
                                        : 1.0 * problem.head_dim + problem.head_dim_v;
  plan.flops = 2.0 * width * static_cast<double>(plan.visible_pairs);
  plan.workspace_bytes = device_plan->workspace_bytes;
  int64_t largest = -1;  // the kernel that the products are in has the most shared memory
  for (const LaunchPlan& launch : device_plan->launches) {
    plan.notes.push_back(launch.kernel + ": " + std::to_string(launch.blocks) + " blocks of " +
                         std::to_string(launch.threads) + " threads with " +
                         std::to_string(launch.shared_bytes) + " bytes of shared memory");
    if (launch.shared_bytes <= largest) continue;
    largest = launch.shared_bytes;
    plan.kernel = launch.kernel;
    plan.tile_m = launch.tile_m;
    plan.tile_n = launch.tile_n;
    plan.num_tasks = launch.blocks;
  }
  if (problem.backward && problem.atomic_dq && why_ordered_dq(problem) != nullptr) {
    plan.notes.push_back(std::string("atomic_dq: not used: ") + why_ordered_dq(problem));
  }
  return plan;
}

Result<Plan> plan_call(const Problem& problem) {
  const Result<const BackendTable*>& table = backend();
  if (!table.ok()) return table.status();
  const Result<DeviceLimits> limits = current_limits(**table);
  return limits.ok() ? plan_call(problem, *limits) : limits.status();
}

}  // namespace attentile::cuda
