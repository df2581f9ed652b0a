// SPDX-License-Identifier: MIT
// A stack that a function runs on, and leaves and enters again where it wants.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
extern "C" void nasfast_switch_stack(void** from, void* to);
#endif

namespace emulator {

// One that has never been started stands for the stack of the program itself.
class Fiber {
 public:
  // Lets the next switch to this fiber call `function`, which must begin with an arrive() of the
  // fiber that it came from, and must never return.
  void start(void (*function)()) {
    if (!stack_) stack_.reset(new std::byte[kBytes]);
    begin_ = stack_.get();
    bytes_ = kBytes;
#if defined(__SANITIZE_ADDRESS__)
    // The function before it was left in the middle, with its variables fenced.
    ASAN_UNPOISON_MEMORY_REGION(begin_, bytes_);
#endif
#if defined(__x86_64__)
    const auto end = reinterpret_cast<uintptr_t>(begin_ + kBytes) / 16 * 16;
    auto* top = reinterpret_cast<void**>(end) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void*>(function);
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers that a call keeps
    pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, function, 0);
#endif
  }

  // Returns when another fiber switches back.
  void switch_to(Fiber& other) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, other.begin_, other.bytes_);
#endif
    go_to(other);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr);
#endif
  }

  // For the last time.
  [[noreturn]] void leave_for(Fiber& other) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, other.begin_, other.bytes_);
#endif
    go_to(other);
    __builtin_unreachable();
  }

  // On a new stack: where this one, which was just left, lies.
  void arrive() {
#if defined(__SANITIZE_ADDRESS__)
    const void* begin = nullptr;
    __sanitizer_finish_switch_fiber(nullptr, &begin, &bytes_);
    begin_ = static_cast<const std::byte*>(begin);
#endif
  }

 private:
  static constexpr size_t kBytes = 64 * 1024;

  // Saving the signal mask, as swapcontext() does, would take most of the time.
  void go_to(Fiber& other) {
#if defined(__x86_64__)
    nasfast_switch_stack(&pointer_, other.pointer_);
#else
    swapcontext(&context_, &other.context_);
#endif
  }

  std::unique_ptr<std::byte[]> stack_;
  const std::byte* begin_ = nullptr;
  size_t bytes_ = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_ = nullptr;
#endif
#if defined(__x86_64__)
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace emulator
