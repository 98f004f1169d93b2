// SPDX-License-Identifier: Apache-2.0
// The index arrays: where each sequence starts, how long it is and which pages hold its keys. On
// the CPU they are read here, so no kernel ever follows an index that was not seen to be in range.
// In device memory they are not: the longest sequences are the caller's word, or what the tensors
// allow, and kernels clamp every index.
#include <cstdint>
#include <limits>

#include "validate_call.h"
#include "validate_text.h"

namespace attentile::validation {
namespace {

constexpr int64_t kMaxScores = int64_t{1} << 58;

// int32, and of the given size.
Status check_index_array(const Argument& argument, const Size& size, IndexArray* array) {
  Status status = expect_dtype(argument, DType::kInt32, nullptr);
  if (status.ok()) status = expect_shape(argument, {size});
  if (status.ok()) *array = make_index_array(*argument.view);
  return status;
}

// cu_seqlens: 0, never falling, `total`. Finds the longest sequence.
Status check_cumulative(const Argument& argument, int64_t batch, const Size& total,
                        IndexArray* array, int64_t* longest) {
  Status status = check_index_array(argument, {"batch + 1", batch + 1, "cu_seqlens_q"}, array);
  if (!status.ok()) return status;
  const IndexArray& ends = *array;
  if (argument.view->device != Device::kCpu) {
    *longest = total.size;
    return {};
  }
  if (ends[0] != 0) {
    return invalid("{}[0]: is {}, but it must be 0", argument.name, ends[0]);
  }
  *longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    if (ends[b + 1] < ends[b]) {
      return invalid("{}[{}]: is {}, but it must be at least {}, the one before", argument.name,
                     b + 1, ends[b + 1], ends[b]);
    }
    *longest = max64(*longest, ends[b + 1] - ends[b]);
  }
  if (ends[batch] != total.size) {
    return invalid("{}[{}]: is {}, but {} has {} {}", argument.name, batch, ends[batch],
                   total.owner, total.label, total.size);
  }
  return {};
}

Status check_range(const char* name, int64_t index, int64_t value, int64_t high) {
  if (value >= 0 && value <= high) return {};
  return invalid("{}[{}]: is {}, but it must be in [0, {}]", name, index, value, high);
}

Status check_packed(Call* call) {
  Problem& p = call->problem;
  if (call->packed_q()) {
    Status status = check_cumulative({"cu_seqlens_q", &call->inputs.cu_seqlens_q}, p.batch,
                                     {"total_q", p.total_q, "q"}, &p.cu_seqlens_q, &p.max_seqlen_q);
    if (!status.ok()) return status;
  }
  if (!call->packed_k()) return {};
  return check_cumulative({"cu_seqlens_k", &call->inputs.cu_seqlens_k}, p.batch,
                          {"total_k", p.total_k, "k"}, &p.cu_seqlens_k, &p.max_seqlen_k);
}

// Sizes of block_table and of the pages; `*capacity` is how many keys a sequence can have.
Status check_pages(Call* call, int64_t* capacity) {
  Problem& p = call->problem;
  const TensorView& view = call->inputs.block_table;
  const Argument table = {"block_table", &view};
  if (Status status = expect_dtype(table, DType::kInt32, nullptr); !status.ok()) return status;
  Status status =
      expect_shape(table, {{"batch", p.batch, p.varlen ? "cu_seqlens_q" : "q"}, {"max_pages"}});
  if (!status.ok()) return status;
  p.page_size = call->inputs.k.shape[1];
  if (p.page_size < 1) {
    return invalid("k: page_size is {}, but it must be at least 1", p.page_size);
  }
  if (__builtin_mul_overflow(view.shape[1], p.page_size, capacity)) {
    *capacity = std::numeric_limits<int64_t>::max();
  }
  p.block_table = static_cast<const int32_t*>(view.data);
  const Array4 strides = make_array(view, {0, 1});
  p.block_table_stride[0] = strides.stride[0];
  p.block_table_stride[1] = strides.stride[1];
  return {};
}

// The entries of sequence b that hold its `used` keys.
Status check_page_entries(const Call& call, int64_t b, int64_t used) {
  const Problem& p = call.problem;
  const int64_t num_pages = call.inputs.k.shape[0];
  const int64_t pages_used = used / p.page_size + (used % p.page_size != 0 ? 1 : 0);
  for (int64_t i = 0; i < pages_used; ++i) {
    const int64_t page = p.block_table[b * p.block_table_stride[0] + i * p.block_table_stride[1]];
    if (page >= 0 && page < num_pages) continue;
    return invalid("block_table[{}][{}]: is {}, but it must be in [0, {}), as k has num_pages {}",
                   b, i, page, num_pages, num_pages);
  }
  return {};
}

// seqused_k, leftpad_k and block_table, sequence by sequence.
Status check_used(Call* call) {
  Problem& p = call->problem;
  const AttentionInputs& in = call->inputs;
  const Size batch = {"batch", p.batch, p.varlen ? "cu_seqlens_q" : "q"};
  int64_t capacity = p.max_seqlen_k;
  Status status;
  if (in.seqused_k.present()) {
    status = check_index_array({"seqused_k", &in.seqused_k}, batch, &p.seqused_k);
    if (!status.ok()) return status;
  }
  if (in.leftpad_k.present()) {
    status = check_index_array({"leftpad_k", &in.leftpad_k}, batch, &p.leftpad_k);
    if (!status.ok()) return status;
  }
  if (call->paged()) {
    if (status = check_pages(call, &capacity); !status.ok()) return status;
  }
  if (call->on_device() && call->paged()) {
    p.max_seqlen_k = capacity;
    if (__builtin_mul_overflow(p.batch, capacity, &p.total_k)) {
      p.total_k = std::numeric_limits<int64_t>::max();
    }
  }
  if (call->on_device() || (!in.seqused_k.present() && !in.leftpad_k.present())) return {};
  int64_t longest = 0;
  int64_t total = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t given = call->packed_k() ? p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b] : capacity;
    const int64_t used = in.seqused_k.present() ? p.seqused_k[b] : given;
    if (status = check_range("seqused_k", b, used, given); !status.ok()) return status;
    if (in.leftpad_k.present()) {
      if (status = check_range("leftpad_k", b, p.leftpad_k[b], used); !status.ok()) return status;
    }
    if (call->paged()) {
      if (status = check_page_entries(*call, b, used); !status.ok()) return status;
    }
    longest = max64(longest, used);
    total += used;
  }
  if (call->paged()) {
    p.max_seqlen_k = longest;
    p.total_k = total;
  }
  return {};
}

Status check_cache_rows(Call* call) {
  Problem& p = call->problem;
  const Argument rows = {"cache_batch_idx", &call->inputs.cache_batch_idx};
  if (rows.absent()) return {};
  const Size batch = {"batch", p.batch, p.varlen ? "cu_seqlens_q" : "q"};
  Status status = check_index_array(rows, batch, &p.cache_batch_idx);
  if (!status.ok() || call->on_device()) return status;
  const int64_t num_rows = call->inputs.k.shape[0];
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t row = p.cache_batch_idx[b];
    if (row >= 0 && row < num_rows) continue;
    return invalid("cache_batch_idx[{}]: is {}, but it must be in [0, {}), as k has batch_cache {}",
                   b, row, num_rows, num_rows);
  }
  return {};
}

// The caller's word on lengths that lie in device memory.
void shorten(Call* call) {
  Problem& p = call->problem;
  const AttentionOptions& o = call->options;
  if (!call->on_device()) return;
  if (call->packed_q() && o.max_seqlen_q > 0) {
    p.max_seqlen_q = min64(p.max_seqlen_q, o.max_seqlen_q);
  }
  if ((call->packed_k() || call->paged()) && o.max_seqlen_k > 0) {
    p.max_seqlen_k = min64(p.max_seqlen_k, o.max_seqlen_k);
  }
}

// Rows of k over the batch, and a bound on everything that is counted per score.
Status check_amount(Call* call) {
  Problem& p = call->problem;
  if (!call->packed_k() && !call->paged() &&
      __builtin_mul_overflow(p.batch, p.max_seqlen_k, &p.total_k)) {
    return invalid("k: seqlen_k is {}, but over a batch of {} the keys must be fewer than 2^63",
                   p.max_seqlen_k, p.batch);
  }
  int64_t scores = 0;
  bool many = __builtin_mul_overflow(p.total_q, p.num_heads_q, &scores);
  many = __builtin_mul_overflow(scores, p.max_seqlen_k, &scores) || many;
  if (many || scores > kMaxScores) {
    return invalid(
        "q: {} rows of num_heads_q {} meet up to {} keys, but the scores of a call must not exceed "
        "2^58",
        p.total_q, p.num_heads_q, p.max_seqlen_k);
  }
  return {};
}

}  // namespace

Status check_lengths(Call* call) {
  if (Status status = check_packed(call); !status.ok()) return status;
  if (Status status = check_used(call); !status.ok()) return status;
  if (Status status = check_cache_rows(call); !status.ok()) return status;
  shorten(call);
  return check_amount(call);
}

}  // namespace attentile::validation
