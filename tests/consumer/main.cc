// SPDX-License-Identifier: Apache-2.0
// The least that a user writes in C++: one query, two keys of equal score, so out is their mean.
#include <attentile/attention.h>
#include <attentile/c_api.h>
#include <attentile/version.h>

#include <cstdio>
#include <cstring>

int main() {
  const float q[] = {1, 2}, k[] = {3, 4, 3, 4}, v[] = {1, 2, 3, 6};
  float out[2];
  const auto view = [](const float* data, int64_t rows) {
    return attentile::contiguous_view(data, attentile::DType::kFloat32, {1, rows, 1, 2});
  };
  const attentile::Status status = attentile::attention_forward(
      {.q = view(q, 1), .k = view(k, 2), .v = view(v, 2)}, {.out = view(out, 1)});
  std::printf("%s %s %g %g\n", attentile_version(), to_string(status.code()), out[0], out[1]);
  const bool same_version = std::strcmp(attentile_version(), ATTENTILE_VERSION) == 0;
  return status.ok() && same_version && out[0] == 2 && out[1] == 4 ? 0 : 1;
}
