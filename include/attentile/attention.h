// SPDX-License-Identifier: Apache-2.0
// Exact attention, forward and backward, in O(seqlen) memory.
//
//     S    = softmax_scale * Q K^T
//     S    = softcap * tanh(S / softcap)                   if softcap > 0
//     S    = S + bias - slope_h * |i + offset - j|         dense bias and ALiBi, where given
//     S    = mask(S)                                       hidden -> -inf
//     lse  = log(sum_j exp(S_ij) [+ exp(sink_h)])          natural logarithm
//     P    = exp(S - lse)
//     O    = dropout(P, p) V
//
// Query i stands at position i + offset among the keys; offset is seqlen_k - seqlen_q
// (bottom_right), 0 (top_left) or given. A row that sees no key has out = 0 and lse = -inf.
// Results are bitwise equal from run to run and for any number of threads, any layout of the same
// values and any rest of the batch; option atomic_dq gives that up for dq on a GPU. Accumulation is
// float32 (float64 for float64 inputs).
//
// Sources: Dao et al. 2022 (FlashAttention, algorithms 1, 2, 4, 5), Dao 2023 (FlashAttention-2,
// algorithms 1, 2), Milakov and Gimelshein 2018 (online softmax), Salmon et al. 2011 (Philox).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attentile/status.h"
#include "attentile/tensor.h"

namespace attentile {

// Every tensor that goes in. Only q, k and v are needed; any strides are served. Shapes are
// batch-first; those in parentheses hold for varlen (cu_seqlens_q given).
struct AttentionInputs {
  // [batch, seqlen_q, num_heads_q, head_dim]      ([total_q, num_heads_q, head_dim])
  TensorView q = {};
  // [batch, seqlen_k, num_heads_kv, head_dim]     ([total_k, num_heads_kv, head_dim])
  // or, with block_table, [num_pages, page_size, num_heads_kv, head_dim]
  TensorView k = {};
  TensorView v = {};  // as k, with head_dim_v for head_dim

  // Broadcastable to [batch, num_heads_q, seqlen_q, seqlen_k].
  TensorView bias = {};  // q's dtype or float32
  TensorView mask = {};  // bool or uint8, non-zero = visible

  TensorView sink = {};          // [num_heads_q] float32: one more logit per row, without a value
  TensorView alibi_slopes = {};  // [num_heads_q] or [batch, num_heads_q] float32

  TensorView cu_seqlens_q = {};  // [batch + 1] int32, cumulative lengths from 0 to total_q
  TensorView cu_seqlens_k = {};  // [batch + 1] int32, cumulative lengths from 0 to total_k
  TensorView seqused_k = {};     // [batch] int32: keys used of each sequence

  // The paged and the indexed cache; forward only.
  TensorView block_table = {};      // [batch, max_pages] int32: pages of k and v
  TensorView cache_batch_idx = {};  // [batch] int32: row of k and v that each batch entry uses
  TensorView leftpad_k = {};        // [batch] int32: leading keys to skip

  // [num_heads_q or 1, tiles_q, tiles_k] bool or uint8: block sparsity, tiles of
  // block_size_q x block_size_k counted from query 0 and key 0
  TensorView block_mask = {};
};

// What the forward pass writes; the backward pass reads out and lse.
struct AttentionOutputs {
  // [batch, seqlen_q, num_heads_q, head_dim_v] in q's dtype (varlen: packed as q)
  TensorView out = {};
  // [batch, num_heads_q, seqlen_q] float32, float64 when q is float64 (varlen: [num_heads_q,
  // total_q]); optional in the forward pass
  TensorView lse = {};
  // optional, uint8 [batch, num_heads_q, seqlen_q, seqlen_k]: 1 where dropout keeps, for every
  // (i, j), hidden or not; not with varlen
  TensorView keep = {};
};

// The gradients that come in (dout, dlse) and those that are written.
struct AttentionGradients {
  TensorView dout = {};   // in: as out
  TensorView dlse = {};   // in, optional: as lse
  TensorView dq = {};     // as q
  TensorView dk = {};     // as k; the sum over the query heads of its group
  TensorView dv = {};     // as v; likewise
  TensorView dbias = {};  // optional: bias's shape and dtype, broadcast dimensions summed
  TensorView dsink = {};  // optional: as sink, float32
};

enum class Alignment : int32_t { kBottomRight = 0, kTopLeft = 1 };

enum class Algorithm : int32_t {
  kAuto = 0,       // flash2
  kReference = 1,  // the definition, in float64, without tiles: the oracle
  kStandard = 2,   // scores materialised in float32 or float64: O(seqlen_q * seqlen_k) memory
  kFlash1 = 3,     // FlashAttention: key tiles outside, query tiles inside
  kFlash2 = 4,     // FlashAttention-2: query tiles outside, parallel over the sequence
};

// One that the build or the machine lacks is refused, for every algorithm.
enum class Isa : int32_t {
  kAuto = 0,
  kScalar = 1,
  kAvx2 = 2,
  kAvx512 = 3,
  kAvx512Bf16 = 4,
  kNeon = 5,
  kNeonBf16 = 6,
  kAmx = 7,  // AVX-512; products on the matrix unit
};

struct AttentionOptions {
  std::optional<double> softmax_scale = std::nullopt;  // default 1 / sqrt(head_dim)
  bool causal = false;                                 // key j is visible if j <= i + offset
  Alignment alignment = Alignment::kBottomRight;
  std::optional<int64_t> position_offset = std::nullopt;  // overrides the alignment's offset
  int64_t window_left = -1;   // keys j >= i + offset - window_left; -1: unbounded
  int64_t window_right = -1;  // keys j <= i + offset + window_right; -1: unbounded
  double softcap = 0.0;       // 0: none

  // Dropout with a counter-based generator (Philox4x32-10): the decision for (batch, head, i, j)
  // depends on (seed, offset) and those four positions only. The realised probability is dropout_p
  // rounded to a multiple of 2^-16 (a relative bias of the mean of at most 2^-17 / (1 - p)).
  double dropout_p = 0.0;  // in [0, 1]
  uint64_t dropout_seed = 0;
  uint64_t dropout_offset = 0;
  // For a piece of a larger problem: where the piece starts, and the whole number of query heads
  // (0: as many as q has). They enter the generator's counter and nothing else.
  int64_t query_base = 0;
  int64_t key_base = 0;
  int64_t head_base = 0;
  int64_t batch_base = 0;
  int64_t dropout_num_heads_q = 0;

  // Of tensors on a GPU, whose index arrays are not read here: the longest sequence of queries and
  // of keys, where cu_seqlens or block_table give the lengths. Longer ones are cut off. 0: as long
  // as the tensors allow, which costs time where that is far more.
  int64_t max_seqlen_q = 0;
  int64_t max_seqlen_k = 0;
  // Of tensors on a GPU, backward: dq may be summed by atomic additions in the pass that computes
  // dk and dv, which saves a pass; its bits then differ from run to run. Everywhere else it changes
  // nothing. The plan's kernels say what runs.
  bool atomic_dq = false;

  int64_t block_size_q = 0;  // tile of block_mask, queries; needed with block_mask
  int64_t block_size_k = 0;  // tile of block_mask, keys

  Algorithm algorithm = Algorithm::kAuto;
  Isa isa = Isa::kAuto;           // kAuto: the best this machine has, or ATTENTILE_CPU_ISA
  int64_t fast_memory_bytes = 0;  // flash1's M, in bytes; 0: the L2 cache of one core
};

// The caller's threads, had in one of two ways; parallel goes first where both are given.
// submit, of a pool with a queue, must arrange for task(argument) to run once, some time, on any
// thread, and return 0; non-zero means it did not and will not. The calling thread always works
// too, and the call does not wait for a submitted task that has not begun when the work is done:
// such a task returns at once when it runs, so it must be run (or leaked) eventually.
// parallel, of a fork-join runtime such as OpenMP, must run task(argument) on the calling thread
// and on up to num_threads - 1 others at once, and return when all these have returned.
struct Executor {
  void* context = nullptr;
  int num_threads = 1;  // threads to use, the calling one included
  int (*submit)(void* context, void (*task)(void* argument), void* argument) = nullptr;
  void (*parallel)(void* context, int num_threads, void (*task)(void* argument),
                   void* argument) = nullptr;
};

// Bytes an algorithm moved between slow and fast memory, counted in its tile loads and stores.
struct Traffic {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
};

struct ExecutionContext {
  // 0: all cores this process may use, or executor->num_threads; at most 4096
  int num_threads = 0;
  const Executor* executor = nullptr;  // null: the library's own pool, started on first use
  // Called at least every 50 ms on the calling thread with the fraction done, 0 to 1; a non-zero
  // return stops the call, which then reports kCancelled and leaves the outputs undefined.
  int (*poll)(void* poll_data, double fraction) = nullptr;
  void* poll_data = nullptr;
  // Memory of the call, workspace_bytes long: at least the workspace_bytes of its plan, any
  // alignment, apart from all tensors. null: the library's own, of which up to 32 MiB are kept for
  // later calls.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  Traffic* traffic = nullptr;  // filled in where given; zero for kReference and merge
  // Of tensors on a GPU alone: the cudaStream_t that the call is put on, null for the default one.
  // The call returns before it is done. It allocates nothing and waits for nothing where it is
  // given a workspace (device memory), and may then be captured into a graph; threads, executor and
  // poll are not used.
  void* stream = nullptr;
};

// Computes out (and lse, keep where given). Memory beyond inputs and outputs is O(seqlen), except
// algorithm kStandard; kReference needs O(seqlen_k) per thread. Errors: kInvalidArgument,
// kUnsupported and kUnavailable (nothing written), kOutOfMemory, kCancelled, kInternal. Tensors on
// a GPU (Device::kCuda, all of a call's or none) need libattentile_cuda.so; see docs/gpu.md.
Status attention_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                         const AttentionOptions& options = {},
                         const ExecutionContext& context = {});

// Computes dq, dk, dv (and dbias, dsink where given) from the inputs, the forward pass's out and
// lse, and the incoming dout (and dlse). With dropout, the same (seed, offset) replays the mask.
// Memory and errors as above; for dbias kReference besides holds, per thread, a float64 copy of the
// part of it that one task sums.
Status attention_backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                          const AttentionGradients& gradients, const AttentionOptions& options = {},
                          const ExecutionContext& context = {});

// One state of a softmax over a part of the keys: out and lse as attention_forward writes them.
struct PartialState {
  TensorView out = {};
  TensorView lse = {};
};

// Combines states over disjoint sets of keys into the state over their union:
// lse = log(sum_p exp(lse_p)), out = sum_p exp(lse_p - lse) out_p. A state with lse = -inf is
// neutral. result may be one of the parts (same address and strides), else must not overlap them.
Status merge(const std::vector<PartialState>& parts, const PartialState& result,
             const ExecutionContext& context = {});

// What a call would do, found without doing it.
struct Plan {
  Device device = Device::kCpu;
  std::string kernel;  // on a GPU: the one that holds the products; empty if there is nothing to do
  bool backward = false;
  Algorithm algorithm = Algorithm::kAuto;  // the one that runs, never kAuto
  Isa isa = Isa::kAuto;                    // likewise; on a GPU kAuto
  int threads = 1;
  int64_t tile_m = 0;  // queries of a forward task; one panel in the backward pass and for flash1
  int64_t tile_n = 0;  // keys of a tile
  int64_t num_tasks = 0;
  int64_t workspace_bytes = 0;
  int64_t fast_memory_bytes = 0;
  // (query, key) pairs that the band and the lengths leave visible, all query heads together; where
  // the lengths lie in device memory: all pairs there could be
  int64_t visible_pairs = 0;
  double flops = 0;  // 2 (d + dv), backward 2 (3d + 2dv), per visible pair
  // What the tile loads and stores of a forward call would count with these threads and this
  // fast_memory_bytes. Exact unless a visible value is NaN or infinite; a block pattern counts as
  // all visible where its data is null or walking it would take more than 2^24 steps. Saturates. 0
  // on a GPU, where nothing is counted.
  Traffic traffic_standard;
  Traffic traffic_flash1;
  Traffic traffic_flash2;
  std::vector<std::string> notes;  // why these tiles, and for each faster path why it does not run
};

Result<Plan> plan_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                          const AttentionOptions& options = {},
                          const ExecutionContext& context = {});
Result<Plan> plan_backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                           const AttentionGradients& gradients,
                           const AttentionOptions& options = {},
                           const ExecutionContext& context = {});

// The instruction sets whose kernels are built in and run on this machine, best first; none only
// where there is no memory for the list.
std::vector<Isa> available_isas() noexcept;

const char* to_string(Algorithm algorithm);
const char* to_string(Isa isa);

}  // namespace attentile
