// SPDX-License-Identifier: Apache-2.0
// `attentile info`: what this machine has and what this build can do on it.
#include "attentile/attention.h"
#include "attentile/version.h"
#include "cli/attention_arguments.h"
#include "cli/build_info.h"
#include "cli/commands.h"
#include "cli/facts.h"
#include "cli/memory.h"
#include "cli/numbers.h"
#include "cli/peak.h"
#include "cli/progress.h"
#include "cpu/cpu_info.h"
#include "cpu/executor.h"
#include "cpu/peak.h"
#include "cuda/backend.h"

namespace attentile::cli {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};

Json cache_facts(const cpu::CpuInfo& cpu) {
  return {{"l1d_bytes", cpu.l1d_bytes}, {"l2_bytes", cpu.l2_bytes}, {"l3_bytes", cpu.l3_bytes}};
}

bool built_in(Isa isa) {
  for (Isa available : available_isas()) {
    if (available == isa) return true;
  }
  return false;
}

Json isa_facts() {
  Json isas = Json::array();
  for (Isa isa : cpu::isa_priority()) {
    isas.push_back({{"name", to_string(isa)},
                    {"machine", cpu::cpu_supports(isa)},
                    {"kernels", built_in(isa)}});
  }
  return isas;
}

Json kernel_facts() {
  Json kernels = Json::array();
  for (Isa isa : available_isas()) {
    for (const char* algorithm : {"flash2", "flash1", "standard"}) {
      kernels.push_back({{"isa", to_string(isa)},
                         {"algorithm", algorithm},
                         {"passes", {"forward", "backward"}},
                         {"dtypes", {"f32", "f64", "f16", "bf16"}},
                         {"head_dim", "1 to 512"}});
    }
  }
  kernels.push_back({{"isa", "any"},
                     {"algorithm", "reference"},
                     {"passes", {"forward", "backward"}},
                     {"dtypes", {"f32", "f64", "f16", "bf16"}},
                     {"head_dim", "1 to 512"}});
  return kernels;
}

// The devices of the CUDA backend; where there are none, `why` says what was tried.
Json gpu_facts(std::string& why) {
  Json gpus = Json::array();
  const Result<const cuda::BackendTable*>& table = cuda::backend();
  if (!table.ok()) {
    why = table.status().message();
    return gpus;
  }
  cuda::Sentence sentence;
  int32_t count = 0;
  if ((*table)->device_count(&count, &sentence) != 0) why = sentence.text;
  for (int32_t device = 0; device < count; ++device) {
    cuda::DeviceInfo gpu;
    if ((*table)->device_info(device, &gpu, &sentence) != 0) {
      why = sentence.text;
      continue;
    }
    gpus.push_back({{"name", gpu.name},
                    {"backend", (*table)->name},
                    {"compute_capability", gpu.compute_capability / 10.0},
                    {"memory_bytes", gpu.memory_bytes},
                    {"num_sms", gpu.limits.num_sms},
                    {"shared_bytes_per_block", gpu.limits.shared_bytes_per_block}});
  }
  return gpus;
}

Json limits() {
  return {"block_table, cache_batch_idx and leftpad_k: forward only",
          "keep mask: not with cu_seqlens",
          "cuda: flash2 alone; f16, bf16 and f32; head_dim 1 to 256; no block_mask, no merge"};
}

Json measured_facts(int threads, ProgressBar& bar) {
  require_memory("--measure", static_cast<double>(read_bandwidth_bytes(threads)));
  Json peaks = Json::array();
  const double steps = static_cast<double>(std::size(kDTypes) * available_isas().size() + 1);
  for (DType dtype : kDTypes) {
    for (Isa isa : available_isas()) {
      bar.update(static_cast<double>(peaks.size()) / steps);
      peaks.push_back({{"isa", to_string(isa)},
                       {"dtype", short_name(dtype)},
                       {"gflops_1_thread", cpu::measure_peak_gflops(isa, dtype, 1)},
                       {"gflops", cpu::measure_peak_gflops(isa, dtype, threads)},
                       {"product_gflops_1_thread", cpu::measure_product_gflops(isa, dtype, 1)},
                       {"product_gflops", cpu::measure_product_gflops(isa, dtype, threads)}});
    }
  }
  bar.update(static_cast<double>(peaks.size()) / steps);
  return {{"threads", threads},
          {"peaks", peaks},
          {"read_bytes_per_s", measure_read_bandwidth(threads)}};
}

Json gather(bool measure, std::FILE* progress) {
  const cpu::CpuInfo cpu = cpu::cpu_info();
  Json json;
  json["version"] = ATTENTILE_VERSION;
  json["commit"] = build_commit();
  json["compiler"] = build_compiler();
  json["cpu"] = cpu.model;
  json["cores"] = cpu.cores;
  json["usable_cores"] = cpu::usable_cores();
  json["caches"] = cache_facts(cpu);
  const double memory = available_memory();
  json["available_memory_bytes"] = memory < 1e18 ? Json(memory) : Json(nullptr);
  json["isas"] = isa_facts();
  std::string why;
  json["gpus"] = gpu_facts(why);
  json["gpus_why"] = why.empty() ? Json(nullptr) : Json(why);
  json["kernels"] = kernel_facts();
  json["limits"] = limits();
  if (measure) {
    ProgressBar bar(progress, "info");
    json["measured"] = measured_facts(cpu::usable_cores(), bar);
  }
  return json;
}

void print_measured(std::FILE* out, const Json& measured) {
  const int threads = measured["threads"];
  fmt::print(out, "\nmeasured, GFLOP/s     peak of multiply-adds     product of tiles in L1\n");
  fmt::print(out, "  {:<11}{:<8}{:>9}{:>6} threads{:>13}{:>6} threads\n", "isa", "dtype",
             "1 thread", threads, "1 thread", threads);
  for (const Json& peak : measured["peaks"]) {
    fmt::print(out, "  {:<11}{:<8}{:>9.1f}{:>14.1f}{:>13.1f}{:>14.1f}\n",
               peak["isa"].get<std::string>(), peak["dtype"].get<std::string>(),
               peak["gflops_1_thread"].get<double>(), peak["gflops"].get<double>(),
               peak["product_gflops_1_thread"].get<double>(), peak["product_gflops"].get<double>());
  }
  fmt::print(out, "read bandwidth  {:.1f} GB/s with {} threads\n",
             measured["read_bytes_per_s"].get<double>() * 1e-9, threads);
}

void print_text(std::FILE* out, const Json& json) {
  const auto line = [out](const char* name, const std::string& value) {
    fmt::print(out, "{:<16}{}\n", name, value);
  };
  const Json& caches = json["caches"];
  const auto words = [](const Json& bytes) { return bytes_words(bytes.get<double>()); };
  line("attentile",
       fmt::format("{}, commit {}, {}", json["version"].get<std::string>(),
                   json["commit"].get<std::string>(), json["compiler"].get<std::string>()));
  line("cpu", json["cpu"].get<std::string>());
  line("cores", fmt::format("{} online, {} usable here", json["cores"].get<int>(),
                            json["usable_cores"].get<int>()));
  line("caches", fmt::format("L1d {}, L2 {}, L3 {}", words(caches["l1d_bytes"]),
                             words(caches["l2_bytes"]), words(caches["l3_bytes"])));
  if (json["available_memory_bytes"].is_number()) {
    line("memory", words(json["available_memory_bytes"]) + " available");
  }
  for (const Json& gpu : json["gpus"]) {
    line(&gpu == &json["gpus"].front() ? "gpus" : "",
         fmt::format("{}, compute capability {:.1f}, {}, {} SMs", gpu["name"].get<std::string>(),
                     gpu["compute_capability"].get<double>(), words(gpu["memory_bytes"]),
                     gpu["num_sms"].get<int>()));
  }
  if (json["gpus"].empty()) line("gpus", "none: " + json["gpus_why"].get<std::string>());
  for (const Json& isa : json["isas"]) {
    line(&isa == &json["isas"].front() ? "isas" : "",
         fmt::format("{:<14}{}, {}", isa["name"].get<std::string>(),
                     isa["machine"].get<bool>() ? "this machine runs it" : "not on this machine",
                     isa["kernels"].get<bool>() ? "has kernels" : "no kernels built"));
  }
  line("kernels", "flash2, flash1, standard, each isa above that has kernels; reference");
  line("", "forward and backward; f32, f64, f16, bf16; head_dim 1 to 512");
  for (const Json& limit : json["limits"]) {
    line(&limit == &json["limits"].front() ? "limits" : "", limit.get<std::string>());
  }
  if (json.contains("measured")) print_measured(out, json["measured"]);
}

}  // namespace

Exit info(const Words& words, const Streams& streams) {
  Arguments arguments("info", "What this machine has and what this build can do on it.");
  arguments.flag("--measure", "measure the arithmetic peak and the memory bandwidth");
  arguments.flag("--json", "JSON on stdout");
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const Json json = gather(arguments.has("--measure"), streams.err);
  if (arguments.has("--json")) {
    fmt::print(streams.out, "{}", to_text(json));
  } else {
    print_text(streams.out, json);
  }
  return Exit::kDone;
}

}  // namespace attentile::cli
