// SPDX-License-Identifier: Apache-2.0
// The threads of an OpenMP runtime that another library brought into the process. torch's operators
// run on such threads, which spin for a while after each of them; a call between two operators that
// ran on other threads would have to share its cores with them.
#pragma once

#include "attentile/attention.h"

namespace attentile::python {

// Takes from now on the runtime that the loaded library of this path is linked with; an empty path:
// none. Whether one is taken; no change where the library is not loaded or has none with GNU's
// interface (libgomp, libomp). The first one found stays the one.
bool use_openmp(const char* path);

// Fills in the executor of a call on up to num_threads threads, 0 for all cores. False, and no
// change: no runtime was taken; one thread is enough; they are more than the runtime's usual team,
// which it ends the process for if they cannot be had; or this is a forked process, where the
// runtime's threads are gone and it would wait for them.
bool openmp_executor(int num_threads, Executor* executor);

}  // namespace attentile::python
