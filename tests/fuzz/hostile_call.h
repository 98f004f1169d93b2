// SPDX-License-Identifier: Apache-2.0
// A call of the C ABI made of bytes: first one that is right, then fields of its structs spoilt one
// by one. Structs, inputs and outputs live in static memory that is brought back to the same state
// for every call, so a file of bytes always means the same call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <limits>

#include "attentile/c_api.h"

namespace attentile::fuzz {

inline constexpr size_t kArenaBytes = size_t{1} << 18;
inline constexpr size_t kStructBytes = 4096;  // the longest struct_size that is accepted
inline constexpr int kNumInputs = 14;
inline constexpr int kNumTensors = kNumInputs + 3 + 7;
inline constexpr int kFirstIndexArray = 7;  // cu_seqlens_q .. leftpad_k of the inputs
inline constexpr int kNumIndexArrays = 6;
inline constexpr int kDlse = kNumInputs + 4;  // dout and dlse are inputs too

inline void require(bool condition) {
  if (!condition) std::abort();
}

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  int64_t in(int64_t low, int64_t high) { return low + byte() % (high - low + 1); }
  bool flag() { return (byte() & 1) != 0; }
  bool rarely() { return byte() >= 0xE0; }
  uint64_t word() {
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return value;
  }
  bool empty() const { return left_ == 0; }

 private:
  const uint8_t* data_;
  size_t left_;
};

// A struct with room behind it: struct_size may promise up to kStructBytes, and the tail is read.
template <class Struct>
union Padded {
  Struct value;
  unsigned char bytes[kStructBytes];
};

alignas(64) inline unsigned char g_inputs[kArenaBytes];
alignas(64) inline unsigned char g_outputs[kArenaBytes];
alignas(64) inline unsigned char g_pristine[kArenaBytes];  // of g_inputs

struct Structs {
  Padded<attentile_tensor> tensor[kNumTensors];
  Padded<attentile_attention_inputs> inputs;
  Padded<attentile_attention_outputs> outputs;
  Padded<attentile_attention_gradients> gradients;
  Padded<attentile_options> options;
  Padded<attentile_context> context;
  Padded<attentile_executor> executor;
  Padded<attentile_traffic> traffic;
};
inline Structs g_structs;

inline int refuse(void*, void (*)(void*), void*) {
  return 1;
}
inline int poll_and_stop(void*, double fraction) {
  require(fraction >= 0 && fraction <= 1);
  return 1;
}

// The value to spoil an integer of the call with.
inline int64_t hostile_integer(Bytes& bytes, int64_t current) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
  // clang-format off
  constexpr int64_t kValues[] = {
      0, 1, -1, 2, 3, 4, 5, 8, 16, 63, 64, 65, -2, -8, 512, 513, 4095, 4096, 4097, 1 << 16,
      kMax, kMin, kMax / 2, kMin / 2, kMax - 1, kMin + 1, int64_t{1} << 31, int64_t{1} << 32,
      (int64_t{1} << 31) - 1, -(int64_t{1} << 31), int64_t{1} << 40, int64_t{1} << 58};
  // clang-format on
  const int64_t choice = bytes.byte();
  if (choice < 128) return kValues[static_cast<size_t>(choice) % std::size(kValues)];
  const auto bits = static_cast<uint64_t>(current);  // unsigned: may wrap
  if (choice < 192) return static_cast<int64_t>(bits + static_cast<uint64_t>(bytes.in(-4, 4)));
  if (choice < 224) return static_cast<int64_t>(0 - bits);
  return static_cast<int64_t>(bytes.word());
}

inline int64_t size_of_dtype(int32_t dtype) {
  constexpr int64_t kSizes[] = {4, 2, 2, 8, 4, 1, 1};
  return dtype >= 0 && dtype < 7 ? kSizes[dtype] : 8;
}

// Numbers of all kinds, NaN and infinity among them.
inline bool fill_pristine() {
  uint32_t state = 1;
  for (unsigned char& byte : g_pristine) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<unsigned char>(state >> 24);
  }
  return true;
}

class HostileCall {
 public:
  explicit HostileCall(Bytes& bytes) : bytes_(bytes) {
    static const bool filled = fill_pristine();
    require(filled);
    std::memcpy(g_inputs, g_pristine, kArenaBytes);
    std::memset(g_outputs, 0xA5, kArenaBytes);
    s_.inputs.value = ATTENTILE_INPUTS_INIT;
    s_.outputs.value = ATTENTILE_OUTPUTS_INIT;
    s_.gradients.value = ATTENTILE_GRADIENTS_INIT;
    s_.options.value = ATTENTILE_OPTIONS_INIT;
    s_.context.value = ATTENTILE_CONTEXT_INIT;
    s_.executor.value = ATTENTILE_EXECUTOR_INIT;
    s_.traffic.value = ATTENTILE_TRAFFIC_INIT;
    for (auto& tensor : s_.tensor) tensor.value = ATTENTILE_TENSOR_INIT;
    build_sizes();
    build_inputs();
    build_results();
    build_options();
  }

  // Spoils up to 8 fields.
  void spoil() {
    while (!bytes_.empty() && num_spoilt_ < 8) {
      ++num_spoilt_;
      switch (bytes_.in(0, 7)) {
        case 0: spoil_struct_size(); break;
        case 1: spoil_pointer(); break;
        case 2: spoil_data(); break;
        case 3: spoil_index(); break;
        case 4: spoil_option(); break;
        default: spoil_tensor(); break;
      }
    }
  }

  bool backward() const { return backward_; }
  bool spoilt() const { return num_spoilt_ > 0; }

  // Leaves no dirt behind the structs for the next run.
  ~HostileCall() {
    if (dirty_ != nullptr) *dirty_ = 0;
  }
  HostileCall(const HostileCall&) = delete;
  HostileCall& operator=(const HostileCall&) = delete;

 private:
  attentile_tensor& t(int index) { return s_.tensor[index].value; }

  void build_sizes() {
    backward_ = bytes_.flag();
    packed_ = bytes_.flag();
    paged_ = !backward_ && !packed_ && bytes_.flag();
    constexpr int32_t kTypes[] = {ATTENTILE_FLOAT32, ATTENTILE_FLOAT16, ATTENTILE_BFLOAT16,
                                  ATTENTILE_FLOAT64};
    dtype_ = kTypes[bytes_.in(0, 3)];
    batch_ = bytes_.in(0, 3);
    rows_q_ = bytes_.in(0, 9);
    rows_k_ = bytes_.in(0, 9);
    heads_kv_ = bytes_.in(0, 2);
    heads_q_ = heads_kv_ * bytes_.in(0, 3);
    dim_ = bytes_.in(1, 24);
    dim_v_ = bytes_.in(1, 24);
  }

  // A contiguous tensor, inputs and outputs one behind the other in their arenas.
  void make(int index, int32_t dtype, std::initializer_list<int64_t> shape) {
    attentile_tensor& tensor = t(index);
    const bool output = index >= kNumInputs && index != kDlse && index != kDlse - 1;
    size_t& used = output ? outputs_used_ : inputs_used_;
    tensor.dtype = dtype;
    tensor.rank = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), tensor.shape);
    int64_t elements = 1;
    for (int axis = tensor.rank - 1; axis >= 0; --axis) {
      tensor.stride[axis] = elements;
      elements *= tensor.shape[axis];
    }
    const auto bytes = static_cast<size_t>((elements * size_of_dtype(dtype) + 63) / 64 * 64);
    require(used + bytes <= kArenaBytes);
    tensor.data = (output ? g_outputs : g_inputs) + used;
    used += bytes;
  }

  void make_tokens(int index, bool query, int64_t heads, int64_t columns) {
    const int64_t rows = query ? rows_q_ : rows_k_;
    if (packed_) {
      make(index, dtype_, {batch_ * rows, heads, columns});
    } else if (paged_ && !query) {
      make(index, dtype_, {batch_ + 1, 4, heads, columns});
    } else {
      make(index, dtype_, {batch_, rows, heads, columns});
    }
  }

  void make_indices(int index, int64_t count, int32_t step) {
    make(index, ATTENTILE_INT32, {count});
    auto* values = static_cast<int32_t*>(t(index).data);
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<int32_t>(i) * step;
  }

  void build_inputs() {
    make_tokens(0, true, heads_q_, dim_);
    make_tokens(1, false, heads_kv_, dim_);
    make_tokens(2, false, heads_kv_, dim_v_);
    keys_ = paged_ ? std::min<int64_t>(rows_k_, 4) : rows_k_;
    make(3, bytes_.flag() ? dtype_ : int32_t{ATTENTILE_FLOAT32},
         {bytes_.flag() ? batch_ : 1, bytes_.flag() ? heads_q_ : 1, rows_q_, keys_});
    make(4, bytes_.flag() ? ATTENTILE_BOOL : ATTENTILE_UINT8, {rows_q_, bytes_.flag() ? keys_ : 1});
    make(5, ATTENTILE_FLOAT32, {heads_q_});
    make(6, ATTENTILE_FLOAT32, {batch_, heads_q_});
    make_indices(7, batch_ + 1, static_cast<int32_t>(rows_q_));
    make_indices(8, batch_ + 1, static_cast<int32_t>(rows_k_));
    make_indices(9, batch_, 0);
    for (int64_t b = 0; b < batch_; ++b)
      static_cast<int32_t*>(t(9).data)[b] = static_cast<int32_t>(keys_);
    make(10, ATTENTILE_INT32, {batch_, 1});
    for (int64_t b = 0; b < batch_; ++b)
      static_cast<int32_t*>(t(10).data)[b] = static_cast<int32_t>(b);
    make_indices(11, batch_, 1);
    make_indices(12, batch_, 0);
    block_size_ = bytes_.in(1, 5);
    make(13, ATTENTILE_UINT8,
         {bytes_.flag() ? heads_q_ : 1, (rows_q_ + block_size_ - 1) / block_size_,
          (keys_ + block_size_ - 1) / block_size_});
    const attentile_tensor** slots = &s_.inputs.value.q;
    const uint64_t optional = bytes_.byte() | uint64_t{bytes_.byte()} << 8;
    for (int i = 0; i < kNumInputs; ++i) {
      const bool given = i < 3 || (optional >> i & 1) != 0;
      slots[i] = given ? &t(i) : nullptr;
    }
    slots[7] = packed_ ? &t(7) : nullptr;
    slots[8] = packed_ ? &t(8) : nullptr;
    slots[10] = paged_ ? &t(10) : nullptr;
    if (paged_) slots[9] = &t(9);
    if (backward_ || paged_ || packed_) slots[11] = nullptr;
    if (backward_) slots[12] = nullptr;
    if (batch_ == 0) slots[3] = slots[4] = slots[13] = nullptr;
  }

  void make_rows(int index) {
    const int32_t dtype = dtype_ == ATTENTILE_FLOAT64 ? ATTENTILE_FLOAT64 : ATTENTILE_FLOAT32;
    if (packed_) {
      make(index, dtype, {heads_q_, batch_ * rows_q_});
    } else {
      make(index, dtype, {batch_, heads_q_, rows_q_});
    }
  }

  void build_results() {
    const int out = kNumInputs;
    make_tokens(out, true, heads_q_, dim_v_);
    make_rows(out + 1);
    make(out + 2, ATTENTILE_UINT8, {batch_, heads_q_, rows_q_, keys_});
    make_tokens(out + 3, true, heads_q_, dim_v_);
    make_rows(out + 4);
    make_tokens(out + 5, true, heads_q_, dim_);
    make_tokens(out + 6, false, heads_kv_, dim_);
    make_tokens(out + 7, false, heads_kv_, dim_v_);
    make(out + 8, t(3).dtype, {t(3).shape[0], t(3).shape[1], t(3).shape[2], t(3).shape[3]});
    make(out + 9, ATTENTILE_FLOAT32, {heads_q_});
    const uint8_t optional = bytes_.byte();
    s_.outputs.value.out = &t(out);
    s_.outputs.value.lse = backward_ || (optional & 1) != 0 ? &t(out + 1) : nullptr;
    s_.outputs.value.keep = !packed_ && batch_ > 0 && (optional & 2) != 0 ? &t(out + 2) : nullptr;
    const attentile_tensor** slots = &s_.gradients.value.dout;
    for (int i = 0; i < 5; ++i) slots[i] = &t(out + 3 + i);
    if ((optional & 4) != 0) slots[1] = nullptr;
    slots[5] = s_.inputs.value.bias != nullptr && (optional & 8) != 0 ? &t(out + 8) : nullptr;
    slots[6] = s_.inputs.value.sink != nullptr && (optional & 16) != 0 ? &t(out + 9) : nullptr;
  }

  void build_options() {
    attentile_options& o = s_.options.value;
    const uint8_t flags = bytes_.byte();
    o.causal = flags & 1;
    o.alignment = flags >> 1 & 1;
    o.dropout_p = (flags & 4) != 0 ? 0.25 : 0.0;
    o.softcap = (flags & 8) != 0 ? 2.0 : 0.0;
    o.window_left = (flags & 16) != 0 ? bytes_.in(-1, 8) : -1;
    o.window_right = (flags & 32) != 0 ? bytes_.in(-1, 8) : -1;
    o.has_position_offset = flags >> 6 & 1;
    o.position_offset = bytes_.in(-8, 8);
    o.algorithm = static_cast<int32_t>(bytes_.in(0, 4));
    o.fast_memory_bytes = bytes_.flag() ? 4096 : 0;
    o.block_size_q = o.block_size_k = block_size_;
    attentile_context& c = s_.context.value;
    c.num_threads = 1 + (flags >> 7);
    if (bytes_.rarely()) c.traffic = &s_.traffic.value;
    if (bytes_.rarely()) c.poll = poll_and_stop;
    if (bytes_.rarely()) {
      s_.executor.value.num_threads = 2;
      s_.executor.value.submit = refuse;
      c.executor = &s_.executor.value;
    }
  }

  void spoil_struct_size() {
    const struct {
      unsigned char* bytes;
      size_t known;
    } structs[] = {{s_.inputs.bytes, sizeof(attentile_attention_inputs)},
                   {s_.outputs.bytes, sizeof(attentile_attention_outputs)},
                   {s_.gradients.bytes, sizeof(attentile_attention_gradients)},
                   {s_.options.bytes, sizeof(attentile_options)},
                   {s_.context.bytes, sizeof(attentile_context)},
                   {s_.executor.bytes, sizeof(attentile_executor)},
                   {s_.traffic.bytes, sizeof(attentile_traffic)},
                   {s_.tensor[bytes_.in(0, kNumTensors - 1)].bytes, sizeof(attentile_tensor)}};
    const auto& which = structs[bytes_.in(0, std::size(structs) - 1)];
    const int64_t size = hostile_integer(bytes_, static_cast<int64_t>(which.known));
    const auto struct_size = static_cast<size_t>(size);
    std::memcpy(which.bytes, &struct_size, sizeof struct_size);
    if (bytes_.rarely() && dirty_ == nullptr) {
      dirty_ = which.bytes + kStructBytes - 1 - bytes_.byte();
      *dirty_ = 1;
    }
  }

  // Takes a tensor away, or gives one for another.
  void spoil_pointer() {
    const attentile_tensor** groups[] = {&s_.inputs.value.q, &s_.outputs.value.out,
                                         &s_.gradients.value.dout};
    constexpr int64_t kCounts[] = {kNumInputs, 3, 7};
    const int64_t group = bytes_.in(0, 2);
    groups[group][bytes_.in(0, kCounts[group] - 1)] =
        bytes_.flag() ? &t(static_cast<int>(bytes_.in(0, kNumTensors - 1))) : nullptr;
  }

  void spoil_data() {
    attentile_tensor& tensor = t(static_cast<int>(bytes_.in(0, kNumTensors - 1)));
    const int64_t choice = bytes_.in(0, 3);
    const size_t at = (static_cast<size_t>(bytes_.byte()) << 8 | bytes_.byte()) * 4;
    if (choice == 0) tensor.data = nullptr;
    if (choice == 1) tensor.data = g_inputs + at % kArenaBytes;
    if (choice == 2) tensor.data = g_outputs + at % kArenaBytes;
    if (choice == 3) tensor.data = t(static_cast<int>(at % kNumTensors)).data;
    if (bytes_.rarely() && tensor.data != nullptr) {
      tensor.data = static_cast<unsigned char*>(tensor.data) + 1;
    }
  }

  void spoil_index() {
    const auto which = static_cast<int>(kFirstIndexArray + bytes_.in(0, kNumIndexArrays - 1));
    const auto* begin = static_cast<unsigned char*>(t(which).data);
    if (begin < g_inputs || begin > g_inputs + kArenaBytes - 64) return;
    const auto offset =
        static_cast<size_t>(begin - g_inputs) / 4 * 4 + static_cast<size_t>(bytes_.in(0, 7)) * 4;
    int32_t value = 0;
    std::memcpy(&value, g_inputs + offset, sizeof value);
    value = static_cast<int32_t>(hostile_integer(bytes_, value));
    std::memcpy(g_inputs + offset, &value, sizeof value);
  }

  // Any 4 or 8 bytes of the options or the context's scalars.
  void spoil_option() {
    attentile_options& o = s_.options.value;
    attentile_context& c = s_.context.value;
    int64_t* const wide[] = {
        &o.position_offset, &o.window_left,  &o.window_right,      &o.query_base,
        &o.key_base,        &o.head_base,    &o.batch_base,        &o.dropout_num_heads_q,
        &o.block_size_q,    &o.block_size_k, &o.fast_memory_bytes, &c.workspace_bytes};
    int32_t* const narrow[] = {&o.has_softmax_scale,
                               &o.has_position_offset,
                               &o.causal,
                               &o.alignment,
                               &o.algorithm,
                               &o.isa,
                               &o.atomic_dq,
                               &o.reserved,
                               &c.reserved,
                               &s_.executor.value.num_threads,
                               &s_.executor.value.reserved};
    double* const real[] = {&o.softmax_scale, &o.softcap, &o.dropout_p};
    const int64_t choice = bytes_.in(0, 25);
    if (choice < 12) {
      *wide[choice] = hostile_integer(bytes_, *wide[choice]);
    } else if (choice < 23) {
      int32_t& value = *narrow[choice - 12];
      value = static_cast<int32_t>(hostile_integer(bytes_, value));
    } else {
      const uint64_t bits = bytes_.word();
      std::memcpy(real[choice - 23], &bits, sizeof bits);
    }
  }

  void spoil_tensor() {
    attentile_tensor& tensor = t(static_cast<int>(bytes_.in(0, kNumTensors - 1)));
    int32_t* const narrow[] = {&tensor.dtype, &tensor.device, &tensor.rank, &tensor.reserved};
    const int64_t choice = bytes_.in(0, 11);
    if (choice < 4) {
      *narrow[choice] = static_cast<int32_t>(hostile_integer(bytes_, *narrow[choice]));
    } else {
      int64_t& value = choice < 8 ? tensor.shape[choice - 4] : tensor.stride[choice - 8];
      value = hostile_integer(bytes_, value);
    }
  }

  Bytes& bytes_;
  Structs& s_ = g_structs;
  bool backward_ = false, packed_ = false, paged_ = false;
  int32_t dtype_ = 0;
  int64_t batch_ = 0, rows_q_ = 0, rows_k_ = 0, heads_q_ = 0, heads_kv_ = 0, dim_ = 0, dim_v_ = 0;
  int64_t keys_ = 0;  // the longest key sequence
  int64_t block_size_ = 1;
  size_t inputs_used_ = 0, outputs_used_ = 0;
  int num_spoilt_ = 0;
  unsigned char* dirty_ = nullptr;
};

}  // namespace attentile::fuzz
