// SPDX-License-Identifier: MIT
// Trains all lanes of a chunk, as many at a time as the memory of a device holds.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/cuda/fine_tuner.h"
#include "engine/cuda/lane_groups.h"
#include "engine/engine.h"
#include "program/program_table.h"

namespace nasfast::cuda {

// Outlived by the table. How lanes are grouped changes no bit of a result.
class LaneTrainer {
 public:
  LaneTrainer(const ProgramTable& table, int32_t chunk, const Options& options,
              const Budget& budget, Allocate allocate);

  // One step of SGD for every lane of the chunk and every minibatch, as train_lanes() on the CPU
  // (engine/training.h): a group goes through all minibatches before the next begins. Images,
  // labels, which name classes of the table, and what is trained and recorded lie in device memory,
  // with a row for each lane of the chunk. Returns when all is done. Throws as Scorer::run(), and
  // std::invalid_argument for images that running statistics are not defined for.
  void run(const TrainedLanes& lanes, const Images& images, const int64_t* labels, const Sgd& sgd,
           const Steplog& log, int32_t first_step, cudaStream_t stream);

 private:
  struct Group {
    int32_t first;  // of the chunk's lanes
    int32_t count;
    std::unique_ptr<FineTuner> tuner;
    std::byte* memory;
  };

  Group next_group(int32_t first, int32_t most_images, cudaStream_t stream);

  const ProgramTable& table_;
  const int32_t chunk_;
  const Options options_;
  LaneGroups groups_;
};

}  // namespace nasfast::cuda
