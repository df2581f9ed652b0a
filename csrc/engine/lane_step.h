// SPDX-License-Identifier: MIT
// One training step of one lane, up to the gradient: forward, loss, backward.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/backward.h"
#include "engine/batch.h"
#include "engine/executor.h"
#include "engine/packed_weights.h"
#include "engine/trained_spans.h"

namespace nasfast {

// What a network is for training.
struct TrainingNetwork {
  WeightViews views;
  Schedule schedule;
  Reverse reverse;
  std::vector<Span> trained;  // parameters that get a gradient, in the order of the arena
  std::vector<Span> tracked;  // running statistics

  TrainingNetwork(const ProgramTable& table, int32_t network);
};

class LaneStep {
 public:
  // For these networks, on minibatches of at most `blocks` blocks. `threads`: the most of a team.
  LaneStep(const ProgramTable& table, const kernels::cpu::Kernels& kernels,
           const Geometry& geometry, kernels::cpu::Precision precision,
           std::span<const TrainingNetwork* const> networks, int32_t blocks, int32_t threads);

  struct Result {
    double loss = 0;      // mean cross-entropy of the minibatch
    int64_t correct = 0;  // images classified correctly
  };
  // Puts logits [images, classes] into logits(). With the next: one step up to the gradient.
  void forward(const TrainingNetwork& network, const float* arena, const Batch& batch,
               const std::byte* images, const float* mixing, Team* team);
  Result score(const int64_t* labels);
  // Writes gradients of the network's trained parameters to `gradient`, an arena; adds those of
  // mixing weights to `mixing_gradient`, where it is not null. The gradient of logits is that of
  // the loss, or what logit_gradient() was filled with.
  void backward(float* gradient, float* mixing_gradient, Team* team);
  // Moves running statistics towards those of the last minibatch.
  void update_statistics(float* arena) const;

  std::vector<float>& logits() { return logits_; }
  std::vector<float>& logit_gradient() { return logit_gradient_; }
  int64_t bytes() const { return executor_->bytes() + backward_->bytes(); }

 private:
  const ProgramTable& table_;
  const kernels::cpu::Kernels& kernels_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Backward> backward_;
  std::unique_ptr<PackedWeights> forward_weights_, backward_weights_;
  const TrainingNetwork* packed_for_ = nullptr;
  Recorded statistics_;
  std::vector<float> logits_, logit_gradient_;
  // The step at hand.
  const TrainingNetwork* network_ = nullptr;
  const Batch* batch_ = nullptr;
  const std::byte* images_ = nullptr;
  const float* mixing_ = nullptr;
};

}  // namespace nasfast
