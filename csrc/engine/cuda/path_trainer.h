// SPDX-License-Identifier: MIT
// SGD of one row of weights, path after path, on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/cuda/lane_groups.h"
#include "engine/cuda/trainer.h"
#include "engine/engine.h"
#include "engine/trained_spans.h"
#include "engine/training.h"
#include "kernels/cuda/sgd.h"

namespace nasfast::cuda {

// In device memory.
struct TrainedRow {
  float* weights = nullptr;  // [arena]
  float* momenta = nullptr;  // [arena]; null: none
  // Of each path before its step, [steps * paths]: mean loss of the minibatch, images of it that
  // are classified correctly.
  double* loss = nullptr;
  int64_t* correct = nullptr;
};

// As train_paths() on the CPU (engine/training.h) says. The paths of a step run side by side, as
// many at a time as fit, which changes no bit.
class PathTrainer {
 public:
  // For up to `most_steps` minibatches a call. The table outlives it.
  PathTrainer(const ProgramTable& table, int32_t paths, int32_t most_steps, const Options& options,
              const Budget& budget, Allocate allocate);

  int64_t bytes() const { return bytes_; }  // beside what it allocates for paths

  // One step for every minibatch, step s taking lanes[s * paths...] of the table. `memory`: of
  // bytes(), aligned to 256 bytes. Images and labels, which name classes of the table, lie in
  // device memory. Returns the number of steps taken, when all is done: those after a step that
  // cannot be taken leave weights and momenta alone too. Throws as LaneTrainer::run(), and
  // std::invalid_argument for lanes that the table does not have.
  int64_t run(std::byte* memory, const TrainedRow& row, std::span<const int64_t> lanes,
              const Images& images, const int64_t* labels, double lr, const Sgd& sgd,
              cudaStream_t stream);

 private:
  // Paths that run side by side, and where what they leave behind lies in their memory.
  struct Group {
    std::unique_ptr<Trainer> trainer;
    std::byte* memory = nullptr;
    int32_t count = 0;
    int64_t gradients = 0, rows = 0, loss = 0, correct = 0, bytes = 0;
  };

  Group next_group(std::span<const int32_t> left, int32_t images, cudaStream_t stream);
  void run_group(const Group& group, const Minibatch& minibatch, int32_t step, int32_t first,
                 cudaStream_t stream);
  void move_statistics(const Group& group, int32_t images, cudaStream_t stream);
  void update(const Sgd& sgd, int32_t step, cudaStream_t stream);
  void mark(const std::vector<Span>& spans, int64_t at, uint8_t mark, cudaStream_t stream) const;
  float* numbers(int64_t at) const { return reinterpret_cast<float*>(memory_ + at); }

  const ProgramTable& table_;
  const int32_t paths_, most_steps_;
  const Options options_;
  LaneGroups groups_;
  // Where these lie in `memory`, and the end: the sum of a step's gradients, the row of weights
  // with running statistics as they are after its paths so far, and what SgdLaunch says.
  int64_t total_ = 0, running_ = 0, marks_ = 0, trained_at_ = 0, tracked_at_ = 0, lr_ = 0,
          partial_ = 0, state_ = 0, diverged_at_ = 0, bytes_ = 0;

  std::byte* memory_ = nullptr;
  TrainedRow row_;
  std::vector<Span> trained_, tracked_;  // of the step at hand
};

}  // namespace nasfast::cuda
