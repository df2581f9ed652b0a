// SPDX-License-Identifier: MIT
// The weights that some schedules use, in the order in which kernels read them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/memory.h"
#include "kernels/cpu/kernels.h"
#include "program/program_table.h"
#include "program/schedule.h"

namespace nasfast {

class PackedWeights {
 public:
  // For the way forward, or for the gradients of inputs.
  enum class Way { kForward, kInputGradient };
  PackedWeights(std::span<const Unit> units, const WeightViews& views,
                const kernels::cpu::Kernels& kernels, const Geometry& geometry,
                Way way = Way::kForward);

  // Asks for the weights of a schedule; then `pack` reads these of an arena and no others. It may
  // be called again, when they have changed.
  void include(const Schedule& schedule);
  void pack(const float* arena);

  // [views] once packed; null where not included.
  std::span<const void* const> pointers() const { return pointers_; }
  int64_t bytes() const { return memory_.size(); }

 private:
  struct Shape {
    int32_t in = 0, out = 0, width = 0, stride = 1;
  };
  int64_t packed_bytes(const Unit& unit, const Shape& shape) const;
  void pack_unit(const Unit& unit, const Shape& shape, const float* weight, void* packed);
  const float* part_of(const WeightViews::View& view, const Shape& shape, const float* weight);
  const std::span<const Unit> units_;
  const WeightViews& views_;
  const Geometry& geometry_;
  const Way way_;
  const kernels::cpu::Kernels& kernels_;
  std::vector<Shape> shapes_;  // [views]
  std::vector<bool> wanted_;
  std::vector<const void*> pointers_;
  std::vector<float> part_;    // the inputs of a weight that a view has
  std::vector<float> turned_;  // a weight as the gradient of inputs takes it
  Memory memory_;
};

}  // namespace nasfast
