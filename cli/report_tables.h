// SPDX-License-Identifier: Apache-2.0
// The parts of a report that are text: what ./dev bench judged, what was not measured, the records.
#pragma once

#include <string>

#include "cli/bench_file.h"

namespace attentile::cli {

// Machine, versions, command.
std::string head_list(const BenchFile& file);

// The file's "cells": each figure beside its target. "" if it has none.
std::string cell_tables(const BenchFile& file);

// The file's "unmeasured". "" if it has none.
std::string unmeasured_table(const BenchFile& file);

std::string record_table(const BenchFile& file);

}  // namespace attentile::cli
