// SPDX-License-Identifier: MIT
// Groups of lanes that run side by side, as many at a time as the memory of a device holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "engine/cuda/placement.h"
#include "kernels/cuda/launches.h"

namespace nasfast::cuda {

// How much memory lanes that run side by side may take, in bytes.
struct Budget {
  int64_t wanted = 0;  // by several
  int64_t most = 0;    // by a lane that takes more than that
};

// Returns that many bytes of device memory, aligned to Placement::kAlignment, which stay until the
// next call; or null if the device has no room for them.
using Allocate = std::function<std::byte*(int64_t bytes)>;

// Says that a lane of a table needs so many bytes.
std::string needs_alone(int32_t lane, int64_t bytes, int32_t most_images, const Options& options);

class LaneGroups {
 public:
  struct Group {
    int32_t count;
    std::byte* memory;
  };
  // What is done with groups of a kind.
  struct Calls {
    std::function<int64_t(int32_t count)> prepare;          // returns the bytes it needs
    std::function<void()> finish;                           // of the group that has the memory
    std::function<std::string(int64_t bytes)> needs_alone;  // of the first lane, in words
  };

  LaneGroups(const Budget& budget, Allocate allocate);

  // Forgets how many lanes fitted.
  void restart() { lanes_ = common_ = 0, most_lanes_ = kernels::cuda::kMostRows; }

  // Prepares the next lanes, of which there are `left`: as many as will probably fit, then fewer
  // and fewer. Throws std::invalid_argument if one needs more than the budget, std::runtime_error
  // if the device has no room for one.
  Group next(int32_t left, const Calls& calls);

  // Where the group before lies, and the next one if it fits; null: nowhere.
  std::byte* memory() const { return memory_; }

 private:
  int32_t first_guess(int32_t left, const Calls& calls);
  int32_t fitting(int32_t count, int64_t bytes, double room) const;
  std::byte* reserve(int64_t bytes, const Calls& calls);

  const Budget budget_;
  const Allocate allocate_;
  int32_t lanes_ = 0;                              // that are tried next; 0: nobody knows
  int32_t most_lanes_ = kernels::cuda::kMostRows;  // that the device has had no room for, halved
  int64_t common_ = 0;                             // bytes that do not depend on their number
  std::byte* memory_ = nullptr;
  int64_t bytes_ = 0;  // of memory_
};

}  // namespace nasfast::cuda
