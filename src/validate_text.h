// SPDX-License-Identifier: Apache-2.0
// Error sentences. `invalid("{}: head_dim is {}, but {} has {}", name, 80, ...)` fills each {} with
// the next value; building one allocates, so it happens on the failing path only.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "attentile/status.h"
#include "attentile/tensor.h"

namespace attentile::validation {

// One value in a sentence.
class Word {
 public:
  Word(const char* text)
      : kind_(Kind::kText), text_(text) {}  // NOLINT(google-explicit-constructor)
  Word(std::integral auto number)           // NOLINT(google-explicit-constructor)
      : kind_(Kind::kInteger), integer_(static_cast<int64_t>(number)) {}
  Word(double number) : kind_(Kind::kReal), real_(number) {}  // NOLINT(google-explicit-constructor)
  // As [2, 3, 4].
  Word(const int64_t* list, int count) : kind_(Kind::kList), list_(list), count_(count) {}
  // The dtype's name, or its number if it has none.
  Word(DType dtype) : kind_(Kind::kDType), dtype_(dtype) {}  // NOLINT(google-explicit-constructor)

  void append_to(std::string* sentence) const;

 private:
  enum class Kind { kText, kInteger, kReal, kList, kDType };
  Kind kind_;
  union {
    const char* text_;
    int64_t integer_;
    double real_;
    const int64_t* list_;
    DType dtype_;
  };
  int count_ = 0;
};

inline Word shape_of(const TensorView& view) {
  return {view.shape, view.rank};
}
inline Word strides_of(const TensorView& view) {
  return {view.stride, view.rank};
}

// The sentence is empty if there is no memory for it; the code stays.
Status describe(StatusCode code, const char* pattern, std::initializer_list<Word> words);

template <class... Words>
Status invalid(const char* pattern, const Words&... words) {
  return describe(StatusCode::kInvalidArgument, pattern, {Word(words)...});
}
template <class... Words>
Status unsupported(const char* pattern, const Words&... words) {
  return describe(StatusCode::kUnsupported, pattern, {Word(words)...});
}

}  // namespace attentile::validation
