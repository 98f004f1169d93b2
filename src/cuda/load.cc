// SPDX-License-Identifier: Apache-2.0
#include "cuda/load.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

#include "cuda/backward_params.h"

namespace attentile::cuda {
namespace {

constexpr const char* kLibraryName = "libattentile_cuda.so";

Status unavailable(const std::string& sentence) {
  return {StatusCode::kUnavailable, sentence};
}

// The folder of the file that holds this code, with its slash; "" if nobody knows. A program goes
// by the name it was started with, which may be found through PATH.
std::string own_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&library_candidates), &info) == 0) return "";
  const std::string name = info.dli_fname != nullptr ? info.dli_fname : "";
  const bool by_path = name.find('/') == std::string::npos;
  char* resolved = realpath(by_path ? "/proc/self/exe" : name.c_str(), nullptr);
  if (resolved == nullptr) return "";
  const std::string path = resolved;
  std::free(resolved);
  return path.substr(0, path.rfind('/') + 1);
}

Status check_size(const char* what, uint32_t found, size_t expected) {
  if (found == expected) return {};
  return unavailable(std::string("its ") + what + " is " + std::to_string(found) + ", expected " +
                     std::to_string(expected) + ": it belongs to another version of attentile");
}

}  // namespace

Status check_table(const BackendTable& table) {
  Status status = check_size("version", table.version, kBackendVersion);
  if (status.ok()) status = check_size("table_bytes", table.table_bytes, sizeof(BackendTable));
  if (status.ok()) {
    status = check_size("forward_params_bytes", table.forward_params_bytes, sizeof(ForwardParams));
  }
  if (status.ok()) {
    status =
        check_size("backward_params_bytes", table.backward_params_bytes, sizeof(BackwardParams));
  }
  return status;
}

namespace {

// opened: whether the loader found the file and took it.
Result<const BackendTable*> load(const std::string& path, bool* opened) {
  const std::string named = "device: is cuda, but " + path + " cannot serve it: ";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    return unavailable(named + (reason != nullptr ? reason : "it could not be opened"));
  }
  *opened = true;
  using Function = const BackendTable* (*)();
  const auto function = reinterpret_cast<Function>(dlsym(library, kBackendSymbol));
  if (function == nullptr) {
    dlclose(library);
    return unavailable(named + "it has no function " + kBackendSymbol);
  }
  const BackendTable* table = function();
  if (table == nullptr) return unavailable(named + "it has no table");
  if (Status status = check_table(*table); !status.ok()) {
    return unavailable(named + status.message());
  }
  Sentence sentence;
  int32_t count = 0;
  if (table->device_count(&count, &sentence) != 0) return unavailable(named + sentence.text);
  if (count < 1) return unavailable(named + "it finds no device");
  return table;
}

}  // namespace

Result<const BackendTable*> load_library(const std::string& path) {
  bool opened = false;
  return load(path, &opened);
}

std::vector<std::string> library_candidates() {
  const char* given = std::getenv(kLibraryVariable);
  if (given != nullptr && *given != '\0') return {given};
  const std::string folder = own_folder();
  if (folder.empty()) return {kLibraryName};
  return {folder + kLibraryName, folder + "../lib/" + kLibraryName, folder + "../" + kLibraryName,
          kLibraryName};
}

Result<const BackendTable*> load_first(const std::vector<std::string>& paths) {
  std::string tried;
  Status told;
  for (const std::string& path : paths) {
    bool opened = false;
    Result<const BackendTable*> table = load(path, &opened);
    if (table.ok()) return table;
    const bool there = path.find('/') != std::string::npos && access(path.c_str(), F_OK) == 0;
    if ((opened || there) && told.ok()) told = table.status();
    tried += (tried.empty() ? "" : ", ") + path;
  }
  if (!told.ok()) return told;
  return unavailable("device: is cuda, but the CUDA backend was not found; tried " + tried + "; " +
                     kLibraryVariable + " can name the file");
}

}  // namespace attentile::cuda
