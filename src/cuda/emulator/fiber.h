// SPDX-License-Identifier: Apache-2.0
// Fibers: one per emulated thread, each with its own stack, switched by a dozen instructions. The
// address and thread sanitizers are told of every switch. A fiber that is dropped is not unwound,
// so kernels own nothing that needs a destructor.
#pragma once

#include <cstddef>

namespace attentile::cuda::emulator {

struct Fiber {
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  void* stack_pointer = nullptr;  // while it is not running
  char* stack = nullptr;          // lowest address, above a guard page
  size_t stack_bytes = 0;
  bool owns_stack = false;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's
};

// Gives the fiber a stack, if it has none, and makes its first switch call entry(argument), which
// never returns. `colour` staggers stacks, which are page-aligned, over the sets of the cache.
// False when the system has no memory for the stack.
bool prepare(Fiber& fiber, size_t stack_bytes, size_t colour);
void set_entry(Fiber& fiber, void (*entry)(void*), void* argument);

// The fiber of the calling OS thread, to switch back to.
void adopt_caller(Fiber& fiber);

void switch_fiber(Fiber& from, Fiber& to);
// Likewise, and `from` does not run again before set_entry.
void leave_fiber(Fiber& from, Fiber& to);
// First thing on a fresh fiber.
void entered_fiber();

}  // namespace attentile::cuda::emulator
