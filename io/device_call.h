// SPDX-License-Identifier: Apache-2.0
// DeviceCall: the tensors of a call, mirrored in the memory of a GPU (or of the emulated one): same
// strides, same gaps, the same place within 256 bytes, and poison on both sides of each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "cuda/backend_table.h"

namespace attentile::io {

// Says of every view that is there where its memory lies.
void set_device(AttentionInputs& inputs, AttentionOutputs& outputs, AttentionGradients& gradients,
                Device device);

// What lies around a mirror: poison on both sides, its results poison too. Or nothing, for tools
// that see every access: the memory ends where the tensor ends, and nobody has written the results.
enum class Surroundings { kPoison, kNothing };

class DeviceCall {
 public:
  // Views of host memory; all that a view spans is copied, gaps too.
  DeviceCall(const cuda::BackendTable& table, const AttentionInputs& inputs,
             const AttentionOutputs& outputs, const AttentionGradients& gradients,
             Surroundings surroundings = Surroundings::kPoison);
  ~DeviceCall();
  DeviceCall(const DeviceCall&) = delete;
  DeviceCall& operator=(const DeviceCall&) = delete;

  // What failed so far: allocations and copies.
  const Status& status() const { return status_; }

  // Views of device memory.
  const AttentionInputs& inputs() const { return inputs_; }
  const AttentionOutputs& outputs() const { return outputs_; }
  const AttentionGradients& gradients() const { return gradients_; }

  // Both wait for the call; the workspace is the caller's, of the plan's size and full of NaN, or
  // the library's.
  Status run_forward(const AttentionOptions& options, bool own_workspace);
  Status run_backward(const AttentionOptions& options, bool own_workspace);

  // The next calls ask this poll, where the device computes before a call returns (the emulator).
  void set_poll(const ExecutionContext& asked);

  // The next calls of that pass use a workspace of their plan's size, full of NaN.
  Status use_workspace(const AttentionOptions& options, bool backward);
  // Puts a call on the stream and returns.
  Status start(const AttentionOptions& options, bool backward);
  Status synchronise();

  // Results of the passes so far, back to where they came from, gaps too. `backward`: gradients,
  // else out, lse and keep.
  Status download(bool backward);
  // The results are poison again.
  Status poison_results(bool backward);
  // Tensors whose surroundings, or which as inputs, were written; as of the last download.
  const std::string& damage() const { return damage_; }

 private:
  enum class Role { kInput, kOutput, kGradient };
  struct Mirror {
    const char* name;
    Role role;
    char* host;      // first byte that the view spans
    int64_t bytes;   // spanned
    char* memory;    // of the device: margin, bytes, margin
    int64_t margin;  // before the first byte
    int64_t total;
    std::vector<char> image;  // what was uploaded or, later, downloaded; empty: neither
  };

  Status check(int32_t code, const cuda::Sentence& sentence) const;
  void mirror(const char* name, Role role, TensorView& view);
  Status run(const AttentionOptions& options, bool backward, bool own_workspace);

  const cuda::BackendTable& table_;
  Surroundings surroundings_;
  AttentionInputs inputs_;
  AttentionOutputs outputs_;
  AttentionGradients gradients_;
  std::vector<Mirror> mirrors_;
  ExecutionContext context_;
  std::string damage_;
  Status status_;
};

}  // namespace attentile::io
