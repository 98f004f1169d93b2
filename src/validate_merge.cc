// SPDX-License-Identifier: Apache-2.0
// validate_merge: states of one shape and dtype, and a result that shares no memory with them
// unless it is one of them.
#include <cstdint>
#include <new>
#include <string>

#include "validate.h"
#include "validate_sharing.h"
#include "validate_text.h"
#include "validate_view.h"

namespace attentile {
namespace validation {
namespace {

// Rank and dtype of the result, which every part then follows.
Status check_result(const Argument& out, const Argument& lse) {
  const DType dtype = out.view->dtype;
  if (dtype != DType::kFloat32 && dtype != DType::kFloat16 && dtype != DType::kBFloat16 &&
      dtype != DType::kFloat64) {
    return invalid("{}: dtype is {}, but it must be float32, float16, bfloat16 or float64",
                   out.name, dtype);
  }
  const DType lse_dtype = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  if (Status s = expect_dtype(lse, lse_dtype, nullptr); !s.ok()) return s;
  const int64_t* n = out.view->shape;
  Status status;
  if (out.view->rank == 3) {
    status = expect_shape(lse, {{"num_heads_q", n[1], out.name}, {"total_q", n[0], out.name}});
  } else if (out.view->rank == 4) {
    status = expect_shape(
        lse,
        {{"batch", n[0], out.name}, {"num_heads_q", n[2], out.name}, {"seqlen_q", n[1], out.name}});
  } else {
    return invalid(
        "{}: rank is {}, but it must be 4: [batch, seqlen_q, num_heads_q, head_dim_v], "
        "or 3: [total_q, num_heads_q, head_dim_v]",
        out.name, out.view->rank);
  }
  if (!status.ok()) return status;
  const int64_t head_dim_v = n[out.view->rank - 1];
  if (head_dim_v < 1 || head_dim_v > 512) {
    return invalid("{}: head_dim_v is {}, but it must be in [1, 512]", out.name, head_dim_v);
  }
  return {};
}

bool same_shape(const TensorView& a, const TensorView& b) {
  if (a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] != b.shape[i]) return false;
  }
  return true;
}

Status expect_like(const Argument& part, const Argument& result) {
  if (Status s = expect_dtype(part, result.view->dtype, result.name); !s.ok()) return s;
  if (same_shape(*part.view, *result.view)) return {};
  return invalid("{}: shape is {}, but {} has shape {}", part.name, shape_of(*part.view),
                 result.name, shape_of(*result.view));
}

// Two views of one shape and dtype that have the same elements in the same places.
bool same_place(const TensorView& a, const TensorView& b) {
  if (a.data != b.data) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] > 1 && a.stride[i] != b.stride[i]) return false;
  }
  return true;
}

Status check_apart(const Argument& output, const Argument& other) {
  if (!byte_range_of(*output.view).meets(byte_range_of(*other.view))) return {};
  return check_disjoint(output, other);
}

// A view of a state by itself: given, and sound.
Status check_given(const Argument& argument) {
  if (Status s = require(argument, "it must be given"); !s.ok()) return s;
  if (argument.view->device == Device::kCuda) {
    return unsupported("{}: device is cuda, but merge computes on cpu only", argument.name);
  }
  return check_view(argument, Check::kCall);
}

Status check_part(const PartialState& part, const Argument (&names)[2],
                  const Argument (&results)[2]) {
  for (int i = 0; i < 2; ++i) {
    if (Status s = check_given(names[i]); !s.ok()) return s;
    if (Status s = expect_like(names[i], results[i]); !s.ok()) return s;
  }
  for (int i = 0; i < 2; ++i) {
    const TensorView& own = i == 0 ? part.out : part.lse;
    if (!same_place(*results[i].view, own)) {
      if (Status s = check_apart(results[i], names[i]); !s.ok()) return s;
    }
    if (Status s = check_apart(results[i], names[1 - i]); !s.ok()) return s;
  }
  return {};
}

// Names the part in the sentence; the success path builds no text.
Status check_numbered_part(size_t index, const PartialState& part, const Argument (&results)[2]) {
  const Argument plain[2] = {{"part.out", &part.out}, {"part.lse", &part.lse}};
  Status status = check_part(part, plain, results);
  if (status.ok()) return status;
  Word number(index);
  std::string prefix;
  try {
    prefix = "parts[";
    number.append_to(&prefix);
    const std::string out = prefix + "].out";
    const std::string lse = prefix + "].lse";
    const Argument numbered[2] = {{out.c_str(), &part.out}, {lse.c_str(), &part.lse}};
    return check_part(part, numbered, results);
  } catch (const std::bad_alloc&) {
    return status;
  }
}

}  // namespace
}  // namespace validation

Status validate_merge(const std::vector<PartialState>& parts, const PartialState& result) {
  using namespace validation;  // NOLINT(google-build-using-namespace)
  const Argument results[2] = {{"result.out", &result.out, Use::kWritten},
                               {"result.lse", &result.lse, Use::kWritten}};
  for (const Argument& argument : results) {
    if (Status s = check_given(argument); !s.ok()) return s;
  }
  if (Status s = check_result(results[0], results[1]); !s.ok()) return s;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (Status s = check_numbered_part(i, parts[i], results); !s.ok()) return s;
  }
  for (const Argument& argument : results) {
    if (Status s = check_distinct(argument); !s.ok()) return s;
  }
  return check_apart(results[1], results[0]);
}

}  // namespace attentile
