// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace attentile::cuda {

// A kernel's type without its namespaces, as Forward<BFloat16, 64, true>.
template <class Kernel>
std::string kernel_name() {
  const std::string_view function = __PRETTY_FUNCTION__;
  const std::string_view mark = "Kernel = ";
  const size_t begin = function.find(mark) + mark.size();
  std::string name(function.substr(begin, function.find_first_of(";]", begin) - begin));
  for (const std::string_view space : {"attentile::", "cuda::"}) {
    for (size_t at = name.find(space); at != std::string::npos; at = name.find(space)) {
      name.erase(at, space.size());
    }
  }
  return name;
}

}  // namespace attentile::cuda
