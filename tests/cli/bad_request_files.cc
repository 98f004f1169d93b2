// SPDX-License-Identifier: Apache-2.0
// Writes .safetensors and .npy files byte by byte, so that wrong ones are as easy as right ones.
#include "cli/bad_request_files.h"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace attentile::cli_test {
namespace {

namespace fs = std::filesystem;

struct FileTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<int32_t> values = {};  // I32 only; zeros when empty
};
using FileTensors = std::map<std::string, FileTensor>;
// A change of the good file: a tensor replaced, added or (nullopt) left out.
using Changes = std::map<std::string, std::optional<FileTensor>>;

size_t item_size(const std::string& dtype) {
  const std::map<std::string, size_t> sizes = {
      {"F32", 4}, {"F16", 2}, {"I32", 4}, {"U8", 1}, {"I64", 8}};
  return sizes.at(dtype);
}

size_t count_of(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

std::string safetensors_bytes(const FileTensors& tensors) {
  nlohmann::json header;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    std::string bytes(count_of(tensor.shape) * item_size(tensor.dtype), '\0');
    if (!tensor.values.empty()) std::memcpy(bytes.data(), tensor.values.data(), bytes.size());
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data += bytes;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + text + data;
}

std::string npy_bytes(const std::string& descr, const std::string& shape, size_t data_size) {
  std::string header =
      "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
  header.append(64 - (header.size() + 11) % 64, ' ');
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() & 0xFF);
  file += static_cast<char>(header.size() >> 8);
  return file + header + std::string(data_size, '\0');
}

const FileTensors kGood = {{"q", {"F32", {1, 4, 2, 8}}},
                           {"k", {"F32", {1, 6, 1, 8}}},
                           {"v", {"F32", {1, 6, 1, 8}}},
                           {"dout", {"F32", {1, 4, 2, 8}}}};

std::map<std::string, Changes> changed_files() {
  const Changes packed = {{"q", FileTensor{"F32", {4, 2, 8}}},
                          {"k", FileTensor{"F32", {6, 1, 8}}},
                          {"v", FileTensor{"F32", {6, 1, 8}}},
                          {"dout", FileTensor{"F32", {4, 2, 8}}},
                          {"cu_seqlens_k", FileTensor{"I32", {3}, {0, 3, 6}}}};
  const auto varlen = [&](std::vector<int32_t> cu_seqlens_q) {
    Changes changes = packed;
    changes["cu_seqlens_q"] = FileTensor{"I32", {3}, std::move(cu_seqlens_q)};
    return changes;
  };
  const auto one = [](const std::string& name, FileTensor tensor) -> Changes {
    return {{name, std::move(tensor)}};
  };
  return {
      {"in", {}},
      {"noq", {{"q", std::nullopt}}},
      {"nodout", {{"dout", std::nullopt}}},
      {"rank2", one("q", {"F32", {4, 8}})},
      {"rank5", one("q", {"F32", {1, 1, 4, 2, 8}})},
      {"int64", one("q", {"I64", {1, 4, 2, 8}})},
      {"mixed", one("k", {"F16", {1, 6, 1, 8}})},
      {"ints", one("q", {"I32", {1, 4, 2, 8}})},
      {"dims", one("k", {"F32", {1, 6, 1, 16}})},
      {"batch", one("k", {"F32", {2, 6, 1, 8}})},
      {"vlen", one("v", {"F32", {1, 5, 1, 8}})},
      {"dout", one("dout", {"F32", {1, 4, 2, 9}})},
      {"heads",
       {{"q", FileTensor{"F32", {1, 4, 3, 8}}},
        {"k", FileTensor{"F32", {1, 6, 2, 8}}},
        {"v", FileTensor{"F32", {1, 6, 2, 8}}},
        {"dout", FileTensor{"F32", {1, 4, 3, 8}}}}},
      {"wide",
       {{"q", FileTensor{"F32", {1, 1, 1, 513}}}, {"k", FileTensor{"F32", {1, 1, 1, 513}}}}},
      {"bias", one("bias", {"F16", {4, 6}})},
      {"bias5", one("bias", {"F32", {1, 2, 4, 5}})},
      {"mask", one("mask", {"F32", {4, 6}})},
      {"sink", one("sink", {"F32", {3}})},
      {"sink16", one("sink", {"F16", {2}})},
      {"alibi", one("alibi_slopes", {"F32", {3}})},
      {"cu", varlen({0, 2, 4})},
      {"cufall", varlen({0, 5, 4})},
      {"cuend", varlen({0, 2, 3})},
      {"cuonly", one("cu_seqlens_q", {"I32", {2}, {0, 4}})},
      {"used", one("seqused_k", {"I32", {1}, {7}})},
      {"usedneg", one("seqused_k", {"I32", {1}, {-1}})},
      {"used2", one("seqused_k", {"I32", {2}, {1, 1}})},
      {"pages",
       {{"block_table", FileTensor{"I32", {1, 2}, {0, 5}}},
        {"seqused_k", FileTensor{"I32", {1}, {8}}}}},
      {"pagesok",
       {{"block_table", FileTensor{"I32", {1, 1}, {0}}},
        {"seqused_k", FileTensor{"I32", {1}, {6}}}}},
      {"cbi", one("cache_batch_idx", {"I32", {1}, {1}})},
      {"left", one("leftpad_k", {"I32", {1}, {7}})},
      {"leftok", one("leftpad_k", {"I32", {1}, {1}})},
      {"block", one("block_mask", {"U8", {1, 2, 2}})},
      {"block5", one("block_mask", {"U8", {5, 1, 1}})},
  };
}

nlohmann::json bench_record() {
  return {{"name", "attentile"},   {"pass", "forward"},
          {"dtype", "f32"},        {"batch", 1},
          {"seqlen_q", 8},         {"seqlen_k", 8},
          {"num_heads_q", 1},      {"num_heads_kv", 1},
          {"head_dim", 8},         {"head_dim_v", 8},
          {"causal", false},       {"layout", "bshd"},
          {"device", "cpu"},       {"varlen", false},
          {"threads", 1},          {"median_s", 1.0},
          {"gflops", 1.0},         {"peak_gflops", 2.0},
          {"algorithm", "flash2"}, {"fraction_of_peak", 0.5}};
}

std::string bench_bytes(const std::string& field, const nlohmann::json& value) {
  nlohmann::json record = bench_record();
  record[field] = value;
  return nlohmann::json{{"records", {record}}}.dump();
}

}  // namespace

void make_bad_request_files(const std::string& directory) {
  const fs::path folder = directory;
  const auto write = [&](const std::string& name, const std::string& bytes) {
    std::ofstream(folder / name, std::ios::binary) << bytes;
  };
  for (const auto& [name, changes] : changed_files()) {
    FileTensors tensors = kGood;
    for (const auto& [tensor, change] : changes) {
      if (change) {
        tensors[tensor] = *change;
      } else {
        tensors.erase(tensor);
      }
    }
    write(name + ".safetensors", safetensors_bytes(tensors));
  }
  const std::string good = safetensors_bytes(kGood);
  write("short.safetensors", good.substr(0, good.size() - 3));
  write("long.safetensors", good + "x");
  write("empty.safetensors", "");
  write("text.txt", "hello, this is no tensor file\n");
  write("q.npy", npy_bytes("<f4", "(1, 4, 2, 8)", 256));
  write("k.npy", npy_bytes("<f4", "(1, 6, 1, 8)", 192));
  write("object.npy", npy_bytes("|O", "(2,)", 16));
  write("big.npy", npy_bytes(">f4", "(1, 4, 2, 8)", 256));
  write("bench.json", bench_bytes("min_s", 1.0));
  write("other.json", bench_bytes("seqlen_q", 9));
  write("badbench.json", bench_bytes("median_s", "x"));
  write("slow.json", bench_bytes("median_s", 1e308));
  write("instant.json", bench_bytes("median_s", 1e-300));
  write("negative.json", bench_bytes("seqlen_k", -8));
  write("wide.json", bench_bytes("seqlen_q", UINT64_MAX));
  write("fast.json", bench_bytes("gflops", 1e300));
  write("backwards.json", bench_bytes("fraction_of_peak", -0.5));
  write("window.json", bench_bytes("window_left", -2));
  write("softcap.json", bench_bytes("softcap", -1.0));
  write("alignment.json", bench_bytes("alignment", "left"));
  write("offset.json", bench_bytes("position_offset", 0.5));
  write("seqlens.json", bench_bytes("seqlens", {3, -1}));
  write("twice.json", nlohmann::json{{"records", {bench_record(), bench_record()}}}.dump());
  write("norecords.json", "{\"records\": []}");
  fs::create_directory(folder / "folder");
  fs::create_symlink("in.safetensors", folder / "link.safetensors");
  fs::create_symlink("folder/new.svg", folder / "dangling.svg");
  fs::create_hard_link(folder / "in.safetensors", folder / "hard.safetensors");
}

}  // namespace attentile::cli_test
