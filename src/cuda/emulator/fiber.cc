// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "the emulator switches stacks on x86-64 and aarch64"
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ATTENTILE_FIBER_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define ATTENTILE_FIBER_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define ATTENTILE_FIBER_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define ATTENTILE_FIBER_TSAN 1
#endif

#if defined(ATTENTILE_FIBER_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(ATTENTILE_FIBER_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

// attentile_switch_stack(save, load): pushes what the calling convention preserves, stores the
// stack pointer in *save, takes the one in load, and pops. attentile_start_fiber is where a fresh
// stack "returns" to: it calls entry(argument), both popped into preserved registers.
extern "C" {
void attentile_switch_stack(void** save, void* load);
void attentile_start_fiber();
}

#if defined(__x86_64__)
asm(R"(
  .text
  .p2align 4
  .globl attentile_switch_stack
  .hidden attentile_switch_stack
  .type attentile_switch_stack, @function
attentile_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size attentile_switch_stack, .-attentile_switch_stack
  .globl attentile_start_fiber
  .hidden attentile_start_fiber
  .type attentile_start_fiber, @function
attentile_start_fiber:
  movq %r12, %rdi
  callq *%rbx
  ud2
  .size attentile_start_fiber, .-attentile_start_fiber
)");
#elif defined(__aarch64__)
asm(R"(
  .text
  .p2align 4
  .globl attentile_switch_stack
  .hidden attentile_switch_stack
  .type attentile_switch_stack, %function
attentile_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size attentile_switch_stack, .-attentile_switch_stack
  .globl attentile_start_fiber
  .hidden attentile_start_fiber
  .type attentile_start_fiber, %function
attentile_start_fiber:
  mov x0, x20
  blr x19
  brk #1
  .size attentile_start_fiber, .-attentile_start_fiber
)");
#endif

namespace attentile::cuda::emulator {
namespace {

size_t page_bytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

void before_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] Fiber& to) {
#if defined(ATTENTILE_FIBER_ASAN)
  __sanitizer_start_switch_fiber(fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(ATTENTILE_FIBER_TSAN)
  __tsan_switch_to_fiber(to.tsan, 0);
#endif
}

void after_switch([[maybe_unused]] void* fake_stack) {
#if defined(ATTENTILE_FIBER_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

}  // namespace

Fiber::~Fiber() {
  if (!owns_stack) return;
#if defined(ATTENTILE_FIBER_TSAN)
  __tsan_destroy_fiber(tsan);
#endif
  const size_t guard = page_bytes();
  munmap(stack - guard, stack_bytes + guard);
}

bool prepare(Fiber& fiber, size_t stack_bytes, size_t colour) {
  constexpr size_t kLine = 64;
  if (fiber.stack == nullptr) {
    const size_t guard = page_bytes();
    const size_t total = (stack_bytes + guard - 1) / guard * guard;
    void* memory = mmap(nullptr, total + guard, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    mprotect(memory, guard, PROT_NONE);
    fiber.stack = static_cast<char*>(memory) + guard;
    fiber.stack_bytes = total;
    fiber.owns_stack = true;
#if defined(ATTENTILE_FIBER_TSAN)
    fiber.tsan = __tsan_create_fiber(0);
#endif
  }
  fiber.stack_pointer = fiber.stack + fiber.stack_bytes - kLine * (9 * colour % 61);
  return true;
}

void set_entry(Fiber& fiber, void (*entry)(void*), void* argument) {
#if defined(ATTENTILE_FIBER_ASAN)
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#endif
  fiber.fake_stack = nullptr;
  const uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack_pointer) & ~uintptr_t{63};
  const auto entry_bits = reinterpret_cast<uintptr_t>(entry);
  const auto argument_bits = reinterpret_cast<uintptr_t>(argument);
  const auto start_bits = reinterpret_cast<uintptr_t>(&attentile_start_fiber);
#if defined(__x86_64__)
  // r15 r14 r13 r12 rbx rbp, the address to return to; then the stack is 16-byte aligned for a
  // call.
  auto* slots = reinterpret_cast<uintptr_t*>(top - 72);
  for (int i = 0; i < 9; ++i) slots[i] = 0;
  slots[3] = argument_bits;
  slots[4] = entry_bits;
  slots[6] = start_bits;
  static_assert(sizeof(uintptr_t) == 8);
#elif defined(__aarch64__)
  auto* slots = reinterpret_cast<uintptr_t*>(top - 160);
  for (int i = 0; i < 20; ++i) slots[i] = 0;
  slots[0] = entry_bits;
  slots[1] = argument_bits;
  slots[11] = start_bits;
#endif
  fiber.stack_pointer = slots;
}

void adopt_caller([[maybe_unused]] Fiber& fiber) {
#if defined(ATTENTILE_FIBER_ASAN)
  // The bounds of the caller's stack are known once a fiber has been entered from it.
  fiber.fake_stack = nullptr;
#endif
#if defined(ATTENTILE_FIBER_TSAN)
  fiber.tsan = __tsan_get_current_fiber();
#endif
}

#if defined(ATTENTILE_FIBER_ASAN)
namespace {
thread_local Fiber* switched_from_caller = nullptr;
}
#endif

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(ATTENTILE_FIBER_ASAN)
  if (!from.owns_stack) switched_from_caller = &from;
#endif
  before_switch(&from.fake_stack, to);
  attentile_switch_stack(&from.stack_pointer, to.stack_pointer);
  after_switch(from.fake_stack);
}

void leave_fiber(Fiber& from, Fiber& to) {
  before_switch(nullptr, to);
  attentile_switch_stack(&from.stack_pointer, to.stack_pointer);
}

void entered_fiber() {
#if defined(ATTENTILE_FIBER_ASAN)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (switched_from_caller != nullptr && switched_from_caller->stack == nullptr) {
    switched_from_caller->stack_bytes = bytes;
    switched_from_caller->stack = const_cast<char*>(static_cast<const char*>(bottom));
    switched_from_caller = nullptr;
  }
#endif
}

}  // namespace attentile::cuda::emulator
