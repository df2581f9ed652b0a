// SPDX-License-Identifier: MIT
// Gradients of many lanes at once on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/cuda/minibatch.h"
#include "engine/cuda/packing.h"
#include "engine/cuda/tables.h"
#include "engine/cuda/training_placement.h"
#include "engine/cuda/training_steps.h"

namespace nasfast::cuda {

// What a step reads and writes, in device memory.
struct TrainingArrays {
  const float* weights = nullptr;    // [lanes, arena], or one row that they share
  float* gradients = nullptr;        // [lanes, arena] all of it is written; null: not wanted
  const float* mixing = nullptr;     // mixing weights; null: none
  float* mixing_gradient = nullptr;  // of a single lane, added to; null: not wanted
};

// Lanes of a program table in training: batch norm takes its statistics from the minibatch. The
// table outlives it. It allocates nothing on the device, and a lane's results do not depend on what
// else is there.
class Trainer {
 public:
  // For minibatches of up to `most_images`. Throws std::invalid_argument where the network does not
  // fit a device.
  Trainer(const ProgramTable& table, std::span<const int32_t> lanes, Weights weights,
          const Options& options, int32_t most_images);

  int64_t bytes() const { return bytes_; }
  int32_t num_lanes() const { return placement_.num_lanes(); }
  const TrainingPlacement& placement() const { return placement_; }

  // Says where that memory is (aligned to 256 bytes) and the weights are. Throws Error, as run().
  void bind(std::byte* memory, const TrainingArrays& arrays, cudaStream_t stream);

  // Scores a minibatch with the weights as they are now, as Chunk::run() does, and writes the
  // gradients of its mean cross-entropy, or of its logits times `logit_gradient` [count, classes].
  void run(const Minibatch& minibatch, const float* logit_gradient, const Results& results,
           cudaStream_t stream);

 private:
  void upload_steps(int32_t images, cudaStream_t stream);

  const ProgramTable& table_;
  const Options options_;
  const int32_t most_images_;
  TrainingPlacement placement_;
  const ViewInputs view_inputs_;
  int32_t num_packs_ = 0;
  const kernels::cuda::WeightRow* pack_rows_ = nullptr;  // on the device
  int32_t most_shared_ = 0;                              // bytes of a block
  // Where these lie, and the end.
  int64_t packs_ = 0, inputs_ = 0, tables_ = 0, moments_ = 0, partial_ = 0, bytes_ = 0;

  BackwardAddresses addresses_;
  int32_t images_ = 0;  // that the tables on the device are for
  Steps forward_;
  BackwardSteps backward_;
  DeviceSteps forward_rows_;
  DeviceBackwardSteps backward_rows_;
};

}  // namespace nasfast::cuda
