// SPDX-License-Identifier: MIT
// Where everything of an operator between tensors of features lies: a lane of no program table.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cuda/packing.h"
#include "engine/cuda/steps.h"
#include "engine/cuda/training_placement.h"

namespace nasfast::cuda {

struct FeatureShape {
  kernels::cuda::Precision precision;
  kernels::cuda::Sides sides;
};

// First lies what the way forward leaves for the way back: all tensors but external ones, and what
// batch norms measured. It may be a piece of memory of its own (Addresses::split).
class EdgePlacement : public TrainingPlacement {
 public:
  // The units outlive it.
  EdgePlacement(std::span<const Unit> units, const Schedule& schedule, const FeatureShape& shape);

  const Network& network() const { return lanes_[0]; }
  int64_t saved_bytes() const { return saved_bytes_; }
  const ViewInputs& inputs() const { return inputs_; }

  // Room for the weights of a way forward,
  void place_forward();
  // for a tensor that lies outside,
  void place_external(int32_t tensor);
  // or for a way back; `outside` as in place_backward().
  void place_reverse(const Reverse& reverse, int32_t outside);

  // How the weights of that way get into the layout of the kernels.
  std::vector<kernels::cuda::WeightRow> weight_rows(const Addresses& addresses) const;

 private:
  const ViewInputs inputs_;
  int64_t saved_bytes_ = 0;
};

}  // namespace nasfast::cuda
