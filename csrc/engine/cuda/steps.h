// SPDX-License-Identifier: MIT
// The launches that take a minibatch through all lanes of a chunk, and the tables they read.
//
// A lane's passes run one after another, so that is all the order there is: pass k at a position of
// the network runs in the same launch in every lane that has one. Images of one size meet there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "engine/cuda/placement.h"
#include "kernels/cuda/descriptors.h"

namespace nasfast::cuda {

// Rows [first, first + count) of a table, and the most that one of them has.
struct PassesStep {
  int32_t first = 0, count = 0;
  int32_t columns = 0;
  int32_t most_tiles = 0, most_bytes = 0;
};
struct NormsStep {
  int32_t first = 0, count = 0;
  int32_t most_channels = 0;
};
struct HeadsStep {
  int32_t first = 0, count = 0;
  int32_t most_channels = 0, most_terms = 0;
  kernels::cuda::Sides sides{};
};

// One after another: passes (a launch for each number of columns), the batch norms that they
// measured, classifiers.
struct Step {
  std::vector<PassesStep> passes;
  NormsStep norms;
  HeadsStep heads;
};

struct Steps {
  std::vector<kernels::cuda::TermRow> terms;
  std::vector<kernels::cuda::ConsumerRow> consumers;
  std::vector<kernels::cuda::PassRow> passes;
  std::vector<kernels::cuda::NormRow> norms;
  std::vector<kernels::cuda::HeadRow> heads;
  std::vector<Step> steps;
  int64_t moments_bytes = 0;  // that a step needs at most

  int32_t most_shared() const;  // bytes of shared memory of a block
};

// What addresses in the rows are made of. Null where only sizes are wanted.
struct Addresses {
  std::byte* memory = nullptr;  // that the placement is of
  std::byte* moments = nullptr;
  const float* arena = nullptr;   // the weight sets
  const float* mixing = nullptr;  // mixing weights; null: none
  // What the placement has from there on may be a second piece of memory.
  int64_t split = std::numeric_limits<int64_t>::max();
  std::byte* behind_split = nullptr;

  template <typename T>
  T* at(int64_t offset) const {
    if (offset < 0 || memory == nullptr) return nullptr;
    return reinterpret_cast<T*>(offset < split ? memory + offset : behind_split + (offset - split));
  }
  const float* weight(const Network& network, int32_t offset) const {
    return offset >= 0 && arena != nullptr ? arena + network.weights + offset : nullptr;
  }
};

// A pass of a lane.
struct Place {
  const Network* network;
  const Pass* pass;
  int32_t lane;
};

// The passes of all lanes, by step; in the order of the way forward.
std::vector<std::vector<Place>> steps_of_lanes(const std::vector<Network>& lanes);

// Appends what a pass sums. Returns how many terms there are.
int32_t add_terms(const Placement& placement, const Addresses& addresses, const Network& network,
                  const Pass& pass, std::vector<kernels::cuda::TermRow>& terms);

// Throws std::invalid_argument where a pass does not fit a device.
Steps steps_of(const Placement& placement, kernels::cuda::Precision precision,
               const Addresses& addresses, int32_t images);

// The batch norms that no minibatch changes.
std::vector<kernels::cuda::NormRow> running_norms(const Placement& placement,
                                                  const Addresses& addresses);

}  // namespace nasfast::cuda
