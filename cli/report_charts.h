// SPDX-License-Identifier: Apache-2.0
// The charts of a report. Each takes all records of a file, picks what it can show, and returns
// SVG; nothing where there is nothing to show.
#pragma once

#include <string>
#include <vector>

#include "cli/facts.h"

namespace attentile::cli {

struct NamedChart {
  std::string file;  // "roofline-f32", a file name without its ending
  std::string svg;
  bool wide = false;  // takes the page's whole width
};

// One group of bars per case, one bar per name, a mark at the peak. Of a file with tables, those of
// the table of peaks.
std::vector<NamedChart> draw_speed_bars(const std::vector<Json>& records);

// One chart per family of cases that differ in sequence length only (three lengths or more).
std::vector<NamedChart> draw_time_curves(const std::vector<Json>& records);

// Per dtype: useful GFLOP/s of forward passes over flops per byte of q, k, v and out, under the
// measured peak and the measured streaming reads.
std::vector<NamedChart> draw_rooflines(const std::vector<Json>& records);

// Per contender: its time over attentile's, sequence length down, head_dim across.
std::vector<NamedChart> draw_heat_maps(const std::vector<Json>& records);

// Forward + backward against length: seconds, and peak memory.
std::vector<NamedChart> draw_length_curves(const std::vector<Json>& records);

// Per family of decoding cases: bytes of K and V per second over the cache's length, beside a
// streaming read.
std::vector<NamedChart> draw_decode_curves(const std::vector<Json>& records);

}  // namespace attentile::cli
