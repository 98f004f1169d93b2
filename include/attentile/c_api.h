/* SPDX-License-Identifier: Apache-2.0
   The C ABI: the functions of attention.h behind plain structs, for C and for every language that
   can call C. Semantics, shapes and errors are those of attention.h; this page says what C adds.

   Structs. Each begins with struct_size, the sizeof it was compiled with; the initialisers below
   set it. A library that knows more fields takes the defaults for those a caller lacks; one that
   knows fewer accepts the others only if they are all zero bytes. struct_size below the first
   version's, or above 4096, is an error. Fields named reserved must be 0.

   Optional things are pointers, NULL where absent. Integers that stand for an enum are int32_t and
   may hold anything: an unknown value is an error, never undefined behaviour.

   Every function that can fail returns an attentile_status as int32_t. Unless it is ATTENTILE_OK,
   attentile_last_error() tells why. No function throws, prints, aborts or keeps a pointer after it
   returned. All may be called from several threads at once. */
#ifndef ATTENTILE_C_API_H_
#define ATTENTILE_C_API_H_

#include <stddef.h>
#include <stdint.h>

#ifndef ATTENTILE_API
#if defined(_WIN32)
#define ATTENTILE_API
#else
#define ATTENTILE_API __attribute__((visibility("default")))
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum attentile_status {
  ATTENTILE_OK = 0,
  ATTENTILE_INVALID_ARGUMENT = 1, /* the request was wrong; nothing was written */
  ATTENTILE_UNSUPPORTED = 2,      /* a correct request that this build cannot serve; likewise */
  ATTENTILE_OUT_OF_MEMORY = 3,    /* an allocation failed; outputs are undefined */
  ATTENTILE_CANCELLED = 4,        /* poll returned non-zero; outputs are undefined */
  ATTENTILE_UNAVAILABLE = 5,      /* the device, driver or instruction set is not there */
  ATTENTILE_INTERNAL = 6          /* a bug in this library; outputs are undefined */
} attentile_status;

typedef enum attentile_dtype {
  ATTENTILE_FLOAT32 = 0,
  ATTENTILE_FLOAT16 = 1,
  ATTENTILE_BFLOAT16 = 2,
  ATTENTILE_FLOAT64 = 3,
  ATTENTILE_INT32 = 4,
  ATTENTILE_UINT8 = 5,
  ATTENTILE_BOOL = 6 /* one byte, zero or non-zero */
} attentile_dtype;

typedef enum attentile_device { ATTENTILE_CPU = 0, ATTENTILE_CUDA = 1 } attentile_device;

typedef enum attentile_alignment {
  ATTENTILE_BOTTOM_RIGHT = 0, /* query i stands at i + seqlen_k - seqlen_q among the keys */
  ATTENTILE_TOP_LEFT = 1      /* query i stands at i */
} attentile_alignment;

typedef enum attentile_algorithm {
  ATTENTILE_ALGORITHM_AUTO = 0,
  ATTENTILE_REFERENCE = 1,
  ATTENTILE_STANDARD = 2,
  ATTENTILE_FLASH1 = 3,
  ATTENTILE_FLASH2 = 4
} attentile_algorithm;

typedef enum attentile_isa {
  ATTENTILE_ISA_AUTO = 0,
  ATTENTILE_SCALAR = 1,
  ATTENTILE_AVX2 = 2,
  ATTENTILE_AVX512 = 3,
  ATTENTILE_AVX512_BF16 = 4,
  ATTENTILE_NEON = 5,
  ATTENTILE_NEON_BF16 = 6,
  ATTENTILE_AMX = 7
} attentile_isa;

/* A strided view of memory that the caller owns. Strides count elements, may be 0 or negative in
   inputs, and are ignored where the size is at most 1. */
typedef struct attentile_tensor {
  size_t struct_size;
  void* data;     /* element [0, ..., 0], aligned to its size; NULL only without elements */
  int32_t dtype;  /* attentile_dtype */
  int32_t device; /* attentile_device */
  int32_t rank;   /* 0 to 4 */
  int32_t reserved;
  int64_t shape[4];
  int64_t stride[4]; /* in elements */
} attentile_tensor;

/* Every tensor that goes in. q, k and v are needed. With cu_seqlens_q, q is packed; with
   cu_seqlens_k, k and v are. Inputs are never written. */
typedef struct attentile_attention_inputs {
  size_t struct_size;
  const attentile_tensor* q;    /* [batch, seqlen_q, num_heads_q, head_dim]
                                   or packed [total_q, num_heads_q, head_dim]; any float type */
  const attentile_tensor* k;    /* [batch, seqlen_k, num_heads_kv, head_dim], packed [total_k, ...],
                                   or pages [num_pages, page_size, num_heads_kv, head_dim] */
  const attentile_tensor* v;    /* as k, with head_dim_v for head_dim */
  const attentile_tensor* bias; /* broadcastable to [batch, num_heads_q, seqlen_q, seqlen_k]
                                   (packed: the longest sequences); q's dtype or float32 */
  const attentile_tensor* mask; /* likewise; bool or uint8, non-zero = visible */
  const attentile_tensor* sink; /* [num_heads_q] float32 */
  const attentile_tensor* alibi_slopes;    /* [num_heads_q] or [batch, num_heads_q] float32 */
  const attentile_tensor* cu_seqlens_q;    /* [batch + 1] int32: 0, never falling, total_q */
  const attentile_tensor* cu_seqlens_k;    /* [batch + 1] int32: 0, never falling, total_k */
  const attentile_tensor* seqused_k;       /* [batch] int32, each in [0, seqlen_k] */
  const attentile_tensor* block_table;     /* [batch, max_pages] int32; needs seqused_k; forward */
  const attentile_tensor* cache_batch_idx; /* [batch] int32: k's row of each entry; forward */
  const attentile_tensor* leftpad_k;       /* [batch] int32, each in [0, used keys]; forward */
  const attentile_tensor* block_mask;      /* [num_heads_q or 1, tiles_q, tiles_k] bool or uint8;
                                              needs block_size_q and block_size_k */
} attentile_attention_inputs;

/* What the forward pass writes; the backward pass reads out and lse and ignores keep. */
typedef struct attentile_attention_outputs {
  size_t struct_size;
  const attentile_tensor* out;  /* as q, with head_dim_v for head_dim */
  const attentile_tensor* lse;  /* [batch, num_heads_q, seqlen_q], packed [num_heads_q, total_q];
                                   float32 (float64 for float64); NULL to do without (forward) */
  const attentile_tensor* keep; /* NULL or [batch, num_heads_q, seqlen_q, seqlen_k] uint8 */
} attentile_attention_outputs;

/* The gradients that come in (dout, dlse) and those that are written. */
typedef struct attentile_attention_gradients {
  size_t struct_size;
  const attentile_tensor* dout;  /* in: as out */
  const attentile_tensor* dlse;  /* in: as lse, or NULL */
  const attentile_tensor* dq;    /* as q */
  const attentile_tensor* dk;    /* as k */
  const attentile_tensor* dv;    /* as v */
  const attentile_tensor* dbias; /* bias's shape and dtype, or NULL */
  const attentile_tensor* dsink; /* as sink, or NULL */
} attentile_attention_gradients;

/* Scalars. Begin with ATTENTILE_OPTIONS_INIT: zeros are not the defaults (windows are -1). */
typedef struct attentile_options {
  size_t struct_size;
  int32_t has_softmax_scale;   /* 0: softmax_scale is 1 / sqrt(head_dim) */
  int32_t has_position_offset; /* 0: the alignment gives it */
  double softmax_scale;
  int64_t position_offset; /* query i stands at i + position_offset among the keys */
  int32_t causal;          /* non-zero: key j is visible if j <= i + offset */
  int32_t alignment;       /* attentile_alignment */
  int64_t window_left;     /* keys j >= i + offset - window_left; -1: unbounded */
  int64_t window_right;    /* keys j <= i + offset + window_right; -1: unbounded */
  double softcap;          /* 0: none */
  double dropout_p;        /* in [0, 1]; realised as a multiple of 2^-16 */
  uint64_t dropout_seed;
  uint64_t dropout_offset;
  int64_t query_base; /* where this piece of a larger problem starts, for dropout only */
  int64_t key_base;
  int64_t head_base;
  int64_t batch_base;
  int64_t dropout_num_heads_q; /* query heads of the whole problem; 0: as many as q has */
  int64_t block_size_q;        /* queries of a tile of block_mask */
  int64_t block_size_k;        /* keys of a tile of block_mask */
  int32_t algorithm;           /* attentile_algorithm */
  int32_t isa;                 /* attentile_isa */
  int64_t fast_memory_bytes;   /* flash1's M; 0: the L2 cache of one core */
  /* Of tensors on a GPU, whose index arrays are not read on the host: the longest sequence of
     queries and of keys, where cu_seqlens or block_table give the lengths. Longer ones are cut off.
     0: as long as the tensors allow, which costs time where that is far more. */
  int64_t max_seqlen_q;
  int64_t max_seqlen_k;
  int32_t atomic_dq; /* of tensors on a GPU, backward: non-zero: dq may be summed by atomic
                        additions in the pass that computes dk and dv, which saves a pass; its bits
                        then differ from run to run. Everywhere else it changes nothing */
  int32_t reserved;
} attentile_options;

/* The caller's threads, had in one of two ways; parallel goes first where both are given.
   submit arranges for task(argument) to run once, some time, on any thread, and returns 0; non-zero
   means that it never will. The call does not wait for a task that has not begun when the work is
   done; such a task returns at once.
   parallel, of a fork-join runtime such as OpenMP, runs task(argument) on the calling thread and on
   up to num_threads - 1 others at once, and returns when all these have returned. */
typedef struct attentile_executor {
  size_t struct_size;
  void* context;
  int32_t num_threads; /* the calling thread included, 1 to 4096 */
  int32_t reserved;
  int (*submit)(void* context, void (*task)(void* argument), void* argument);
  void (*parallel)(void* context, int32_t num_threads, void (*task)(void* argument),
                   void* argument);
} attentile_executor;

/* Bytes moved between slow and fast memory, counted where tiles are loaded and stored. */
typedef struct attentile_traffic {
  size_t struct_size;
  int64_t bytes_read;
  int64_t bytes_written;
} attentile_traffic;

/* How a call runs. */
typedef struct attentile_context {
  size_t struct_size;
  int32_t num_threads; /* 0: all cores this process may use; at most 4096 */
  int32_t reserved;
  const attentile_executor* executor; /* NULL: the library's own threads */
  /* Called at least every 50 ms on the calling thread with the fraction done, 0 to 1; a non-zero
     return stops the call. NULL: never. */
  int (*poll)(void* poll_data, double fraction);
  void* poll_data;
  void* workspace;            /* at least attentile_workspace_size bytes, any alignment, apart from
                                 all tensors; NULL: the library's own, of which up to 32 MiB are
                                 kept for later calls */
  int64_t workspace_bytes;    /* all of these may be used */
  attentile_traffic* traffic; /* filled in, unless NULL */
  void* stream;               /* of tensors on a GPU: the cudaStream_t that the call is put on, NULL
                                 for the default one. The call returns before it is done and, where
                                 it is given a workspace (device memory), allocates nothing and
                                 waits for nothing; poll and threads are not used */
} attentile_context;

/* What a call would do. */
typedef struct attentile_plan_info {
  size_t struct_size;
  int32_t backward;  /* 0 or 1 */
  int32_t algorithm; /* attentile_algorithm, never AUTO */
  int32_t isa;       /* attentile_isa, never AUTO; on a GPU AUTO */
  int32_t threads;
  int64_t tile_m; /* queries of a tile */
  int64_t tile_n; /* keys of a tile */
  int64_t num_tasks;
  int64_t workspace_bytes;
  int64_t fast_memory_bytes;
  int64_t visible_pairs; /* (query, key) pairs of the band and lengths, over all query heads */
  double flops;
  int64_t standard_bytes_read; /* bytes moved by each algorithm at fast_memory_bytes, forward; 0 on
                                  a GPU */
  int64_t standard_bytes_written;
  int64_t flash1_bytes_read;
  int64_t flash1_bytes_written;
  int64_t flash2_bytes_read;
  int64_t flash2_bytes_written;
  const char* notes;  /* lines: why these tiles, why no faster path; valid until this thread's next
                         call of attentile_plan */
  int32_t device;     /* attentile_device: where the tensors are */
  int32_t reserved;   /* 0 */
  const char* kernel; /* on a GPU: the one that holds the products; valid as long as notes. Empty on
                         a CPU, and where there is nothing to do */
} attentile_plan_info;

/* A softmax state over a part of the keys: out and lse as the forward pass writes them. */
typedef struct attentile_partial_state {
  size_t struct_size;
  const attentile_tensor* out;
  const attentile_tensor* lse;
} attentile_partial_state;

/* Initialisers: `attentile_tensor t = ATTENTILE_TENSOR_INIT;`. The functions do the same for
   languages without macros: `attentile_tensor_init(&t, sizeof t)` writes the sizeof t bytes that
   the caller's version of the struct has, whatever the library's. NULL is ignored. */
#define ATTENTILE_TENSOR_INIT \
  {sizeof(attentile_tensor), NULL, 0, 0, 0, 0, {0, 0, 0, 0}, {0, 0, 0, 0}}
#define ATTENTILE_INPUTS_INIT          \
  {sizeof(attentile_attention_inputs), \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL}
#define ATTENTILE_OUTPUTS_INIT {sizeof(attentile_attention_outputs), NULL, NULL, NULL}
#define ATTENTILE_GRADIENTS_INIT \
  {sizeof(attentile_attention_gradients), NULL, NULL, NULL, NULL, NULL, NULL, NULL}
#define ATTENTILE_OPTIONS_INIT \
  {sizeof(attentile_options),  \
   0,                          \
   0,                          \
   0.0,                        \
   0,                          \
   0,                          \
   0,                          \
   -1,                         \
   -1,                         \
   0.0,                        \
   0.0,                        \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0,                          \
   0}
#define ATTENTILE_EXECUTOR_INIT {sizeof(attentile_executor), NULL, 1, 0, NULL, NULL}
#define ATTENTILE_TRAFFIC_INIT {sizeof(attentile_traffic), 0, 0}
#define ATTENTILE_CONTEXT_INIT \
  {sizeof(attentile_context), 0, 0, NULL, NULL, NULL, NULL, 0, NULL, NULL}
#define ATTENTILE_PLAN_INFO_INIT \
  {sizeof(attentile_plan_info),  \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0.0,                          \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   0,                            \
   NULL,                         \
   0,                            \
   0,                            \
   NULL}
#define ATTENTILE_PARTIAL_STATE_INIT {sizeof(attentile_partial_state), NULL, NULL}

ATTENTILE_API void attentile_tensor_init(attentile_tensor* tensor, size_t struct_size);
ATTENTILE_API void attentile_inputs_init(attentile_attention_inputs* inputs, size_t struct_size);
ATTENTILE_API void attentile_outputs_init(attentile_attention_outputs* outputs, size_t struct_size);
ATTENTILE_API void attentile_gradients_init(attentile_attention_gradients* gradients,
                                            size_t struct_size);
ATTENTILE_API void attentile_options_init(attentile_options* options, size_t struct_size);
ATTENTILE_API void attentile_executor_init(attentile_executor* executor, size_t struct_size);
ATTENTILE_API void attentile_traffic_init(attentile_traffic* traffic, size_t struct_size);
ATTENTILE_API void attentile_context_init(attentile_context* context, size_t struct_size);
ATTENTILE_API void attentile_plan_info_init(attentile_plan_info* plan, size_t struct_size);
ATTENTILE_API void attentile_partial_state_init(attentile_partial_state* state, size_t struct_size);

/* In every function below options and context may be NULL: all defaults. */

/* Computes out (and lse, keep where given). Errors: INVALID_ARGUMENT, UNSUPPORTED and UNAVAILABLE
   (nothing written), OUT_OF_MEMORY, CANCELLED, INTERNAL. */
ATTENTILE_API int32_t attentile_attention_forward(const attentile_attention_inputs* inputs,
                                                  const attentile_attention_outputs* outputs,
                                                  const attentile_options* options,
                                                  const attentile_context* context);

/* Computes dq, dk, dv (and dbias, dsink where given) from the inputs, the forward pass's out and
   lse, dout (and dlse). Errors as above. */
ATTENTILE_API int32_t attentile_attention_backward(const attentile_attention_inputs* inputs,
                                                   const attentile_attention_outputs* outputs,
                                                   const attentile_attention_gradients* gradients,
                                                   const attentile_options* options,
                                                   const attentile_context* context);

/* Combines num_parts states over disjoint sets of keys into the state over their union. A state
   with lse = -inf is neutral, and so is the union of no parts. All have one shape and dtype. The
   result's tensors may be those of one part; they overlap nothing else. */
ATTENTILE_API int32_t attentile_merge(const attentile_partial_state* const* parts,
                                      int64_t num_parts, const attentile_partial_state* result,
                                      const attentile_context* context);

/* Bytes of workspace that the call with these arguments needs, on success in *bytes: of the
   forward pass if gradients is NULL, else of the backward pass. Data pointers may be NULL, except
   those of index arrays (cu_seqlens_q to leftpad_k), which are read. */
ATTENTILE_API int32_t attentile_workspace_size(const attentile_attention_inputs* inputs,
                                               const attentile_attention_outputs* outputs,
                                               const attentile_attention_gradients* gradients,
                                               const attentile_options* options,
                                               const attentile_context* context, int64_t* bytes);

/* Likewise, everything that is planned. Set plan->struct_size before the call. */
ATTENTILE_API int32_t attentile_plan(const attentile_attention_inputs* inputs,
                                     const attentile_attention_outputs* outputs,
                                     const attentile_attention_gradients* gradients,
                                     const attentile_options* options,
                                     const attentile_context* context, attentile_plan_info* plan);

/* Writes the instruction sets that run on this machine, best first, to isas[0 .. capacity) and
   returns how many there are; isas may be NULL if capacity is 0. Never fails: 0 on no memory. */
ATTENTILE_API int32_t attentile_available_isas(int32_t* isas, int32_t capacity);

/* One sentence about the last function returning a status that this thread called; "" if that one
   succeeded. Never NULL; valid until the thread's next call; cut after 1,023 bytes. */
ATTENTILE_API const char* attentile_last_error(void);

/* The lower-case name of a status, e.g. "invalid_argument"; "unknown" for other values. */
ATTENTILE_API const char* attentile_status_name(int32_t status);

/* The library's version, "MAJOR.MINOR.PATCH". */
ATTENTILE_API const char* attentile_version(void);

#ifdef __cplusplus
}
#endif

#endif /* ATTENTILE_C_API_H_ */
