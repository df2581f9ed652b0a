// SPDX-License-Identifier: MIT
#include "fiber.h"

#if defined(__x86_64__)
// Keeps what a called function must keep, and goes on where the other stack was left.
asm(R"(
.text
.globl nasfast_switch_stack
.type nasfast_switch_stack, @function
nasfast_switch_stack:
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
.size nasfast_switch_stack, . - nasfast_switch_stack
)");
#endif
