// SPDX-License-Identifier: MIT
// How many lanes run side by side, and when memory is asked for.
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runs.h"
#include "engine/cuda/lane_groups.h"

namespace {

using cuda_runs::Device;
using cuda_runs::has;
using cuda_runs::kMuch;
using cuda_runs::refusal;
using nasfast::cuda::Budget;
using nasfast::cuda::LaneGroups;

// What `count` lanes need.
constexpr int64_t bytes_of(int64_t count) { return 100 + 10 * count; }

// Groups on a device, and what was done for them: "?" memory is asked for, "." the device finishes.
struct Groups {
  Device device;
  std::string done;
  std::vector<int32_t> prepared;
  LaneGroups groups;

  Groups(const Budget& budget, int64_t device_bytes)
      : device{device_bytes, {}, {}},
        groups(budget, [this, allocate = device.allocator()](int64_t bytes) {
          done += '?';
          return allocate(bytes);
        }) {}
  Groups(const Groups&) = delete;

  int32_t next(int32_t left) {
    const auto group = groups.next(
        left, {[this](int32_t count) {
                 prepared.push_back(count);
                 return bytes_of(count);
               },
               [this] { done += '.'; },
               [](int64_t bytes) { return "it needs " + std::to_string(bytes) + " bytes"; }});
    CHECK(group.memory != nullptr && group.memory == device.memory->get());
    CHECK(device.asked.back() >= bytes_of(group.count));
    return group.count;
  }
};

void check_budget() {
  Groups all({180, 180}, kMuch);
  CHECK_EQ(all.next(8), 8);
  CHECK(all.device.asked == std::vector{bytes_of(8)});
  Groups some({150, 150}, kMuch);
  CHECK_EQ(some.next(8), 5);
  CHECK_EQ(some.next(2), 2);
  CHECK(some.device.asked == std::vector{bytes_of(5)});  // it is there for those behind
  CHECK_EQ(some.done, ".?");
  // One lane may take more than several do.
  Groups alone({0, bytes_of(1)}, kMuch);
  CHECK_EQ(alone.next(8), 1);
  Groups none({0, bytes_of(1) - 1}, kMuch);
  CHECK_EQ(refusal([&] { none.next(8); }), "memory: it needs 110 bytes, got 109");
  CHECK(none.device.asked.empty());
}

// What a device refuses is halved.
void check_refused() {
  Groups small({kMuch, kMuch}, bytes_of(2));
  CHECK_EQ(small.next(8), 2);
  // With a little more for those behind, or else without.
  CHECK(small.device.asked == std::vector<int64_t>({180, 157, 140, 135, 120}));
  CHECK_EQ(small.next(6), 2);  // no more are tried
  CHECK_EQ(small.done, ".?.?.?.?.?");
  // Until it is said that they may fit again. The memory of before is gone by then.
  small.groups.restart();
  CHECK_EQ(small.next(8), 2);
  CHECK_EQ(small.done, ".?.?.?.?.?.?.?.?.?.?");
  Groups tiny({kMuch, kMuch}, bytes_of(1) - 1);
  CHECK(has(refusal([&] { tiny.next(3); }),
            "out of memory: it needs 110 bytes, which the device does not have"));
  CHECK(tiny.device.asked == std::vector<int64_t>({130, 123, 110}));
}

// Many lanes are not prepared to see that they are too many, nor is memory asked for again.
void check_many() {
  Groups many({1100, 1100}, kMuch);
  CHECK_EQ(many.next(1000), 100);
  CHECK(many.prepared == std::vector({1, 32, 100}));
  CHECK_EQ(many.next(900), 96);  // 97 % of the room
  CHECK_EQ(many.next(50), 50);
  CHECK(many.prepared == std::vector({1, 32, 100, 96, 50}));
  CHECK(many.device.asked == std::vector<int64_t>({1100}));
  CHECK(many.groups.memory() == many.device.memory->get());
  // Where they all fit, they get what they need.
  Groups all({kMuch, kMuch}, kMuch);
  CHECK_EQ(all.next(1000), 1000);
  CHECK(all.device.asked == std::vector{bytes_of(1000)});
  // One may be too many for several.
  Groups alone({50, 500}, kMuch);
  CHECK_EQ(alone.next(1000), 1);
  // However much that one may take, the next ones are not tried together.
  CHECK_EQ(alone.next(999), 1);
  CHECK(alone.prepared == std::vector({1, 32, 1, 1}));
}

}  // namespace

int main() {
  check_budget();
  check_many();
  check_refused();
  return check::result();
}
