// SPDX-License-Identifier: Apache-2.0
// The picture of `explain`: a head's attention pattern with tiles of the asked size drawn over it.
#pragma once

#include <string>

#include "cli/explain_trace.h"

namespace attentile::cli {

struct Explanation {
  std::string title;     // "smollm2-layer05.safetensors, head 0"
  std::string subtitle;  // the shape in words
  Tiling tiling;
  int64_t seqlen_q = 0;
  int64_t seqlen_k = 0;
  TileGrid grid;
  HeatMap map;
};

std::string draw_explanation(const Explanation& explanation);

}  // namespace attentile::cli
