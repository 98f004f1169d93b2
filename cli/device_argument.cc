// SPDX-License-Identifier: Apache-2.0
// The emulator takes the place of libattentile_cuda.so by the variable that names it.
#include "cli/device_argument.h"

#include <unistd.h>

#include <cstdlib>
#include <string>

#include "cli/error.h"
#include "cli/numbers.h"
#include "cuda/backend.h"
#include "cuda/load.h"

namespace attentile::cli {
namespace {

constexpr const char* kEmulatedLibrary = "libattentile_cuda_emulated.so";

// The folder of this program, with its slash.
std::string program_folder() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0 || length >= static_cast<ssize_t>(sizeof path)) return "./";
  const std::string program(path, static_cast<size_t>(length));
  return program.substr(0, program.rfind('/') + 1);
}

void choose_emulator() {
  const std::string folder = program_folder();
  for (const std::string& path : {folder + kEmulatedLibrary, folder + "../" + kEmulatedLibrary}) {
    if (access(path.c_str(), R_OK) != 0) continue;
    setenv(cuda::kLibraryVariable, path.c_str(), 1);
    return;
  }
  environment_failed(
      "--device: emulator, but {}{} is not there, expected the CMake target "
      "attentile_cuda_emulated "
      "to be built",
      folder, kEmulatedLibrary);
}

}  // namespace

void declare_device(Arguments& arguments) {
  arguments.value("--device", "NAME",
                  "cpu (default), cuda, or emulator: the CUDA kernels, instruction by instruction");
}

DeviceChoice read_device(const Arguments& arguments) {
  const std::string* text = arguments.find("--device");
  if (text == nullptr) return DeviceChoice::kCpu;
  const auto device =
      static_cast<DeviceChoice>(parse_choice("--device", *text, {"cpu", "cuda", "emulator"}));
  if (device == DeviceChoice::kCpu) return device;
  if (device == DeviceChoice::kEmulator) choose_emulator();
  const Result<const cuda::BackendTable*>& table = cuda::backend();
  if (!table.ok())
    environment_failed("--{}", table.status().message());  // it begins with "device:"
  return device;
}

const char* to_string(DeviceChoice device) {
  switch (device) {
    case DeviceChoice::kCpu: return "cpu";
    case DeviceChoice::kCuda: return "cuda";
    case DeviceChoice::kEmulator: return "emulator";
  }
  return "unknown";
}

const cuda::BackendTable& device_table() {
  return **cuda::backend();
}

}  // namespace attentile::cli
