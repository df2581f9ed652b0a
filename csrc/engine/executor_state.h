// SPDX-License-Identifier: MIT
// What an executor knows of a pass while it runs; private to its sources.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/executor.h"
#include "engine/rows.h"

namespace nasfast {

// One pass over one block.
struct Executor::BlockPass {
  int32_t thread, block;
  int32_t height, width;
  Rows operand, raw;
  std::byte* halved;
  std::byte* pairs;  // scratch of kernels that work on pairs of rows
  double* sums;
};

// What a thread needs for a pass, sized once.
struct Executor::ThreadState {
  PassTerms terms;
  std::vector<int32_t> next;  // row of each consumer's result that comes next
};

}  // namespace nasfast
