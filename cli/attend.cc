// SPDX-License-Identifier: Apache-2.0
// `attentile attend`: attention on tensors from files, or synthetic ones, written to a file.
#include <cmath>

#include "attentile/attention.h"
#include "cli/attend_run.h"
#include "cli/commands.h"
#include "cli/facts.h"
#include "cli/memory.h"
#include "cli/numbers.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/tensors.h"
#include "io/safetensors.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

struct AttendRequest {
  TensorRequest tensors;
  AttendWork work;
  std::optional<std::string> out;
  bool json = false;
};

void declare(Arguments& arguments) {
  arguments.positional("IN.safetensors", "tensors q, k, v, ... by name");
  arguments.value("--out", "OUT.safetensors", "where the results go");
  for (const std::string& name : input_names()) {
    arguments.value("--" + name, "FILE.npy", "tensor " + name + " from a NumPy file");
  }
  arguments.value("--random", "B,SQ,SK,HQ,HK,D[,DV]", "N(0,1) input of these sizes, no file");
  arguments.value("--fill-seed", "S", "seed of --random, default 0");
  declare_mask_options(arguments);
  arguments.flag("--backward", "gradients too: dq, dk, dv, dbias, dsink");
  declare_dropout_options(arguments);
  arguments.flag("--keep-mask", "write dropout's keep mask too");
  declare_machine_options(arguments);
  declare_dtype_option(arguments, "f32, f64, f16 or bf16: rounds the inputs first");
  declare_layout_option(arguments);
  arguments.value("--max-heads", "N", "the first N query heads and their KV heads only");
  arguments.flag("--verify", "compare with the float64 oracle; exit 1 if it fails");
  arguments.flag("--json", "facts of the run on stdout");
}

TensorRequest read_tensor_request(const Arguments& arguments) {
  TensorRequest request;
  if (const std::string* path = arguments.find("IN.safetensors")) request.safetensors = *path;
  for (const std::string& name : input_names()) {
    if (const std::string* path = arguments.find("--" + name)) request.npy[name] = *path;
  }
  if (const std::string* text = arguments.find("--random")) {
    request.random = parse_shape("--random", *text);
    if (request.safetensors) {
      wrong_request("--random: given with the file {}, expected one source",
                    in_quotes(*request.safetensors));
    }
  }
  if (const std::string* text = arguments.find("--fill-seed")) {
    if (!request.random) wrong_request("--fill-seed: given without --random, expected both");
    request.fill_seed = parse_uint64("--fill-seed", *text);
  }
  if (!request.safetensors && !request.random && request.npy.empty()) {
    wrong_request(
        "IN.safetensors: no input was given, expected a file, --q, --k and --v, or "
        "--random");
  }
  request.dtype = read_dtype(arguments);
  request.layout = read_layout(arguments);
  if (const std::string* text = arguments.find("--max-heads")) {
    request.max_heads = parse_int("--max-heads", *text, {.min = 1, .max = kMaxSize});
  }
  request.backward = arguments.has("--backward");
  request.keep = arguments.has("--keep-mask");
  return request;
}

AttendRequest read_request(const Arguments& arguments, const Streams& streams) {
  AttendRequest request;
  request.tensors = read_tensor_request(arguments);
  request.work.device = read_device(arguments);
  request.work.options = read_options(arguments);
  request.work.threads = read_threads(arguments);
  request.work.layout = request.tensors.layout;
  request.work.verify = arguments.has("--verify");
  request.work.normal_inputs = request.tensors.random && !request.work.options.softmax_scale;
  request.work.progress = streams.err;
  request.json = arguments.has("--json");
  if (const std::string* path = arguments.find("--out")) {
    request.out = *path;
  } else if (!request.tensors.random && !request.work.verify) {
    wrong_request("--out: not given, expected the file for the results");
  }
  return request;
}

Json pass_facts(const PassResult& pass) {
  Json facts = plan_facts(pass.plan);
  facts["seconds"] = pass.seconds;
  facts["gflops"] = pass.seconds > 0 ? pass.plan.flops / pass.seconds * 1e-9 : 0.0;
  facts.update(traffic_facts(pass.traffic));
  return facts;
}

Json verdict_facts(const Judged& judged) {
  const reference::Verdict& verdict = judged.verdict;
  Json facts;
  facts["output"] = verdict.name;
  facts["elements"] = verdict.elements;
  facts["max_reference"] = verdict.max_reference;
  facts["max_error"] = verdict.max_error;
  facts["standard_error"] = verdict.standard_error;
  facts["allowed"] = verdict.allowed;
  facts["nan_elements"] = judged.nans;
  facts["passed"] = verdict.passed;
  facts["mistrusted"] = verdict.mistrusted;
  facts["reason"] = verdict.reason;
  return facts;
}

bool all_passed(const AttendResult& result) {
  for (const Judged& judged : result.judged) {
    if (!judged.verdict.passed) return false;
  }
  return true;
}

Json to_json(const AttendRequest& request, const AttendResult& result) {
  Json json;
  json["command"] = "attend";
  json.update(shape_facts(result.forward.problem, request.tensors.layout));
  json["device"] = to_string(request.work.device);
  Json plan = plan_facts(result.forward.plan);
  for (const char* name : {"algorithm", "isa", "threads"}) json[name] = plan[name];
  std::optional<Traffic> total = result.forward.traffic;
  double seconds = result.forward.seconds;
  if (result.backward) {
    if (total) {
      total->bytes_read += result.backward->traffic->bytes_read;
      total->bytes_written += result.backward->traffic->bytes_written;
    }
    seconds += result.backward->seconds;
  }
  json["seconds"] = seconds;
  json.update(traffic_facts(total));
  json["peak_resident_bytes"] = peak_resident_bytes();
  json["forward"] = pass_facts(result.forward);
  if (result.backward) json["backward"] = pass_facts(*result.backward);
  if (request.work.verify) {
    json["verified"] = all_passed(result);
    json["verify"] = Json::array();
    for (const Judged& judged : result.judged) json["verify"].push_back(verdict_facts(judged));
  }
  json["out"] = request.out ? Json(*request.out) : Json(nullptr);
  return json;
}

void print_pass(std::FILE* stream, const char* name, const PassResult& pass, DeviceChoice device) {
  const double gflops = pass.seconds > 0 ? pass.plan.flops / pass.seconds * 1e-9 : 0;
  // The emulator's time is not a GPU's.
  const std::string speed = device == DeviceChoice::kEmulator ? "-" : fmt::format("{:.1f}", gflops);
  const auto words = [&](int64_t Traffic::* bytes) {
    return pass.traffic ? bytes_words(static_cast<double>((*pass.traffic).*bytes)) : "-";
  };
  fmt::print(stream, "{:<8} {:>12} {:>14} {:>12} {:>12}   {} x {}\n", name,
             seconds_words(pass.seconds), speed, words(&Traffic::bytes_read),
             words(&Traffic::bytes_written), pass.plan.tile_m, pass.plan.tile_n);
}

void print_passes(std::FILE* stream, const AttendResult& result, DeviceChoice device) {
  const Plan& plan = result.backward ? result.backward->plan : result.forward.plan;
  fmt::print(stream, "{}\n{}, workspace {}\n\n", shape_words(result.forward.problem),
             place_words(plan), bytes_words(static_cast<double>(plan.workspace_bytes)));
  fmt::print(stream, "{:<8} {:>12} {:>14} {:>12} {:>12}   {}\n", "pass", "time", "GFLOP/s", "read",
             "written", "tiles");
  print_pass(stream, "forward", result.forward, device);
  if (result.backward) print_pass(stream, "backward", *result.backward, device);
}

void print_verdicts(std::FILE* stream, const std::vector<Judged>& outputs) {
  fmt::print(stream, "\n{:<8} {:>12} {:>14} {:>12}   {}\n", "output", "max error", "standard's",
             "allowed", "verdict");
  for (const auto& [verdict, nans] : outputs) {
    std::string word = !verdict.passed ? "FAIL" : verdict.mistrusted ? "mistrusted" : "pass";
    if (!verdict.reason.empty()) word += ": " + verdict.reason;
    if (nans > 0) {
      word +=
          fmt::format("; {} of {} elements are NaN here and by the oracle", nans, verdict.elements);
    }
    fmt::print(stream, "{:<8} {:>12.3e} {:>14.3e} {:>12.3e}   {}\n", verdict.name,
               verdict.max_error, verdict.standard_error, verdict.allowed, word);
  }
}

void print_text(std::FILE* stream, const AttendRequest& request, const AttendResult& result) {
  print_passes(stream, result, request.work.device);
  if (request.work.verify) print_verdicts(stream, result.judged);
  if (request.out) fmt::print(stream, "\nwritten: {}\n", io::printable_path(*request.out));
}

}  // namespace

Exit attend(const Words& words, const Streams& streams) {
  Arguments arguments("attend", "Attention on tensors from files, or synthetic ones.");
  declare(arguments);
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const AttendRequest request = read_request(arguments, streams);
  if (request.out) check_output("--out", *request.out, input_paths(request.tensors));

  const InterruptGuard guard;
  CallTensors call = load_call(request.tensors);
  InterruptGuard::check();
  check_block_size(call, request.work.options);
  const AttendResult result = run_attend(call, request.work);
  if (request.out) require_ok(io::write_safetensors(*request.out, call.results));
  if (request.json) {
    fmt::print(streams.out, "{}", to_text(to_json(request, result)));
  } else {
    print_text(streams.out, request, result);
  }
  return all_passed(result) ? Exit::kDone : Exit::kCheckFailed;
}

}  // namespace attentile::cli
