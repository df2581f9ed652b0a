// SPDX-License-Identifier: MIT
#include "engine/cuda/lane_groups.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "engine/checks.h"

namespace nasfast::cuda {

std::string needs_alone(int32_t lane, int64_t bytes, int32_t most_images, const Options& options) {
  return "lane " + std::to_string(lane) + " needs " + std::to_string(bytes) +
         " bytes for minibatches of " + std::to_string(most_images) + " images of " +
         std::to_string(options.height) + "x" + std::to_string(options.width);
}

LaneGroups::LaneGroups(const Budget& budget, Allocate allocate)
    : budget_(budget), allocate_(std::move(allocate)) {}

LaneGroups::Group LaneGroups::next(int32_t left, const Calls& calls) {
  for (;;) {
    const int32_t count = std::min(most_lanes_, left);
    const int64_t bytes = calls.prepare(count);
    const int64_t room = count > 1 ? budget_.wanted : std::max(budget_.wanted, budget_.most);
    if (bytes > room) {
      require(count > 1, "memory: " + calls.needs_alone(bytes) + ", got " + std::to_string(room));
      // What all lanes have in common makes this too few at times, never none.
      const auto fitting = static_cast<int64_t>(
          static_cast<double>(count) * static_cast<double>(room) / static_cast<double>(bytes));
      most_lanes_ = static_cast<int32_t>(std::clamp<int64_t>(fitting, 1, count - 1));
      continue;
    }
    std::byte* memory = reserve(bytes, calls);
    if (memory != nullptr) return {count, memory};
    if (count == 1) {
      throw std::runtime_error("out of memory: " + calls.needs_alone(bytes) +
                               ", which the device does not have");
    }
    most_lanes_ = count / 2;
  }
}

std::byte* LaneGroups::reserve(int64_t bytes, const Calls& calls) {
  if (bytes <= bytes_) return memory_;
  calls.finish();
  bytes_ = 0;  // allocate_() gives back what was there, even if it has nothing else
  memory_ = allocate_(bytes);
  if (memory_ != nullptr) bytes_ = bytes;
  return memory_;
}

}  // namespace nasfast::cuda
