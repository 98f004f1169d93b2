// SPDX-License-Identifier: Apache-2.0
// Options: AttentionOptions and the layout, made once from keywords and never changed.
#pragma once

#include <nanobind/nanobind.h>

#include "attentile/attention.h"

namespace attentile::python {

struct Options {
  AttentionOptions attention;
  bool heads_second = false;  // layout "bhsd": [batch, heads, seqlen, dim]
};

// Throws TypeError for unknown names and wrong types, ValueError for unknown words.
Options make_options(nanobind::dict keywords);

}  // namespace attentile::python
