// SPDX-License-Identifier: MIT
// Threads that work through tasks: each task once, in many rounds, and exceptions come back.
#include "engine/team.h"

#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"

namespace {

using nasfast::Team;

void check_rounds(int32_t threads) {
  std::atomic<int32_t> entered{0}, left{0};
  {
    Team team(threads, [&] { ++entered; }, [&] { ++left; });
    CHECK_EQ(team.size(), threads);
    std::vector<int32_t> done(64);  // not atomic: a task that ran twice is a data race
    for (int32_t round = 1; round <= 500; ++round) {
      const int64_t count = round % 65;
      team.run(count, [&](int32_t thread, int64_t index) {
        if (thread < 0 || thread >= threads) throw std::logic_error("thread");
        ++done[static_cast<size_t>(index)];
      });
      // What the tasks wrote is seen here.
      for (int64_t i = 0; i < count; ++i)
        CHECK_EQ(std::exchange(done[static_cast<size_t>(i)], 0), 1);
    }
    team.run(0, [](int32_t, int64_t) { throw std::logic_error("no task"); });
    CHECK_EQ(left.load(), 0);
  }
  CHECK_EQ(entered.load(), threads);
  CHECK_EQ(left.load(), threads);
}

void check_exceptions(int32_t threads) {
  Team team(threads, [] {}, [] {});
  for (int32_t round = 0; round < 100; ++round) {
    std::atomic<int32_t> started{0};
    std::string what;
    try {
      team.run(1000, [&](int32_t, int64_t index) {
        ++started;
        if (index == 3) throw std::runtime_error("task 3");
      });
    } catch (const std::runtime_error& error) {
      what = error.what();
    }
    CHECK_EQ(what, std::string("task 3"));
    CHECK(started >= 4);
    // The team works on as before.
    std::atomic<int64_t> sum{0};
    team.run(10, [&](int32_t, int64_t index) { sum += index; });
    CHECK_EQ(sum.load(), int64_t{45});
  }
}

}  // namespace

int main() {
  for (const int32_t threads : {1, 2, 3, 5}) {
    check_rounds(threads);
    check_exceptions(threads);
  }
  return check::result();
}
