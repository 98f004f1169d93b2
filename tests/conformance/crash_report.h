// SPDX-License-Identifier: Apache-2.0
// Names the cell that was running when the process was ended by a signal, as a touched guard page
// does, so that this failure too comes with the command that reproduces it.
#pragma once

#include <string>

namespace attentile::conformance {

// From now on a fatal signal prints the current cell to stderr before it takes its course.
void install_crash_report();

// What runs now; empty: nothing.
void set_current_cell(const std::string& name);

}  // namespace attentile::conformance
