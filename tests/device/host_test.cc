// SPDX-License-Identifier: Apache-2.0
// The way from a call to a backend's table: what is loaded, what is refused and why, what a call
// allocates. Tables here are made up; no kernel runs.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <new>

#include "cuda/backend.h"
#include "cuda/backward_params.h"
#include "cuda/load.h"
#include "support/sanitizer.h"
#include "validate.h"

namespace {

thread_local bool counting = false;
thread_local int64_t allocations = 0;

}  // namespace

#ifndef ATTENTILE_TEST_TSAN
void* operator new(size_t size) {
  if (counting) ++allocations;
  void* memory = std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
#endif

namespace attentile::cuda::test {
namespace {

// What the made-up backend was asked for.
struct Seen {
  int forward = 0;
  int allocated = 0;
  int released = 0;
  int32_t error = 0;
  ForwardParams params;
  void* stream = nullptr;
};
Seen seen;

int32_t count_one(int32_t* count, Sentence*) {
  *count = 1;
  return 0;
}
int32_t info_of(int32_t, DeviceInfo* info, Sentence*) {
  *info = {};
  info->compute_capability = 80;
  return 0;
}
int32_t device_zero(int32_t* device, Sentence*) {
  *device = 0;
  return 0;
}
int32_t forward(DType, const ForwardParams* params, void* stream, const Watch*,
                Sentence* sentence) {
  ++seen.forward;
  seen.params = *params;
  seen.stream = stream;
  if (seen.error != 0) std::snprintf(sentence->text, sizeof sentence->text, "cuda: no");
  return seen.error;
}
int32_t allocate_on_stream(int64_t, void*, void** memory, Sentence*) {
  ++seen.allocated;
  *memory = reinterpret_cast<void*>(uintptr_t{4096});
  return 0;
}
int32_t release_on_stream(void*, void*, Sentence*) {
  ++seen.released;
  return 0;
}

BackendTable made_up() {
  BackendTable table = {};
  table.version = kBackendVersion;
  table.table_bytes = sizeof(BackendTable);
  table.forward_params_bytes = sizeof(ForwardParams);
  table.backward_params_bytes = sizeof(BackwardParams);
  table.name = "made up";
  table.device_count = count_one;
  table.device_info = info_of;
  table.current_device = device_zero;
  table.forward = forward;
  table.allocate_on_stream = allocate_on_stream;
  table.release_on_stream = release_on_stream;
  return table;
}

// Device memory that nobody may touch: no address of this process.
TensorView nowhere(uintptr_t address, DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view = contiguous_view(reinterpret_cast<void*>(address), dtype, shape);
  view.device = Device::kCuda;
  return view;
}

struct DeviceTensors {
  AttentionInputs inputs = {.q = nowhere(0x10000, DType::kBFloat16, {2, 8, 4, 64}),
                            .k = nowhere(0x20000, DType::kBFloat16, {2, 16, 2, 64}),
                            .v = nowhere(0x30000, DType::kBFloat16, {2, 16, 2, 64})};
  AttentionOutputs outputs = {.out = nowhere(0x40000, DType::kBFloat16, {2, 8, 4, 64})};

  Result<Problem> validate(const AttentionOptions& options = {}, Check check = Check::kCall) const {
    return validate_forward(inputs, outputs, options, check);
  }
};

// q packed, k in pages; every index array in device memory.
DeviceTensors packed_and_paged() {
  DeviceTensors t;
  t.inputs.q = nowhere(0x10000, DType::kBFloat16, {10, 4, 64});
  t.outputs.out = nowhere(0x40000, DType::kBFloat16, {10, 4, 64});
  t.inputs.cu_seqlens_q = nowhere(0x60000, DType::kInt32, {3});
  t.inputs.k = nowhere(0x20000, DType::kBFloat16, {5, 16, 2, 64});
  t.inputs.v = nowhere(0x30000, DType::kBFloat16, {5, 16, 2, 64});
  t.inputs.seqused_k = nowhere(0x70000, DType::kInt32, {2});
  t.inputs.block_table = nowhere(0x80000, DType::kInt32, {2, 3});
  return t;
}

TEST(DeviceHost, TableOfAnotherVersionIsRefusedByNumber) {
  BackendTable table = made_up();
  EXPECT_TRUE(check_table(table).ok());
  table.version = kBackendVersion + 1;
  EXPECT_EQ(check_table(table).message(), "its version is " + std::to_string(kBackendVersion + 1) +
                                              ", expected " + std::to_string(kBackendVersion) +
                                              ": it belongs to another version of attentile");
  table = made_up();
  table.table_bytes += 8;
  EXPECT_EQ(check_table(table).code(), StatusCode::kUnavailable);
  table = made_up();
  table.forward_params_bytes -= 8;
  EXPECT_EQ(check_table(table).code(), StatusCode::kUnavailable);
  table = made_up();
  table.backward_params_bytes = 0;
  EXPECT_NE(check_table(table).message().find("backward_params_bytes is 0"), std::string::npos);
}

TEST(DeviceHost, LibraryThatIsNotThereIsNamed) {
  const Result<const BackendTable*> found =
      load_first({"/nowhere/a.so", "libnowhere_attentile.so"});
  EXPECT_EQ(found.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(found.status().message(),
            "device: is cuda, but the CUDA backend was not found; tried /nowhere/a.so, "
            "libnowhere_attentile.so; ATTENTILE_CUDA_LIBRARY can name the file");
}

TEST(DeviceHost, FileThatIsNoBackendIsTheReasonTold) {
  const std::string text = ::testing::TempDir() + "not_a_library.so";
  std::ofstream(text) << "text";
  const Result<const BackendTable*> found = load_first({"/nowhere/a.so", text});
  EXPECT_EQ(found.status().code(), StatusCode::kUnavailable);
  EXPECT_NE(found.status().message().find(text + " cannot serve it: "), std::string::npos)
      << found.status().message();
  const Result<const BackendTable*> other = load_library("libm.so.6");
  EXPECT_NE(other.status().message().find("it has no function attentile_cuda_backend"),
            std::string::npos)
      << other.status().message();
}

TEST(DeviceHost, VariableNamesTheOnlyCandidate) {
  const char* before = std::getenv(kLibraryVariable);
  const std::string kept = before != nullptr ? before : "";
  setenv(kLibraryVariable, "/nowhere/b.so", 1);
  EXPECT_EQ(library_candidates(), std::vector<std::string>{"/nowhere/b.so"});
  unsetenv(kLibraryVariable);
  const std::vector<std::string> usual = library_candidates();
  EXPECT_EQ(usual.back(), "libattentile_cuda.so");
  EXPECT_EQ(usual.front().find("/libattentile_cuda.so") == std::string::npos, false);
  if (before != nullptr) setenv(kLibraryVariable, kept.c_str(), 1);
}

TEST(DeviceHost, CallAllocatesNothing) {
#ifdef ATTENTILE_TEST_TSAN
  GTEST_SKIP() << "this sanitizer's operator new cannot be replaced";
#endif
  const BackendTable table = made_up();
  const DeviceTensors t;
  const Result<Problem> problem = t.validate({.causal = true});
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  int stream = 0;
  ExecutionContext context;
  context.stream = &stream;
  seen = {};
  ASSERT_TRUE(run(table, *problem, context).ok());  // the first call asks for the device's limits
  std::vector<char> workspace(1 << 20);
  context.workspace = workspace.data();
  context.workspace_bytes = static_cast<int64_t>(workspace.size());
  seen.allocated = seen.released = 0;
  allocations = 0;
  counting = true;
  const Result<Problem> again = t.validate({.causal = true});
  const Status status = run(table, *again, context);
  counting = false;
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(allocations, 0);
  EXPECT_EQ(seen.forward, 2);
  EXPECT_EQ(seen.stream, &stream);
  EXPECT_EQ(seen.params.q.data, reinterpret_cast<char*>(0x10000));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(seen.params.workspace) % 16, 0u);
  EXPECT_EQ(seen.allocated, 0);
}

TEST(DeviceHost, BackendsErrorIsTheCallsStatus) {
  const BackendTable table = made_up();
  seen = {};
  seen.error = static_cast<int32_t>(StatusCode::kOutOfMemory);
  const Status status = run(table, *DeviceTensors().validate(), {});
  EXPECT_EQ(status.code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(status.message(), "cuda: no");
}

TEST(DeviceHost, IndexArraysAreNotRead) {
  const Result<Problem> problem = packed_and_paged().validate();
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  EXPECT_EQ(problem->batch, 2);
  EXPECT_EQ(problem->max_seqlen_q, 10);  // all rows
  EXPECT_EQ(problem->max_seqlen_k, 48);  // all pages
  const Result<Problem> told = packed_and_paged().validate({.max_seqlen_q = 7, .max_seqlen_k = 40});
  EXPECT_EQ(told->max_seqlen_q, 7);
  EXPECT_EQ(told->max_seqlen_k, 40);
  const Result<Problem> too_long =
      packed_and_paged().validate({.max_seqlen_q = 70, .max_seqlen_k = 400});
  EXPECT_EQ(too_long->max_seqlen_q, 10);
  EXPECT_EQ(too_long->max_seqlen_k, 48);
  EXPECT_EQ(packed_and_paged().validate({.max_seqlen_q = -1}).status().message(),
            "max_seqlen_q: is -1, but it must be at least 0");
}

TEST(DeviceHost, PlanNeedsNoMemory) {
  DeviceTensors t = packed_and_paged();
  for (TensorView* view : {&t.inputs.q, &t.inputs.k, &t.inputs.v, &t.inputs.cu_seqlens_q,
                           &t.inputs.seqused_k, &t.inputs.block_table, &t.outputs.out}) {
    view->data = nullptr;
  }
  const Result<Problem> problem = t.validate({}, Check::kPlan);
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  const Result<Plan> plan = plan_call(*problem, DeviceLimits{});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->device, Device::kCuda);
  EXPECT_EQ(plan->kernel.rfind("Forward<BFloat16, 64, true", 0), 0u) << plan->kernel;
  EXPECT_GT(plan->tile_m, 0);
  EXPECT_EQ(plan->tile_n, 64);
  EXPECT_GT(plan->num_tasks, 0);
}

TEST(DeviceHost, TensorsOfTwoDevicesAreRefused) {
  DeviceTensors t = packed_and_paged();
  t.inputs.seqused_k.device = Device::kCpu;
  EXPECT_EQ(t.validate().status().message(), "seqused_k: device is cpu, but q is on cuda");
  EXPECT_EQ(t.validate().status().code(), StatusCode::kInvalidArgument);
}

TEST(DeviceHost, WhatNoKernelServesIsNamed) {
  const BackendTable table = made_up();
  const auto sentence = [&](const DeviceTensors& t, const AttentionOptions& options) {
    const Result<Problem> problem = t.validate(options);
    return problem.ok() ? run(table, *problem, {}).message() : problem.status().message();
  };
  DeviceTensors t;
  EXPECT_EQ(sentence(t, {.algorithm = Algorithm::kStandard}),
            "algorithm: is standard, but the CUDA kernels compute flash2: expected auto or flash2");
  EXPECT_EQ(sentence(t, {.isa = Isa::kScalar}),
            "isa: is scalar, but the tensors are on cuda: expected auto");
  for (TensorView* view : {&t.inputs.q, &t.inputs.k, &t.inputs.v, &t.outputs.out}) {
    view->dtype = DType::kFloat64;
  }
  EXPECT_EQ(sentence(t, {}),
            "q: is float64, but the CUDA kernels take float16, bfloat16 and float32");
  const TensorView out = nowhere(0x40000, DType::kFloat32, {1, 1, 1, 8});
  const TensorView lse = nowhere(0x50000, DType::kFloat32, {1, 1, 1});
  EXPECT_EQ(merge({}, {.out = out, .lse = lse}).message(),
            "result.out: device is cuda, but merge computes on cpu only");
}

// Few queries of many keys: what parts of the keys leave is merged from a workspace.
TEST(DeviceHost, WorkspaceIsTheCallersOrTheStreams) {
  const BackendTable table = made_up();
  DeviceTensors t;
  t.inputs.k = nowhere(0x1000000, DType::kBFloat16, {2, 4000, 2, 64});
  t.inputs.v = nowhere(0x2000000, DType::kBFloat16, {2, 4000, 2, 64});
  const Result<Problem> problem = t.validate();
  const int64_t bytes = workspace_bytes(*problem, DeviceLimits{});
  ASSERT_GT(bytes, 0);
  seen = {};
  EXPECT_TRUE(run(table, *problem, {}).ok());
  EXPECT_EQ(seen.allocated, 1);
  EXPECT_EQ(seen.released, 1);
  EXPECT_EQ(seen.params.workspace, reinterpret_cast<char*>(4096));
  std::vector<char> workspace(static_cast<size_t>(bytes) + 1);
  ExecutionContext context;
  context.workspace = workspace.data() + 1;
  context.workspace_bytes = bytes;
  seen = {};
  EXPECT_TRUE(run(table, *problem, context).ok());
  EXPECT_EQ(seen.allocated, 0);
  EXPECT_GE(seen.params.workspace, workspace.data() + 1);
  EXPECT_LE(seen.params.workspace, workspace.data() + 16);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(seen.params.workspace) % 16, 0u);
  context.workspace_bytes = bytes - 1;
  const Status status = run(table, *problem, context);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "workspace: has " + std::to_string(bytes - 1) +
                                  " bytes, but this call needs " + std::to_string(bytes));
}

}  // namespace
}  // namespace attentile::cuda::test
