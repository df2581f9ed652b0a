// SPDX-License-Identifier: MIT
// What the way back knows of a block while it runs; private to its sources.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/backward.h"
#include "engine/rows.h"

namespace nasfast {

struct Backward::BlockState {
  struct OfConsumer {
    Rows gradient;      // of its result
    int32_t ready = 0;  // rows of it that are there
  };
  int32_t block = 0;
  int32_t height = 0, width = 0;
  int64_t value_row = 0;  // bytes
  std::byte* scratch = nullptr;
  Rows operand, raw;
  int32_t ready = 0;  // rows of these that are there
  bool writes_raw = false;
  PassTerms terms;
  std::vector<OfConsumer> consumers;
  std::vector<const void*> pointers;  // rows of a kernel's argument
  std::vector<const void*> masked;
  std::vector<kernels::cpu::WeightedRow> plain;
  std::vector<kernels::cpu::GradientTerm> dots;
};

}  // namespace nasfast
