// SPDX-License-Identifier: Apache-2.0
// `attentile plan`: what a call would do, found without doing it.
#include "attentile/attention.h"
#include "cli/commands.h"
#include "cli/device_argument.h"
#include "cli/device_plan.h"
#include "cli/facts.h"
#include "cli/numbers.h"
#include "cli/synthetic_call.h"
#include "validate.h"

namespace attentile::cli {
namespace {

struct PlanRequest {
  TensorRequest tensors;
  SyntheticCall synthetic;
  AttentionOptions options;
  ExecutionContext context;
  DeviceChoice device = DeviceChoice::kCpu;
  std::optional<Gpu> gpu;
  bool backward = false;
  bool json = false;
};

void declare(Arguments& arguments) {
  arguments.positional("IN.safetensors", "plan for the tensors of this file");
  arguments.value("--shape", "B,SQ,SK,HQ,HK,D[,DV]", "plan for these sizes");
  declare_mask_options(arguments);
  arguments.flag("--backward", "the backward pass too");
  declare_dropout_options(arguments);
  declare_machine_options(arguments);
  declare_gpu(arguments);
  declare_dtype_option(arguments, "f32 (default), f64, f16 or bf16");
  declare_layout_option(arguments);
  arguments.flag("--json", "JSON on stdout");
}

PlanRequest read_request(const Arguments& arguments) {
  PlanRequest request;
  const std::string* path = arguments.find("IN.safetensors");
  const std::string* shape = arguments.find("--shape");
  if ((path == nullptr) == (shape == nullptr)) {
    wrong_request(
        "--shape: {}, expected a shape or a file",
        path == nullptr ? "not given, nor a file" : "given with the file " + in_quotes(*path));
  }
  request.gpu = read_gpu(arguments);
  if (request.gpu && arguments.find("--device") != nullptr) {
    wrong_request("--gpu: given with --device, expected one of them");
  }
  request.device = read_device(arguments);
  request.backward = arguments.has("--backward");
  request.json = arguments.has("--json");
  request.options = read_options(arguments);
  request.context.num_threads = read_threads(arguments);
  request.tensors.dtype = read_dtype(arguments);
  request.tensors.layout = read_layout(arguments);
  request.tensors.backward = request.backward;
  if (path != nullptr) request.tensors.safetensors = *path;
  if (shape != nullptr) {
    request.synthetic.shape = parse_shape("--shape", *shape);
    request.synthetic.dtype = request.tensors.dtype.value_or(DType::kFloat32);
    request.synthetic.layout = request.tensors.layout;
    request.synthetic.backward = request.backward;
  }
  return request;
}

struct Planned {
  Problem problem;
  Plan forward;
  std::optional<Plan> backward;
};

CallTensors tensors_of(const PlanRequest& request) {
  CallTensors call =
      request.tensors.safetensors ? load_call(request.tensors) : describe_call(request.synthetic);
  check_block_size(call, request.options);
  return call;
}

Planned make_plans(const PlanRequest& request) {
  const CallTensors call = tensors_of(request);
  Planned planned;
  planned.forward = take(plan_forward(call.inputs, call.outputs, request.options, request.context));
  planned.problem =
      take(validate_forward(call.inputs, call.outputs, request.options, Check::kPlan));
  if (request.backward) {
    planned.backward = take(
        plan_backward(call.inputs, call.outputs, call.gradients, request.options, request.context));
  }
  if (request.device != DeviceChoice::kCpu) {
    const AttentionOptions options = device_options(call, request.options);
    planned.forward = plan_on_device(call, options, false);
    if (request.backward) planned.backward = plan_on_device(call, options, true);
  }
  // Pointers into the call's index arrays die with it.
  planned.problem.cu_seqlens_q = planned.problem.cu_seqlens_k = {};
  return planned;
}

// Null where nothing is counted, on a device.
Json traffic_table(const Plan& plan) {
  if (plan.device != Device::kCpu) return nullptr;
  return {{"standard", traffic_facts(plan.traffic_standard)},
          {"flash1", traffic_facts(plan.traffic_flash1)},
          {"flash2", traffic_facts(plan.traffic_flash2)}};
}

Json to_json(const PlanRequest& request, const Planned& planned) {
  Json json;
  json["command"] = "plan";
  json.update(shape_facts(planned.problem, request.tensors.layout));
  json["device"] = to_string(request.device);
  json["forward"] = plan_facts(planned.forward);
  json["forward"]["traffic"] = traffic_table(planned.forward);
  if (planned.backward) json["backward"] = plan_facts(*planned.backward);
  return json;
}

void print_plan(std::FILE* out, const char* pass, const Plan& plan) {
  const auto line = [out](const char* name, const std::string& value) {
    fmt::print(out, "  {:<16}{}\n", name, value);
  };
  fmt::print(out, "\n{}\n", pass);
  line("runs", place_words(plan));
  line("tiles",
       fmt::format("{} queries x {} keys, {} tasks", plan.tile_m, plan.tile_n, plan.num_tasks));
  line("workspace", bytes_words(static_cast<double>(plan.workspace_bytes)));
  line("visible pairs", fmt::format("{}", plan.visible_pairs));
  line("flops", fmt::format("{:.4g}", plan.flops));
  for (const std::string& note : plan.notes) line(&note == &plan.notes.front() ? "why" : "", note);
}

void print_traffic(std::FILE* out, const Plan& plan) {
  fmt::print(out, "\nbytes moved by the forward pass with {} of fast memory\n",
             bytes_words(static_cast<double>(plan.fast_memory_bytes)));
  fmt::print(out, "  {:<16}{:>12}{:>12}{:>14}\n", "algorithm", "read", "written", "of standard");
  const auto row = [&](const char* name, const Traffic& traffic) {
    const auto bytes = [](const Traffic& t) {
      return static_cast<double>(t.bytes_read) + static_cast<double>(t.bytes_written);
    };
    const double all = bytes(plan.traffic_standard);
    fmt::print(out, "  {:<16}{:>12}{:>12}{:>13.1f}%\n", name,
               bytes_words(static_cast<double>(traffic.bytes_read)),
               bytes_words(static_cast<double>(traffic.bytes_written)),
               all > 0 ? 100 * bytes(traffic) / all : 0.0);
  };
  row("standard", plan.traffic_standard);
  row("flash1", plan.traffic_flash1);
  row("flash2", plan.traffic_flash2);
}

Exit plan_gpu(const PlanRequest& request, const Streams& streams) {
  const CallTensors call = tensors_of(request);
  const std::vector<GpuPass> passes =
      plan_for_gpu(*request.gpu, call, request.options, request.backward);
  const Problem problem =
      take(validate_forward(call.inputs, call.outputs, request.options, Check::kPlan));
  if (request.json) {
    Json json = {{"command", "plan"}};
    json.update(shape_facts(problem, request.tensors.layout));
    json["gpu"] = gpu_facts(*request.gpu, passes);
    fmt::print(streams.out, "{}", to_text(json));
  } else {
    fmt::print(streams.out, "{}\n", shape_words(problem));
    print_gpu(streams.out, *request.gpu, passes);
  }
  return Exit::kDone;
}

}  // namespace

Exit plan(const Words& words, const Streams& streams) {
  Arguments arguments("plan", "What a call would do, found without doing it.");
  declare(arguments);
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const PlanRequest request = read_request(arguments);
  if (request.gpu) return plan_gpu(request, streams);
  const Planned planned = make_plans(request);
  if (request.json) {
    fmt::print(streams.out, "{}", to_text(to_json(request, planned)));
    return Exit::kDone;
  }
  fmt::print(streams.out, "{}\n", shape_words(planned.problem));
  print_plan(streams.out, "forward", planned.forward);
  if (planned.backward) print_plan(streams.out, "backward", *planned.backward);
  if (request.device == DeviceChoice::kCpu) print_traffic(streams.out, planned.forward);
  return Exit::kDone;
}

}  // namespace attentile::cli
