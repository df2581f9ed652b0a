// SPDX-License-Identifier: MIT
// Scores the lanes of a chunk, or all of a table that have weights of their own: as many at a time
// as the memory of a device holds.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "engine/cuda/chunk.h"
#include "engine/cuda/graph.h"
#include "engine/cuda/host_buffer.h"
#include "engine/cuda/lane_groups.h"
#include "engine/engine.h"
#include "program/program_table.h"

namespace nasfast::cuda {

// Outlived by the table. How lanes are grouped changes no bit of a result.
class Scorer {
 public:
  // From so many minibatches of one size on, their launches are recorded and repeated.
  static constexpr size_t kLeastReplays = 4;

  Scorer(const ProgramTable& table, const Lanes& lanes, const Options& options,
         const Budget& budget, Allocate allocate, size_t least_replays = kLeastReplays);

  // Images, labels (null where only logits are wanted), the weight set or sets and results lie in
  // device memory; results have a row for each lane and a column for each image. Returns when
  // all is done. Throws std::invalid_argument if a lane needs more than the budget, Error if the
  // device refuses something, std::runtime_error if it has no room for one lane.
  void run(const float* arena, const Images& images, const int64_t* labels, const Results& results,
           cudaStream_t stream);

 private:
  // What a recorded minibatch reads and writes: the same place for all of a size.
  struct Staging {
    float* images;
    int64_t* labels;
    Results results;
  };
  struct Group {
    int32_t first;  // of its lanes
    std::unique_ptr<Chunk> lanes;
    std::byte* memory;
  };
  // A group, and what it works on.
  struct Call {
    const Group& group;
    const Images& images;
    const int64_t* labels;
    const Results& results;
    cudaStream_t stream;
  };

  Group next_group(int32_t first, const Results& wanted, const float* arena, cudaStream_t stream);
  void score(const Call& call);
  void replay(const Call& call, const std::vector<int64_t>& minibatches, int32_t size);
  Minibatch minibatch_of(const Call& call, int64_t first, int32_t size) const;
  Results results_of(const Call& call) const;
  // Returns its size; addresses are from `memory` on.
  int64_t stage(int32_t lanes, const Results& wanted, std::byte* memory, Staging* staging) const;
  void finish(cudaStream_t stream);
  int64_t image_numbers() const;

  const ProgramTable& table_;
  const Lanes lanes_;
  const Options options_;
  const size_t least_replays_;
  LaneGroups groups_;

  std::map<int32_t, std::vector<int64_t>> minibatches_;  // first image of each, by size
  int32_t most_images_ = 0, most_replayed_ = 0;          // of a minibatch
  std::vector<Graph> graphs_;                            // that the device may be at
  HostBuffer tables_[2];  // of the group that the device is at, and of the next one
};

}  // namespace nasfast::cuda
