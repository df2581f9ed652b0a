// SPDX-License-Identifier: MIT
// SGD of many lanes at once on a CUDA device, each with weights of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/cuda/trainer.h"
#include "engine/training.h"
#include "kernels/cuda/paths.h"
#include "kernels/cuda/sgd.h"

namespace nasfast::cuda {

// In device memory; [lanes, arena] but for the last.
struct TrainedLanes {
  float* weights = nullptr;
  float* momenta = nullptr;        // null: none
  float* gradient_sums = nullptr;  // null: not wanted
  int32_t* diverged_at = nullptr;  // [lanes] step in which a lane stopped, -1: it has not
};

// Steps of a call, in device memory: [lanes, steps].
struct Steplog {
  int32_t steps = 0;
  const double* lr = nullptr;
  double* loss = nullptr;             // before the step, mean of the minibatch
  int64_t* correct = nullptr;         // before the step, images of the minibatch
  double* gradient_l1 = nullptr;      // sum of absolute values, before clip and decay
  double* gradient_sum_l1 = nullptr;  // the same of the sum of all gradients so far; null: none
};

// As train_lanes() on the CPU (engine/training.h) says, with the chunk's lanes side by side.
class FineTuner {
 public:
  // For minibatches of up to `most_images`. Throws as Trainer.
  FineTuner(const ProgramTable& table, std::span<const int32_t> lanes, const Options& options,
            int32_t most_images);

  int64_t bytes() const { return bytes_; }

  // Says where that memory is (aligned to 256 bytes), and what is trained. Throws Error, as run().
  void bind(std::byte* memory, const TrainedLanes& lanes, cudaStream_t stream);

  // Step `step` of the call, number `first_step + step` of all: one of SGD in every lane that has
  // not stopped. Returns once everything is launched.
  void run(const Minibatch& minibatch, const Sgd& sgd, const Steplog& log, int32_t step,
           int32_t first_step, cudaStream_t stream);

 private:
  const ProgramTable& table_;
  Trainer trainer_;
  std::vector<kernels::cuda::SpanRow> trained_;  // numbers of all lanes
  std::vector<kernels::cuda::StatisticsRow> statistics_;
  int32_t images_ = 0;  // that those are for
  // Where these lie behind the trainer's memory, and the end.
  int64_t gradients_ = 0, marks_ = 0, spans_ = 0, rows_ = 0, loss_ = 0, correct_ = 0, partial_ = 0,
          states_ = 0, bytes_ = 0;
  std::byte* memory_ = nullptr;
  TrainedLanes lanes_;
};

}  // namespace nasfast::cuda
