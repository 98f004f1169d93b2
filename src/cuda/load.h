// SPDX-License-Identifier: Apache-2.0
// Finds libattentile_cuda.so and reads its table. Where there is none, or no driver, the answer is
// kUnavailable with one sentence on what was tried; the CPU's calls never ask.
#pragma once

#include <string>
#include <vector>

#include "attentile/status.h"
#include "cuda/backend_table.h"

namespace attentile::cuda {

inline constexpr const char* kLibraryVariable = "ATTENTILE_CUDA_LIBRARY";

// Whether a table is of this version of the library.
Status check_table(const BackendTable& table);

// Opens one library and checks its table and that it has a device. It stays loaded.
Result<const BackendTable*> load_library(const std::string& path);

// What to try, in order: the file that ATTENTILE_CUDA_LIBRARY names and no other; else
// libattentile_cuda.so beside the file that holds this code, in ../lib and .. from there (the
// program of an installation, and of a build tree), and wherever the system's loader looks.
std::vector<std::string> library_candidates();

// The first of them that serves. Of several that fail, a sentence of one that was there says more
// than that the others were not.
Result<const BackendTable*> load_first(const std::vector<std::string>& paths);

}  // namespace attentile::cuda
