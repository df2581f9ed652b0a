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
  if (lanes_ == 0) lanes_ = first_guess(left, calls);
  for (;;) {
    const int32_t count = std::min({lanes_, most_lanes_, left});
    const int64_t bytes = calls.prepare(count);
    const int64_t room = count > 1 ? budget_.wanted : std::max(budget_.wanted, budget_.most);
    if (bytes > room) {
      require(count > 1, "memory: " + calls.needs_alone(bytes) + ", got " + std::to_string(room));
      lanes_ = std::clamp(fitting(count, bytes, static_cast<double>(room)), 1, count - 1);
      continue;
    }
    std::byte* memory = nullptr;
    if (count < left && bytes > bytes_) {  // those behind may need a little more: not twice
      memory = reserve(std::min(room, bytes + bytes / 8), calls);
    }
    if (memory == nullptr) memory = reserve(bytes, calls);
    if (memory != nullptr) {
      if (count < left) {  // what is prepared in vain costs more than a few lanes less
        const auto wanted = static_cast<double>(budget_.wanted);  // however much one may take
        lanes_ = std::max(1, fitting(count, bytes, 0.97 * wanted));
      }
      return {count, memory};
    }
    if (count == 1) {
      throw std::runtime_error("out of memory: " + calls.needs_alone(bytes) +
                               ", which the device does not have");
    }
    most_lanes_ = count / 2;
  }
}

// Preparing lanes takes time, so what many need is told from a few.
int32_t LaneGroups::first_guess(int32_t left, const Calls& calls) {
  constexpr int32_t kFew = 32;
  if (left <= kFew) return left;
  const int64_t one = calls.prepare(1), few = calls.prepare(kFew);
  const int64_t each = std::max<int64_t>((few - one) / (kFew - 1), 1);
  common_ = std::max<int64_t>(one - each, 0);
  return std::max(1, fitting(kFew, few, static_cast<double>(budget_.wanted)));
}

// As many as have this room, where `count` need so many bytes.
int32_t LaneGroups::fitting(int32_t count, int64_t bytes, double room) const {
  const auto common = static_cast<double>(common_);
  const double each = std::max(1.0, static_cast<double>(bytes) - common) / count;
  return static_cast<int32_t>(std::clamp((room - common) / each, 0.0, 1e6));
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
