// SPDX-License-Identifier: Apache-2.0
#include "cuda/plan.h"

#include <algorithm>

#include "cuda/backward_kernels.h"
#include "cuda/forward_kernels.h"
#include "cuda/kernel_name.h"
#include "cuda/kernel_type.h"
#include "cuda/make_backward_params.h"
#include "cuda/make_params.h"

namespace attentile::cuda {
namespace {

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid's first dimension
constexpr int64_t kMostRows = int64_t{1} << 52;          // of all heads and batch entries
constexpr int32_t kMostThreads = 1024;                   // of a block
constexpr int32_t kThreadsPerSm = 2048;
constexpr int32_t kBlocksPerSm = 32;
constexpr int64_t kReservedBytes = 1024;  // of shared memory, per block, by the system
constexpr int64_t kAlignment = 16;        // of the kernels' workspace

Status unsupported(const std::string& sentence) {
  return {StatusCode::kUnsupported, sentence};
}

template <class Kernel>
LaunchPlan plan_launch(int64_t blocks) {
  LaunchPlan launch = {.kernel = kernel_name<Kernel>(),
                       .blocks = blocks,
                       .threads = Kernel::kThreads,
                       .shared_bytes = Kernel::kSharedBytes};
  if constexpr (requires { Kernel::kTileM; }) launch.tile_m = Kernel::kTileM;
  if constexpr (requires { Kernel::kTileN; }) launch.tile_n = Kernel::kTileN;
  return launch;
}

// Visits the launches of a call as visit.template operator()<Kernel>(blocks), which says whether to
// go on.
template <class Visit>
void for_launches(const Problem& problem, const DeviceLimits& limits, Visit visit) {
  const auto one = [&]<class Kernel>(int64_t blocks, const auto&) {
    return visit.template operator()<Kernel>(blocks);
  };
  if (problem.backward) {
    const BackwardParams params = backward_params(problem, limits, nullptr);
    with_kernel_type(problem.dtype, [&]<class T>() { return backward_pass<T>(params, one); });
  } else {
    const ForwardParams params = forward_params(problem, limits, nullptr);
    with_kernel_type(problem.dtype, [&]<class T>() { return forward_pass<T>(params, one); });
  }
}

// Grids and workspaces are counted in int64, up to 1,100 times what is counted here.
Status check_amount(const Problem& p) {
  const int64_t longest = max64(p.varlen ? p.total_q : 0, max64(p.max_seqlen_q, p.max_seqlen_k));
  int64_t count = max64(longest, 1);
  bool many = __builtin_mul_overflow(count, max64(p.num_heads_q, 1), &count);
  many = __builtin_mul_overflow(count, max64(p.batch, 1), &count) || many;
  if (!many && count <= kMostRows) return {};
  return unsupported("q, k: the longest sequence or packed tensor, which is " +
                     std::to_string(longest) + ", x num_heads_q " + std::to_string(p.num_heads_q) +
                     " x batch " + std::to_string(p.batch) +
                     " is beyond 2^52, what a call on a GPU can have");
}

// Arrays that have no memory, of a plan or without elements, look like those that have.
Problem with_memory(Problem problem) {
  Problem& p = problem;
  for (Array4* array : {&p.q, &p.k, &p.v, &p.out, &p.dout, &p.dq, &p.dk, &p.dv, &p.lse, &p.dlse,
                        &p.bias, &p.dbias, &p.mask, &p.keep, &p.sink, &p.dsink, &p.alibi_slopes}) {
    if (array->present && array->data == nullptr) {
      array->data = reinterpret_cast<char*>(uintptr_t{kAlignment});
    }
  }
  // Without pages, or rows of the cache, there are no keys, whatever the index arrays say.
  if (p.batch_k == 0) p.max_seqlen_k = 0;
  return problem;
}

char* aligned(void* workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  return reinterpret_cast<char*>((address + kAlignment - 1) & ~uintptr_t{kAlignment - 1});
}

}  // namespace

int32_t LaunchPlan::blocks_per_sm(const DeviceLimits& limits) const {
  const int64_t shared = limits.shared_bytes_per_block + kReservedBytes;
  const int64_t by_shared = shared / (shared_bytes + kReservedBytes);
  return static_cast<int32_t>(
      std::min({by_shared, int64_t{kThreadsPerSm / threads}, int64_t{kBlocksPerSm}}));
}

Status check_launch(int64_t blocks, int32_t threads, int64_t shared_bytes,
                    const DeviceLimits& limits) {
  if (blocks < 1 || blocks > kMostBlocks) {
    return unsupported("q, k: the call takes " + std::to_string(blocks) +
                       " blocks, but a launch has 1 to 2^31 - 1");
  }
  if (threads < 1 || threads > kMostThreads) {
    return unsupported("device: a block takes " + std::to_string(threads) +
                       " threads, but it has at most 1024");
  }
  if (shared_bytes < 0 || shared_bytes > limits.shared_bytes_per_block) {
    return unsupported("head_dim: takes " + std::to_string(shared_bytes) +
                       " bytes of shared memory, but a block of this GPU has " +
                       std::to_string(limits.shared_bytes_per_block));
  }
  return {};
}

Status check_problem(const Problem& problem, const DeviceLimits& limits) {
  if (problem.algorithm != Algorithm::kFlash2) {
    return unsupported(std::string("algorithm: is ") + to_string(problem.algorithm) +
                       ", but the CUDA kernels compute flash2: expected auto or flash2");
  }
  if (problem.isa != Isa::kAuto) {
    return unsupported(std::string("isa: is ") + to_string(problem.isa) +
                       ", but the tensors are on cuda: expected auto");
  }
  Status status =
      problem.backward ? check_backward(problem, limits) : check_forward(problem, limits);
  if (status.ok()) status = check_amount(problem);
  if (!status.ok()) return status;
  for_launches(problem, limits, [&]<class Kernel>(int64_t blocks) {
    status = check_launch(blocks, Kernel::kThreads, Kernel::kSharedBytes, limits);
    return status.ok();
  });
  return status;
}

int64_t workspace_bytes(const Problem& problem, const DeviceLimits& limits) {
  const Problem p = with_memory(problem);
  const int64_t bytes =
      p.backward ? backward_workspace_bytes(p, limits) : forward_workspace_bytes(p, limits);
  return bytes == 0 ? 0 : bytes + kAlignment - 1;
}

ForwardParams forward_params(const Problem& problem, const DeviceLimits& limits, void* workspace) {
  ForwardParams params = make_forward_params(with_memory(problem), limits);
  params.workspace = aligned(workspace);
  return params;
}

BackwardParams backward_params(const Problem& problem, const DeviceLimits& limits,
                               void* workspace) {
  BackwardParams params = make_backward_params(with_memory(problem), limits);
  params.call.workspace = aligned(workspace);
  return params;
}

Result<DevicePlan> make_plan(const Problem& problem, const DeviceLimits& limits) {
  if (Status status = check_problem(problem, limits); !status.ok()) return status;
  DevicePlan plan;
  for_launches(problem, limits, [&]<class Kernel>(int64_t blocks) {
    plan.launches.push_back(plan_launch<Kernel>(blocks));
    return true;
  });
  plan.workspace_bytes = workspace_bytes(problem, limits);
  return plan;
}

}  // namespace attentile::cuda
