// SPDX-License-Identifier: Apache-2.0
#include "call.h"

#include <nanobind/stl/string.h>

#include <climits>
#include <optional>
#include <string>
#include <vector>

#include "cuda/backend.h"
#include "openmp.h"
#include "tensor.h"

namespace attentile::python {
namespace {

namespace nb = nanobind;

PyObject* unsupported_error = nullptr;

// Where the tensors of a tuple go.
template <class Group>
struct Slot {
  const char* name;
  TensorView Group::* view;
  bool by_layout;  // heads and rows may be swapped
  bool written;
};

struct Call {
  AttentionInputs inputs;
  AttentionOutputs outputs;
};

constexpr Slot<AttentionInputs> kInputSlots[] = {
    {"q", &AttentionInputs::q, true, false},
    {"k", &AttentionInputs::k, true, false},
    {"v", &AttentionInputs::v, true, false},
    {"bias", &AttentionInputs::bias, false, false},
    {"mask", &AttentionInputs::mask, false, false},
    {"sink", &AttentionInputs::sink, false, false},
    {"alibi_slopes", &AttentionInputs::alibi_slopes, false, false},
    {"cu_seqlens_q", &AttentionInputs::cu_seqlens_q, false, false},
    {"cu_seqlens_k", &AttentionInputs::cu_seqlens_k, false, false},
    {"seqused_k", &AttentionInputs::seqused_k, false, false},
    {"block_table", &AttentionInputs::block_table, false, false},
    {"cache_batch_idx", &AttentionInputs::cache_batch_idx, false, false},
    {"leftpad_k", &AttentionInputs::leftpad_k, false, false},
    {"block_mask", &AttentionInputs::block_mask, false, false}};
constexpr Slot<AttentionOutputs> kOutputSlots[] = {{"out", &AttentionOutputs::out, true, true},
                                                   {"lse", &AttentionOutputs::lse, false, true},
                                                   {"keep", &AttentionOutputs::keep, false, true}};
constexpr Slot<AttentionGradients> kGradientSlots[] = {
    {"dout", &AttentionGradients::dout, true, false},
    {"dq", &AttentionGradients::dq, true, true},
    {"dk", &AttentionGradients::dk, true, true},
    {"dv", &AttentionGradients::dv, true, true},
    {"dlse", &AttentionGradients::dlse, false, false},
    {"dbias", &AttentionGradients::dbias, false, true},
    {"dsink", &AttentionGradients::dsink, false, true}};

// Reads a tuple into group; what it lacks stays absent. writable: slots that say so are written.
template <class Group, size_t kCount>
void read_group(nb::handle tuple, bool writable, const Slot<Group> (&slots)[kCount], bool swapped,
                Group& group, Borrowed& memory) {
  const size_t given = nb::len(tuple);
  for (size_t i = 0; i < kCount && i < given; ++i) {
    const nb::handle object = PyTuple_GetItem(tuple.ptr(), static_cast<Py_ssize_t>(i));
    if (object.is_none()) continue;
    const Slot<Group>& slot = slots[i];
    TensorView view =
        writable && slot.written ? memory.write(slot.name, object) : memory.read(slot.name, object);
    group.*slot.view = swapped && slot.by_layout ? heads_second(view) : view;
  }
}

// (q, k, v, out, lse, keep, then the optional inputs in the order of kInputSlots).
Call read_call(nb::tuple tensors, bool forward, const Options& options, Borrowed& memory) {
  Call call;
  if (nb::len(tensors) < 5) throw nb::type_error("tensors: q, k, v, out and lse must be given");
  nb::object inputs = nb::steal(PyTuple_GetSlice(tensors.ptr(), 0, 3));
  nb::object outputs = nb::steal(PyTuple_GetSlice(tensors.ptr(), 3, 6));
  read_group(inputs, false, kInputSlots, options.heads_second, call.inputs, memory);
  read_group(outputs, forward, kOutputSlots, options.heads_second, call.outputs, memory);
  const size_t given = nb::len(tensors);
  for (size_t i = 6; i < given && i - 3 < std::size(kInputSlots); ++i) {
    const nb::handle object = PyTuple_GetItem(tensors.ptr(), static_cast<Py_ssize_t>(i));
    if (object.is_none()) continue;
    call.inputs.*kInputSlots[i - 3].view = memory.read(kInputSlots[i - 3].name, object);
  }
  return call;
}

// What the library calls every few milliseconds of a long call, on the calling thread.
struct Poll {
  nb::handle progress;
  std::optional<nb::python_error> raised;

  static int call(void* data, double fraction) {
    auto* poll = static_cast<Poll*>(data);
    nb::gil_scoped_acquire lock;
    try {
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      if (!poll->progress.is_none()) poll->progress(fraction);
      return 0;
    } catch (nb::python_error& error) {
      poll->raised.emplace(error);
      return 1;
    }
  }
};

[[noreturn]] void raise(const Status& status) {
  PyObject* type = PyExc_RuntimeError;
  switch (status.code()) {
    case StatusCode::kInvalidArgument: type = PyExc_ValueError; break;
    case StatusCode::kUnsupported:
    case StatusCode::kUnavailable: type = unsupported_error; break;
    case StatusCode::kOutOfMemory: type = PyExc_MemoryError; break;
    default: break;
  }
  PyErr_SetString(type, status.message().c_str());
  throw nb::python_error();
}

int threads_of(nb::handle given) {
  if (!PyBool_Check(given.ptr()) && PyIndex_Check(given.ptr())) {  // NumPy's integers too
    int overflow = 0;
    const nb::object number = nb::steal(PyNumber_Index(given.ptr()));
    if (!number.is_valid()) throw nb::python_error();
    const long threads = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
    if (overflow == 0 && threads >= INT_MIN && threads <= INT_MAX) return static_cast<int>(threads);
  }
  const std::string was = nb::cast<std::string>(nb::repr(given));
  const std::string text = "num_threads: was " + was + ", expected an integer in [0, 4096]";
  throw nb::type_error(text.c_str());
}

// The GPU of the tensors is the current one for the length of a call.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t device) {
    if (device < 0 || !cuda::backend().ok()) return;
    const cuda::BackendTable& table = **cuda::backend();
    cuda::Sentence sentence;
    int32_t code = table.current_device(&before_, &sentence);
    if (code == 0 && before_ != device) {
      code = table.set_device(device, &sentence);
      if (code == 0) table_ = &table;
    }
    if (code != 0) status_ = Status(static_cast<StatusCode>(code), sentence.text);
  }
  ~DeviceGuard() {
    cuda::Sentence sentence;
    if (table_ != nullptr) (void)table_->set_device(before_, &sentence);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  const Status& status() const { return status_; }

 private:
  const cuda::BackendTable* table_ = nullptr;
  int32_t before_ = 0;
  Status status_;
};

// Runs body(context) without the interpreter's lock; tensors of torch on torch's threads.
template <class Body>
void run(const Borrowed& memory, nb::handle num_threads, nb::handle progress, Body body) {
  if (!progress.is_none() && !PyCallable_Check(progress.ptr())) {
    throw nb::type_error("progress: cannot be called, expected a function of one number");
  }
  Poll poll{progress, std::nullopt};
  ExecutionContext context;
  context.num_threads = threads_of(num_threads);
  context.poll = Poll::call;
  context.poll_data = &poll;
  context.stream = memory.stream();
  Executor executor;
  // A callback may fork, and OpenMP's threads do not survive that.
  if (memory.has_tabled() && memory.device() < 0 && progress.is_none() &&
      openmp_executor(context.num_threads, &executor)) {
    context.executor = &executor;
  }
  Status status;
  {
    nb::gil_scoped_release unlocked;
    const DeviceGuard guard(memory.device());
    status = guard.status().ok() ? body(context) : guard.status();
  }
  if (poll.raised) throw nb::python_error(*poll.raised);
  if (!status.ok()) raise(status);
}

nb::dict facts(const Plan& plan) {
  nb::dict traffic;
  const auto add = [&traffic](const char* name, const Traffic& moved) {
    nb::dict bytes;
    bytes["bytes_read"] = moved.bytes_read;
    bytes["bytes_written"] = moved.bytes_written;
    traffic[name] = bytes;
  };
  add("standard", plan.traffic_standard);
  add("flash1", plan.traffic_flash1);
  add("flash2", plan.traffic_flash2);
  nb::list notes;
  for (const std::string& note : plan.notes) notes.append(nb::str(note.c_str()));
  nb::dict result;
  result["device"] = plan.device == Device::kCuda ? "cuda" : "cpu";
  result["kernel"] = plan.kernel;
  result["algorithm"] = to_string(plan.algorithm);
  result["isa"] = to_string(plan.isa);
  result["threads"] = plan.threads;
  result["tile_m"] = plan.tile_m;
  result["tile_n"] = plan.tile_n;
  result["num_tasks"] = plan.num_tasks;
  result["workspace_bytes"] = plan.workspace_bytes;
  result["fast_memory_bytes"] = plan.fast_memory_bytes;
  result["visible_pairs"] = plan.visible_pairs;
  result["flops"] = plan.flops;
  result["traffic"] = traffic;
  result["notes"] = notes;
  return result;
}

}  // namespace

void forward(nb::tuple tensors, const Options& options, nb::handle num_threads,
             nb::object progress) {
  Borrowed memory;
  const Call call = read_call(tensors, true, options, memory);
  run(memory, num_threads, progress, [&](const ExecutionContext& context) {
    return attention_forward(call.inputs, call.outputs, options.attention, context);
  });
}

void backward(nb::tuple tensors, nb::tuple gradients, const Options& options,
              nb::handle num_threads, nb::object progress) {
  Borrowed memory;
  const Call call = read_call(tensors, false, options, memory);
  AttentionGradients grads;
  read_group(gradients, true, kGradientSlots, options.heads_second, grads, memory);
  run(memory, num_threads, progress, [&](const ExecutionContext& context) {
    return attention_backward(call.inputs, call.outputs, grads, options.attention, context);
  });
}

void merge(nb::list parts, nb::tuple result, bool heads_second_layout, nb::handle num_threads) {
  std::vector<PartialState> states;
  std::vector<Borrowed> memory(nb::len(parts) + 1);
  const auto state = [&](nb::handle pair, bool written) {
    if (!nb::isinstance<nb::tuple>(pair) || nb::len(pair) != 2) {
      throw nb::type_error("parts: one is no pair, expected pairs (out, lse)");
    }
    Borrowed& held = memory[states.size()];
    PartialState s;
    s.out = written ? held.write("out", pair[0]) : held.read("out", pair[0]);
    s.lse = written ? held.write("lse", pair[1]) : held.read("lse", pair[1]);
    if (heads_second_layout) s.out = heads_second(s.out);
    return s;
  };
  for (nb::handle pair : parts) states.push_back(state(pair, false));
  const PartialState merged = state(result, true);
  run(memory.back(), num_threads, nb::none(),
      [&](const ExecutionContext& context) { return attentile::merge(states, merged, context); });
}

nb::dict plan(nb::tuple tensors, nb::object gradients, const Options& options,
              nb::handle num_threads) {
  Borrowed memory;
  const Call call = read_call(tensors, false, options, memory);
  ExecutionContext context;
  context.num_threads = threads_of(num_threads);
  AttentionGradients grads;
  if (!gradients.is_none()) {
    read_group(gradients, true, kGradientSlots, options.heads_second, grads, memory);
  }
  const DeviceGuard guard(memory.device());
  if (!guard.status().ok()) raise(guard.status());
  const Result<Plan> planned =
      gradients.is_none()
          ? plan_forward(call.inputs, call.outputs, options.attention, context)
          : plan_backward(call.inputs, call.outputs, grads, options.attention, context);
  if (!planned.ok()) raise(planned.status());
  return facts(*planned);
}

void bind_errors(nb::module_& module) {
  nb::object bases =
      nb::make_tuple(nb::handle(PyExc_ValueError), nb::handle(PyExc_NotImplementedError));
  unsupported_error = PyErr_NewExceptionWithDoc(
      "attentile.UnsupportedError",
      "A correct request that this build cannot serve; the sentence names the feature.",
      bases.ptr(), nullptr);
  if (unsupported_error == nullptr) throw nb::python_error();
  module.attr("UnsupportedError") = nb::handle(unsupported_error);
}

}  // namespace attentile::python
