// SPDX-License-Identifier: Apache-2.0
#include "gpu/wide.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gpu/json_line.h"
#include "gpu/prepared.h"

namespace attentile::gpu {
namespace {

using conformance::Case;
using conformance::Results;
using conformance::Values;
using testing::DenseTensor;

constexpr int64_t kMostBytes = 100'000'000'000;

// A tensor of the small call, which the wide one repeats along the batch.
struct Part {
  const DenseTensor* small;
  bool is_result;
};

std::vector<Part> parts_of(const Case& c, const Values& values, const Results& results) {
  std::vector<Part> parts = {{&values.q, false},
                             {&values.k, false},
                             {&values.v, false},
                             {&results.out, true},
                             {&results.lse, true}};
  if (c.backward) {
    parts.push_back({&values.dout, false});
    for (const DenseTensor* result : {&results.dq, &results.dk, &results.dv}) {
      parts.push_back({result, true});
    }
  }
  return parts;
}

// The entries that it takes for one tensor to have `elements`.
int64_t batch_of(const std::vector<Part>& parts, int64_t elements) {
  int64_t largest = 1;
  for (const Part& part : parts) largest = std::max(largest, part.small->count());
  return elements / largest + 1;
}

struct Call {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionGradients gradients;
};

// memory: of the parts, in their order; null: yet to come.
Call call_of(const std::vector<Part>& parts, int64_t batch, const std::vector<void*>& memory) {
  Call call;
  TensorView* views[] = {&call.inputs.q,     &call.inputs.k,     &call.inputs.v,
                         &call.outputs.out,  &call.outputs.lse,  &call.gradients.dout,
                         &call.gradients.dq, &call.gradients.dk, &call.gradients.dv};
  for (size_t n = 0; n < parts.size(); ++n) {
    *views[n] = parts[n].small->view();
    views[n]->shape[0] = batch;
    views[n]->data = memory[n];
    views[n]->device = Device::kCuda;
  }
  return call;
}

std::string again(const Case& c, int64_t elements) {
  return "wide " + std::to_string(elements) + " '" + c.name + "'";
}

int64_t bytes_of(const std::vector<Part>& parts, int64_t batch) {
  int64_t bytes = 0;
  for (const Part& part : parts) bytes += batch * static_cast<int64_t>(part.small->bytes.size());
  return bytes;
}

// Device memory that no host could fill as quickly.
class Memory {
 public:
  Memory(const cuda::BackendTable& table, int64_t bytes) : table_(table) {
    cuda::Sentence sentence;
    if (table.allocate(bytes, &memory_, &sentence) != 0) error_ = sentence.text;
  }
  ~Memory() {
    cuda::Sentence sentence;
    (void)table_.release(memory_, &sentence);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* get() const { return memory_; }
  char* at(int64_t byte) const { return static_cast<char*>(memory_) + byte; }
  const std::string& error() const { return error_; }

 private:
  const cuda::BackendTable& table_;
  void* memory_ = nullptr;
  std::string error_;
};

// The first, middle and last entry have the small call's values, the others what the memory held.
struct Entries {
  const cuda::BackendTable& table;
  int64_t batch;

  std::vector<int64_t> checked() const { return {0, batch / 2, batch - 1}; }

  std::string fill(const Memory& wide, const DenseTensor& values) const {
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
  int compare(const Memory& wide, const DenseTensor& expected) const {
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
};

// The passes on the wide tensors; `differ`: entries of results that are not the small call's.
Status run_entries(const Entries& entries, const Prepared& small, const std::vector<Part>& parts,
                   int* differ) {
  std::vector<std::unique_ptr<Memory>> tensors;
  std::vector<void*> memory;
  for (const Part& part : parts) {
    tensors.push_back(std::make_unique<Memory>(
        entries.table, entries.batch * static_cast<int64_t>(part.small->bytes.size())));
    std::string error = tensors.back()->error();
    if (error.empty() && !part.is_result) error = entries.fill(*tensors.back(), *part.small);
    if (!error.empty()) return {StatusCode::kOutOfMemory, error};
    memory.push_back(tensors.back()->get());
  }
  const Call call = call_of(parts, entries.batch, memory);
  Status status = attention_forward(call.inputs, call.outputs, small.options, {});
  if (status.ok() && small.c.backward) {
    status = attention_backward(call.inputs, call.outputs, call.gradients, small.options, {});
  }
  if (!status.ok()) return status;
  cuda::Sentence sentence;
  if (entries.table.synchronise(nullptr, &sentence) != 0) {
    return {StatusCode::kInternal, sentence.text};
  }
  for (size_t n = 0; n < parts.size(); ++n) {
    if (parts[n].is_result) *differ += entries.compare(*tensors[n], *parts[n].small);
  }
  return {};
}

}  // namespace

int check_size(const Case& c, int64_t elements) {
  const Values values = conformance::make_values(c);
  const Results results = conformance::empty_results(c, values);
  const std::vector<Part> parts = parts_of(c, values, results);
  const int64_t batch = batch_of(parts, elements);
  const Call call = call_of(parts, batch, std::vector<void*>(parts.size(), nullptr));
  const AttentionOptions options = conformance::options_of(c);
  int64_t largest = 0;
  for (const Part& part : parts) largest = std::max(largest, batch * part.small->count());
  int64_t bytes = bytes_of(parts, batch);
  for (const bool backward : {false, true}) {
    if (backward && !c.backward) continue;
    const Result<Plan> plan =
        backward ? plan_backward(call.inputs, call.outputs, call.gradients, options, {})
                 : plan_forward(call.inputs, call.outputs, options, {});
    if (!plan.ok()) return fail(c.name, plan.status().message(), again(c, elements));
    bytes += plan->workspace_bytes;
  }
  JsonLine().text("name", c.name).whole("elements", largest).whole("bytes", bytes).print();
  if (bytes <= kMostBytes) return 0;
  return fail(
      c.name,
      "takes " + std::to_string(bytes) + " bytes, expected at most " + std::to_string(kMostBytes),
      again(c, elements));
}

int run_wide(const cuda::BackendTable& table, const Case& c, int64_t elements) {
  if (check_size(c, elements) != 0) return 1;
  const Values values = conformance::make_values(c);
  Prepared small(table, c, values);
  const Outcome outcome = small.run(true);
  if (!outcome.what.empty()) return fail(c.name, outcome.what, again(c, elements));
  const Results expected = small.placed.results();
  const std::vector<Part> parts = parts_of(c, values, expected);
  int differ = 0;
  const Status status = run_entries({table, batch_of(parts, elements)}, small, parts, &differ);
  if (!status.ok()) return fail(c.name, status.message(), again(c, elements));
  JsonLine().text("name", c.name).whole("differ", differ).print();
  if (differ == 0) return 0;
  return fail(c.name, std::to_string(differ) + " entries of results differ from the small call's",
              again(c, elements));
}

}  // namespace attentile::gpu
