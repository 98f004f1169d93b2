// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <nanobind/stl/string.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace attentile::python {
namespace {

namespace nb = nanobind;

[[noreturn]] void refuse_type(const char* name, nb::handle value, const char* expected) {
  const std::string text = std::string(name) + ": was " + nb::cast<std::string>(nb::repr(value)) +
                           ", expected " + expected;
  throw nb::type_error(text.c_str());
}

// Calls of Python's number protocol, their error replaced by one sentence.
double to_double(const char* name, nb::handle value) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    refuse_type(name, value, "a number");
  }
  return number;
}

template <class Int>
Int to_int(const char* name, nb::handle value) {
  constexpr bool is_signed = static_cast<Int>(-1) < Int{0};
  nb::object index = nb::steal(PyNumber_Index(value.ptr()));
  if (index.is_valid()) {
    Int number = 0;
    if constexpr (is_signed) {
      number = static_cast<Int>(PyLong_AsLongLong(index.ptr()));
    } else {
      number = static_cast<Int>(PyLong_AsUnsignedLongLong(index.ptr()));
    }
    if (number != static_cast<Int>(-1) || !PyErr_Occurred()) return number;
  }
  PyErr_Clear();
  refuse_type(name, value, is_signed ? "an integer of 64 bits" : "an integer in [0, 2^64)");
}

bool to_bool(const char* name, nb::handle value) {
  const int truth = PyUnicode_Check(value.ptr()) ? -1 : PyObject_IsTrue(value.ptr());
  if (truth < 0) {
    PyErr_Clear();
    refuse_type(name, value, "True or False");
  }
  return truth != 0;
}

template <class Enum>
struct Word {
  const char* word;
  Enum value;
};

template <class Enum, size_t kCount>
Enum to_enum(const char* name, nb::handle value, const Word<Enum> (&words)[kCount]) {
  std::string given, expected;
  if (!nb::try_cast(value, given)) refuse_type(name, value, "a string");
  for (const Word<Enum>& w : words) {
    if (given == w.word) return w.value;
    expected += (expected.empty() ? "" : ", ") + std::string(w.word);
  }
  const std::string text = std::string(name) + ": was '" + given + "', expected one of " + expected;
  throw nb::value_error(text.c_str());
}

constexpr Word<Alignment> kAlignments[] = {{"bottom_right", Alignment::kBottomRight},
                                           {"top_left", Alignment::kTopLeft}};
constexpr Word<Algorithm> kAlgorithms[] = {{"auto", Algorithm::kAuto},
                                           {"reference", Algorithm::kReference},
                                           {"standard", Algorithm::kStandard},
                                           {"flash1", Algorithm::kFlash1},
                                           {"flash2", Algorithm::kFlash2}};
constexpr Word<Isa> kIsas[] = {{"auto", Isa::kAuto},
                               {"scalar", Isa::kScalar},
                               {"avx2", Isa::kAvx2},
                               {"avx512", Isa::kAvx512},
                               {"avx512_bf16", Isa::kAvx512Bf16},
                               {"neon", Isa::kNeon},
                               {"neon_bf16", Isa::kNeonBf16},
                               {"amx", Isa::kAmx}};
constexpr Word<bool> kLayouts[] = {{"bshd", false}, {"bhsd", true}};

using Setter = void (*)(Options&, const char* name, nb::handle value);

template <auto kField>
void set_int(Options& o, const char* name, nb::handle value) {
  auto& field = o.attention.*kField;
  field = to_int<std::remove_reference_t<decltype(field)>>(name, value);
}

template <auto kField>
void set_double(Options& o, const char* name, nb::handle value) {
  o.attention.*kField = to_double(name, value);
}

template <auto kField>
void set_bool(Options& o, const char* name, nb::handle value) {
  o.attention.*kField = to_bool(name, value);
}

constexpr std::pair<std::string_view, Setter> kSetters[] = {
    {"softmax_scale",
     [](Options& o, const char* name, nb::handle v) {
       if (!v.is_none()) o.attention.softmax_scale = to_double(name, v);
     }},
    {"causal", set_bool<&AttentionOptions::causal>},
    {"alignment", [](Options& o, const char* name,
                     nb::handle v) { o.attention.alignment = to_enum(name, v, kAlignments); }},
    {"position_offset",
     [](Options& o, const char* name, nb::handle v) {
       if (!v.is_none()) o.attention.position_offset = to_int<int64_t>(name, v);
     }},
    {"window_left", set_int<&AttentionOptions::window_left>},
    {"window_right", set_int<&AttentionOptions::window_right>},
    {"softcap", set_double<&AttentionOptions::softcap>},
    {"dropout_p", set_double<&AttentionOptions::dropout_p>},
    {"dropout_seed", set_int<&AttentionOptions::dropout_seed>},
    {"dropout_offset", set_int<&AttentionOptions::dropout_offset>},
    {"query_base", set_int<&AttentionOptions::query_base>},
    {"key_base", set_int<&AttentionOptions::key_base>},
    {"head_base", set_int<&AttentionOptions::head_base>},
    {"batch_base", set_int<&AttentionOptions::batch_base>},
    {"dropout_num_heads_q", set_int<&AttentionOptions::dropout_num_heads_q>},
    {"block_size_q", set_int<&AttentionOptions::block_size_q>},
    {"block_size_k", set_int<&AttentionOptions::block_size_k>},
    {"algorithm", [](Options& o, const char* name,
                     nb::handle v) { o.attention.algorithm = to_enum(name, v, kAlgorithms); }},
    {"isa",
     [](Options& o, const char* name, nb::handle v) { o.attention.isa = to_enum(name, v, kIsas); }},
    {"fast_memory_bytes", set_int<&AttentionOptions::fast_memory_bytes>},
    {"max_seqlen_q", set_int<&AttentionOptions::max_seqlen_q>},
    {"max_seqlen_k", set_int<&AttentionOptions::max_seqlen_k>},
    {"atomic_dq", set_bool<&AttentionOptions::atomic_dq>},
    {"layout", [](Options& o, const char* name,
                  nb::handle v) { o.heads_second = to_enum(name, v, kLayouts); }},
};

}  // namespace

Options make_options(nb::dict keywords) {
  Options options;
  for (auto [key, value] : keywords) {
    const std::string name = nb::cast<std::string>(key);
    const auto* setter = std::begin(kSetters);
    while (setter != std::end(kSetters) && setter->first != name) ++setter;
    if (setter == std::end(kSetters)) {
      throw nb::type_error((name + ": no option has this name").c_str());
    }
    setter->second(options, name.c_str(), value);
  }
  return options;
}

}  // namespace attentile::python
