// SPDX-License-Identifier: Apache-2.0
// What can be wrong with any view, whatever it is for: each of the 24 tensors times each mistake.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdint>
#include <limits>
#include <span>

#include "validate/bad_call.h"

namespace attentile::test {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

// A base in which the tensor is looked at.
Base base_of(const std::string& name) {
  if (name.starts_with("cu_")) return Base::kPacked;
  if (name == "block_table") return Base::kPaged;
  return name.starts_with("d") ? Base::kDenseBackward : Base::kDense;
}

attentile_tensor& tensor_of(SampleCall& c, const std::string& name) {
  for (const SampleCall::Slot& slot : c.slots()) {
    if (slot.name == name) return *slot.tensor;
  }
  return c.q;
}

std::string list_of(const int64_t (&values)[4], int32_t rank) {
  return fmt::format("[{}]", fmt::join(std::span(values, static_cast<size_t>(rank)), ", "));
}

std::string dtype_of(const attentile_tensor& t) {
  return to_string(static_cast<DType>(t.dtype));
}

// One mistake: what it is called, how it is made, and the sentence after "name: ".
struct Mistake {
  const char* name;
  void (*make)(attentile_tensor& t);
  std::string (*sentence)(const attentile_tensor& t);  // of the spoilt tensor
};

const Mistake kMistakes[] = {
    {"rank_5", [](attentile_tensor& t) { t.rank = 5; },
     [](const attentile_tensor&) -> std::string { return "rank is 5, but it must be in [0, 4]"; }},
    {"rank_negative", [](attentile_tensor& t) { t.rank = -2; },
     [](const attentile_tensor&) -> std::string { return "rank is -2, but it must be in [0, 4]"; }},
    {"dtype_unknown", [](attentile_tensor& t) { t.dtype = 9; },
     [](const attentile_tensor&) -> std::string { return "dtype is 9, but it must be in [0, 6]"; }},
    {"dtype_negative", [](attentile_tensor& t) { t.dtype = -2147483647 - 1; },
     [](const attentile_tensor&) -> std::string {
       return "dtype is -2147483648, but it must be in [0, 6]";
     }},
    {"device_unknown", [](attentile_tensor& t) { t.device = 7; },
     [](const attentile_tensor&) -> std::string {
       return "device is 7, but it must be 0 (cpu) or 1 (cuda)";
     }},
    {"size_negative", [](attentile_tensor& t) { t.shape[0] = -3; },
     [](const attentile_tensor& t) {
       return fmt::format("shape is {}, but no size may be negative", list_of(t.shape, t.rank));
     }},
    {"size_overflows",
     [](attentile_tensor& t) {
       t.shape[0] = kMax;
       t.stride[0] = 0;
       if (t.rank == 1) {  // one more axis, so that one-byte types overflow too
         t.rank = 2;
         t.shape[1] = 2;
         t.stride[1] = 0;
       }
     },
     [](const attentile_tensor& t) {
       return fmt::format("shape is {} of {}, but the elements must be fewer than 2^63 bytes",
                          list_of(t.shape, t.rank), dtype_of(t));
     }},
    {"extent_overflows",
     [](attentile_tensor& t) {
       t.shape[0] = 4;
       t.stride[0] = kMax / 2;
     },
     [](const attentile_tensor& t) {
       return fmt::format(
           "strides are {} with shape {} of {}, but the view must span fewer than 2^63 bytes",
           list_of(t.stride, t.rank), list_of(t.shape, t.rank), dtype_of(t));
     }},
    {"extent_overflows_downwards",
     [](attentile_tensor& t) {
       t.shape[0] = 2;
       t.stride[0] = kMin;
     },
     [](const attentile_tensor& t) {
       return fmt::format(
           "strides are {} with shape {} of {}, but the view must span fewer than 2^63 bytes",
           list_of(t.stride, t.rank), list_of(t.shape, t.rank), dtype_of(t));
     }},
    {"leaves_address_space", [](attentile_tensor& t) { t.stride[0] = -(kMax / 16); },
     [](const attentile_tensor& t) {
       return fmt::format(
           "strides are {} with shape {} of {}, but from its data that leaves the address space",
           list_of(t.stride, t.rank), list_of(t.shape, t.rank), dtype_of(t));
     }},
    {"data_null", [](attentile_tensor& t) { t.data = nullptr; },
     [](const attentile_tensor& t) {
       return fmt::format("data is null, but shape {} has elements", list_of(t.shape, t.rank));
     }},
    {"data_misaligned",
     [](attentile_tensor& t) { t.data = static_cast<unsigned char*>(t.data) + 2; },
     [](const attentile_tensor& t) {
       return fmt::format("data is 2 bytes past a multiple of 4, but {} must be aligned to 4 bytes",
                          dtype_of(t));
     }},
};

// One tensor on a GPU, the others not; k is the first after q.
BadCall on_another_device(const std::string& name) {
  const bool first = name == "q";
  return {.name = name + "_device_cuda",
          .base = base_of(name),
          .spoil =
              [name](SampleCall& c) {
                c.give(name.c_str());
                if (name == "dbias") c.give("bias");
                if (name == "dsink") c.give("sink");
                tensor_of(c, name).device = ATTENTILE_CUDA;
              },
          .code = ATTENTILE_INVALID_ARGUMENT,
          .sentence = first ? "k: device is cpu, but q is on cuda"
                            : name + ": device is cuda, but q is on cpu"};
}

}  // namespace

std::vector<BadCall> bad_views() {
  std::vector<BadCall> cases;
  SampleCall names(Base::kDense);
  for (const SampleCall::Slot& slot : names.slots()) {
    const std::string name = slot.name;
    cases.push_back(on_another_device(name));
    for (const Mistake& mistake : kMistakes) {
      const bool bytes = size_of(static_cast<DType>(slot.tensor->dtype)) == 1;
      if (bytes && std::string(mistake.name) == "data_misaligned") continue;
      SampleCall sample(base_of(name));
      attentile_tensor spoilt = tensor_of(sample, name);
      mistake.make(spoilt);
      cases.push_back({.name = name + "_" + mistake.name,
                       .base = base_of(name),
                       .spoil =
                           [name, make = mistake.make](SampleCall& c) {
                             c.give(name.c_str());
                             if (name == "dbias") c.give("bias");
                             if (name == "dsink") c.give("sink");
                             make(tensor_of(c, name));
                           },
                       .code = ATTENTILE_INVALID_ARGUMENT,
                       .sentence = name + ": " + mistake.sentence(spoilt)});
    }
  }
  return cases;
}

}  // namespace attentile::test
