// SPDX-License-Identifier: MIT
// Where everything of lanes in training lies: each keeps all tensors for the way back.
#pragma once

#include <span>
#include <vector>

#include "engine/cuda/placement.h"
#include "program/reverse.h"

namespace nasfast::cuda {

// What the way back of a lane computes with, in bytes from the memory's beginning.
struct BackwardPlaces {
  Reverse reverse;
  std::vector<int64_t> gradients;  // [passes] values; -1: nobody wants it
  std::vector<int64_t> totals;     // [passes] [terms][2][depth] doubles
  std::vector<int64_t> packed;     // [views] weights for the way back; -1: nobody reads them
  // Of the classifier: [images][depth], [images][classes], [images][depth] floats, [2][depth]
  // doubles.
  int64_t features = -1, logits = -1, head_gradient = -1, head_totals = -1;
};

class TrainingPlacement : public Placement {
 public:
  // `lanes`: of the table. Gradients are [lanes, arena] either way.
  TrainingPlacement(const ProgramTable& table, std::span<const int32_t> lanes, Weights weights,
                    const Options& options, int32_t most_images);

  const BackwardPlaces& backward(size_t lane) const { return backward_[lane]; }
  const std::vector<BackwardPlaces>& backward_places() const { return backward_; }  // by lane
  int32_t num_lanes() const { return static_cast<int32_t>(lanes_.size()); }

 protected:
  // Of no table, and with nothing yet.
  TrainingPlacement(const Model& model, kernels::cuda::Precision precision, int32_t most_images)
      : Placement(model, precision, most_images) {}

  // Of a lane: its tensors but for external ones, and what its batch norms measure.
  void place_tensors(Network& lane);
  // The way back is there already; `outside`: a buffer of it that lies elsewhere.
  void place_backward(const Network& lane, int32_t classes, BackwardPlaces& to,
                      int32_t outside = -1);

  std::vector<BackwardPlaces> backward_;
};

}  // namespace nasfast::cuda
