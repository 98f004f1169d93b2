// SPDX-License-Identifier: Apache-2.0
// Writes the keep mask; see keep_mask.h.
#include "keep_mask.h"

namespace attentile {

void write_keep_mask(const Problem& problem) {
  const Dropout& dropout = problem.dropout;
  for (int64_t b = 0; b < problem.batch; ++b) {
    for (int64_t h = 0; h < problem.num_heads_q; ++h) {
      for (int64_t i = 0; i < problem.max_seqlen_q; ++i) {
        for (int64_t j = 0; j < problem.max_seqlen_k; ++j) {
          const bool keep = !dropout.enabled || dropout.keep(b, h, i, j);
          *reinterpret_cast<uint8_t*>(problem.keep.at(b, h, i, j)) = keep ? 1 : 0;
        }
      }
    }
  }
}

}  // namespace attentile
