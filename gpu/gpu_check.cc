// SPDX-License-Identifier: Apache-2.0
// What only a device can tell, a JSON object a line; the device is that of ATTENTILE_CUDA_LIBRARY.
//
//   gpu_check table CELLS SECONDS   the conformance table, per dtype until one of the two is
//   reached gpu_check short                 one call of each feature, for compute-sanitizer
//   gpu_check profile               the main kernels at the size they are made for, for ncu
//   gpu_check repeat LAUNCHES SECONDS   the same call again and again: bits that differ
//   gpu_check wide ELEMENTS         tensors of so many elements, checked at both ends
//
// Exit status 0, 1 where a check failed, 2 where the request was wrong, 3 without a device.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "conformance/call.h"
#include "conformance/entry.h"
#include "conformance/runner.h"
#include "cuda/backend.h"
#include "gpu/cases.h"
#include "io/device_call.h"

namespace attentile::gpu {
namespace {

using conformance::Case;
using conformance::PlacedCall;
using conformance::Placement;
using conformance::Results;
using conformance::Values;
using io::DeviceCall;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int fail(const std::string& words) {
  std::fprintf(stderr, "gpu_check: %s\n", words.c_str());
  return 1;
}

// CELLS and SECONDS of each dtype, and with atomic_dq; float64 has no kernels.
int run_table(const cuda::BackendTable&, int64_t cells, double seconds) {
  int result = 0;
  constexpr std::pair<const char*, bool> kTables[] = {
      {"bf16", false}, {"f16", false}, {"f32", false}, {"bf16", true}};
  for (const auto& [dtype, atomic_dq] : kTables) {
    conformance::Options options;
    options.atomic_dq = atomic_dq;
    options.count = cells;
    options.filter = std::string("dtype=") + dtype;
    options.entries = {conformance::Entry::kDevice};
    options.algorithms = {Algorithm::kFlash2};
    options.isas = {Isa::kAuto};
    options.max_failures = 20;
    const double end = now() + seconds;
    const conformance::Summary summary =
        conformance::run(options, [&](const conformance::Summary&, double) { return now() < end; });
    if (!summary.status.ok()) return fail(summary.status.message());
    for (const conformance::Failure& failure : summary.failures) {
      std::fprintf(stderr, "%s: %s\n", failure.cell.c_str(), failure.what.c_str());
    }
    for (const auto& [reason, count] : summary.refusals) {
      std::fprintf(stderr, "refused %lld: %s\n", static_cast<long long>(count), reason.c_str());
    }
    double worst = 0;
    for (const auto& [output, ratio] : summary.worst_ratios) worst = std::max(worst, ratio);
    std::printf("{\"dtype\": \"%s%s\", \"cells\": %lld, \"passed\": %lld, ", dtype,
                atomic_dq ? " atomic_dq" : "", static_cast<long long>(summary.cells),
                static_cast<long long>(summary.passed));
    std::printf("\"failed\": %lld, \"refused\": %lld, \"largest_error_over_allowed\": %.3f}\n",
                static_cast<long long>(summary.failed), static_cast<long long>(summary.refused),
                worst);
    std::fflush(stdout);
    if (summary.failed != 0) result = 1;
  }
  return result;
}

// A case's call on the device.
struct Prepared {
  explicit Prepared(const cuda::BackendTable& table, const Case& c)
      : values(conformance::make_values(c)),
        placed(c, values, conformance::empty_results(c, values), 1, Placement::kContiguous),
        device(table, placed.inputs(), placed.outputs(), placed.gradients()),
        options(conformance::options_of(c)) {}

  Values values;
  PlacedCall placed;
  DeviceCall device;
  AttentionOptions options;
};

// 0, or 1 with the case's name and what happened.
int run_once(const Case& c, Prepared& call) {
  Status status = call.device.run_forward(call.options, true);
  std::string damage = call.device.damage();
  if (status.ok() && c.backward) {
    status = call.device.run_backward(call.options, true);
    damage += call.device.damage();
  }
  if (!status.ok()) return fail(c.name + ": " + status.message());
  return damage.empty() ? 0 : fail(c.name + ": " + damage);
}

int run_list(const cuda::BackendTable& table, const std::vector<Case>& cases) {
  int result = 0;
  for (const Case& c : cases) {
    Prepared call(table, c);
    const double begin = now();
    result |= run_once(c, call);
    std::printf("{\"name\": \"%s\", \"seconds\": %.6f}\n", c.name.c_str(), now() - begin);
    std::fflush(stdout);
  }
  return result;
}

bool same(const testing::DenseTensor& a, const testing::DenseTensor& b) {
  return a.present == b.present && a.bytes == b.bytes;
}
bool same(const Results& a, const Results& b) {
  return same(a.out, b.out) && same(a.lse, b.lse) && same(a.dq, b.dq) && same(a.dk, b.dk) &&
         same(a.dv, b.dv) && same(a.dbias, b.dbias) && same(a.dsink, b.dsink);
}

int run_repeat(const cuda::BackendTable& table, int64_t launches, double seconds) {
  int result = 0;
  for (const Case& c : repeated_cases()) {
    Prepared call(table, c);
    if (run_once(c, call) != 0) return 1;
    const Results first = call.placed.results();
    int64_t differ = 0;
    int64_t done = 1;
    for (const double end = now() + seconds; done < launches && now() < end; ++done) {
      for (const bool backward : {false, true}) {
        if (backward && !c.backward) continue;
        Status status = call.device.poison_results(backward);
        if (status.ok()) status = call.device.start(call.options, backward);
        if (status.ok()) status = call.device.synchronise();
        if (status.ok()) status = call.device.download(backward);
        if (!status.ok()) return fail(c.name + ": " + status.message());
      }
      if (!same(first, call.placed.results())) ++differ;
    }
    std::printf("{\"name\": \"%s\", \"launches\": %lld, \"differ\": %lld}\n", c.name.c_str(),
                static_cast<long long>(done), static_cast<long long>(differ));
    std::fflush(stdout);
    if (differ != 0) result = 1;
  }
  return result;
}

// Device memory of a tensor that no host could hold as quickly.
class WideTensor {
 public:
  WideTensor(const cuda::BackendTable& table, int64_t bytes) : table_(table) {
    cuda::Sentence sentence;
    if (table.allocate(bytes, &memory_, &sentence) != 0) error_ = sentence.text;
  }
  ~WideTensor() {
    cuda::Sentence sentence;
    (void)table_.release(memory_, &sentence);
  }
  WideTensor(const WideTensor&) = delete;
  WideTensor& operator=(const WideTensor&) = delete;

  char* at(int64_t byte) const { return static_cast<char*>(memory_) + byte; }
  const std::string& error() const { return error_; }

 private:
  const cuda::BackendTable& table_;
  void* memory_ = nullptr;
  std::string error_;
};

// One tensor of `batch` entries, each that of the small case; the first, middle and last entry are
// given its values, the others hold whatever the memory held.
struct WideCall {
  const cuda::BackendTable& table;
  const Case& small;
  int64_t batch;

  std::vector<int64_t> checked() const { return {0, batch / 2, batch - 1}; }

  std::string fill(const WideTensor& wide, const testing::DenseTensor& values) const {
    const int64_t bytes = static_cast<int64_t>(values.bytes.size());
    cuda::Sentence sentence;
    for (const int64_t b : checked()) {
      if (table.copy_to_device(wide.at(b * bytes), values.bytes.data(), bytes, &sentence) != 0) {
        return sentence.text;
      }
    }
    return "";
  }
  // Entries that differ from `expected` in a bit.
  int compare(const WideTensor& wide, const testing::DenseTensor& expected) const {
    std::vector<char> found(expected.bytes.size());
    const int64_t bytes = static_cast<int64_t>(found.size());
    int differ = 0;
    cuda::Sentence sentence;
    for (const int64_t b : checked()) {
      const bool read = table.copy_to_host(found.data(), wide.at(b * bytes), bytes, &sentence) == 0;
      if (!read || std::memcmp(found.data(), expected.bytes.data(), found.size()) != 0) ++differ;
    }
    return differ;
  }
  TensorView view(const WideTensor& wide, const testing::DenseTensor& of) const {
    TensorView view =
        contiguous_view(wide.at(0), of.dtype, {batch, of.shape[1], of.shape[2], of.shape.back()});
    if (of.shape.size() == 3) {
      view = contiguous_view(wide.at(0), of.dtype, {batch, of.shape[1], of.shape[2]});
    }
    view.device = Device::kCuda;
    return view;
  }
};

int run_wide_case(const cuda::BackendTable& table, const Case& c, int64_t elements) {
  Prepared call(table, c);
  if (run_once(c, call) != 0) return 1;
  const Results expected = call.placed.results();
  const Values& values = call.values;
  const int64_t batch = elements / values.q.count() + 1;
  const WideCall wide = {table, c, batch};
  const auto bytes = [&](const testing::DenseTensor& tensor) {
    return batch * static_cast<int64_t>(tensor.bytes.size());
  };
  const struct {
    const testing::DenseTensor* given;
    const testing::DenseTensor* result;
    WideTensor memory;
  } tensors[] = {{&values.q, nullptr, {table, bytes(values.q)}},
                 {&values.k, nullptr, {table, bytes(values.k)}},
                 {&values.v, nullptr, {table, bytes(values.v)}},
                 {nullptr, &expected.out, {table, bytes(expected.out)}},
                 {nullptr, &expected.lse, {table, bytes(expected.lse)}},
                 {&values.dout, nullptr, {table, c.backward ? bytes(values.dout) : 1}},
                 {nullptr, &expected.dq, {table, c.backward ? bytes(expected.dq) : 1}},
                 {nullptr, &expected.dk, {table, c.backward ? bytes(expected.dk) : 1}},
                 {nullptr, &expected.dv, {table, c.backward ? bytes(expected.dv) : 1}}};
  TensorView views[9];
  const int count = c.backward ? 9 : 5;
  for (int n = 0; n < count; ++n) {
    if (!tensors[n].memory.error().empty()) return fail(c.name + ": " + tensors[n].memory.error());
    const testing::DenseTensor& like =
        tensors[n].given != nullptr ? *tensors[n].given : *tensors[n].result;
    views[n] = wide.view(tensors[n].memory, like);
    const std::string error =
        tensors[n].given != nullptr ? wide.fill(tensors[n].memory, like) : std::string();
    if (!error.empty()) return fail(c.name + ": " + error);
  }
  AttentionInputs inputs{.q = views[0], .k = views[1], .v = views[2]};
  AttentionOutputs outputs{.out = views[3], .lse = views[4]};
  Status status = attention_forward(inputs, outputs, call.options, {});
  if (status.ok() && c.backward) {
    const AttentionGradients gradients{
        .dout = views[5], .dq = views[6], .dk = views[7], .dv = views[8]};
    status = attention_backward(inputs, outputs, gradients, call.options, {});
  }
  cuda::Sentence sentence;
  if (!status.ok()) return fail(c.name + ": " + status.message());
  if (table.synchronise(nullptr, &sentence) != 0) return fail(c.name + ": " + sentence.text);
  int differ = 0;
  for (int n = 0; n < count; ++n) {
    if (tensors[n].result != nullptr) differ += wide.compare(tensors[n].memory, *tensors[n].result);
  }
  std::printf("{\"name\": \"%s\", \"elements\": %lld, \"differ\": %d}\n", c.name.c_str(),
              static_cast<long long>(batch * values.q.count()), differ);
  std::fflush(stdout);
  return differ == 0 ? 0 : 1;
}

int run(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const int64_t number = argc > 2 ? std::atoll(argv[2]) : 1;
  if (number < 1) {
    std::fprintf(stderr, "gpu_check: %s: number is %s, expected at least 1\n", what.c_str(),
                 argv[2]);
    return 2;
  }
  const Result<const cuda::BackendTable*>& found = cuda::backend();
  if (!found.ok()) {
    std::fprintf(stderr, "gpu_check: %s\n", found.status().message().c_str());
    return 3;
  }
  const cuda::BackendTable& table = **found;
  const double seconds = argc > 3 ? std::atof(argv[3]) : 60;
  if (what == "table") return run_table(table, number, seconds);
  if (what == "short") return run_list(table, short_cases());
  if (what == "profile") return run_list(table, profiled_cases());
  if (what == "repeat") return run_repeat(table, number, seconds);
  if (what == "wide") {
    int result = 0;
    for (const Case& c : wide_cases()) result |= run_wide_case(table, c, number);
    return result;
  }
  std::fprintf(stderr, "gpu_check: expected table, short, profile, repeat or wide\n");
  return 2;
}

}  // namespace
}  // namespace attentile::gpu

int main(int argc, char** argv) {
  return attentile::gpu::run(argc, argv);
}
