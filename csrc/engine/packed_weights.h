// SPDX-License-Identifier: MIT
// The weights that some schedules use, in the order in which kernels read them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/memory.h"
#include "kernels/cpu/kernels.h"
#include "program/program_table.h"
#include "program/schedule.h"

namespace nasfast {

class PackedWeights {
 public:
  PackedWeights(const ProgramTable& table, const float* arena,
                const kernels::cpu::Kernels& kernels);

  // Asks for the weights of a schedule; then `pack` reads these and no others.
  void include(const Schedule& schedule);
  void pack();

  // [units]; null where not included.
  std::span<const void* const> pointers() const { return pointers_; }
  int64_t bytes() const { return memory_.size(); }

 private:
  struct Shape {
    int32_t in, out, stride = 1;
  };
  const ProgramTable& table_;
  const float* arena_;
  const kernels::cpu::Kernels& kernels_;
  std::vector<Shape> shapes_;  // [units]
  std::vector<bool> wanted_;
  std::vector<const void*> pointers_;
  Memory memory_;
};

}  // namespace nasfast
