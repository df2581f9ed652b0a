// SPDX-License-Identifier: MIT
// A lane's result depends on nothing but the lane: not on threads, on what else is in its chunk, on
// what is shared, nor on weights that other lanes use.
#include <unistd.h>

#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "check.h"
#include "engine_runs.h"

namespace {

using namespace engine_runs;
using nasfast::kBatch, nasfast::kRecalibrate, nasfast::kRunning, nasfast::BatchNormMode;
using nasfast::kernels::cpu::Isa, nasfast::kernels::cpu::Precision;

RunOptions options_for(const Data& data, Isa isa, Precision precision, BatchNormMode mode,
                       int32_t threads) {
  auto options = options_of(data, isa, precision, threads);
  options.fixed = options.last = mode;
  return options;
}

// A table of images of 3 channels whose lanes are all in one chunk, what its first cells may share,
// and units without which no lane that has them is finite.
struct Example {
  Sections sections;
  std::vector<std::vector<int32_t>> shares;
  std::vector<std::pair<int32_t, float>> broken;  // and what a weight of them becomes

  int32_t num_lanes() const { return static_cast<int32_t>(sections[nasfast::kLanes].size()) / 3; }
  Sections with(BatchNormMode mode, int32_t chunk, const std::vector<int32_t>& shared = {},
                int32_t alignment = nasfast::kArenaAlignment) const {
    Sections changed = sections;
    changed[nasfast::kSettings][0] = mode;
    small_tables::set_chunks(changed, chunk, shared);
    small_tables::lay_out(changed, alignment);
    return changed;
  }
};

std::vector<Example> examples() {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return {
      // conv1x1 and conv3x3 of the first cell, then of the second.
      {two_stages({3, 3, 9}, kBatch),
       {{}, {1}, {1, 3, 4, 5}, {1, 2, 3, 4, 5, 6, 7, 8}},
       {{2, kNan}, {3, kInfinity}, {8, kInfinity}, {9, kNan}}},
      // conv1x1, the output's projection and the second conv3x3, of each cell.
      {small_tables::choice_blocks({3, 5, 3, 2, 7}),
       {{}, {1}, {1, 2, 3, 5, 6, 7, 8}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 24}},
       {{3, kNan}, {4, kInfinity}, {5, kNan}, {10, kInfinity}, {17, kNan}}},
      // conv1x1 of the narrow vertex, projections, and conv3x3 of the narrow vertex.
      {small_tables::vertex_cells({3, 5, 7, 3}),
       {{}, {1}, {1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6, 8, 10, 12, 13, 14, 16, 20, 22}},
       {{4, kNan}, {5, kInfinity}, {6, kNan}, {12, kInfinity}, {13, kNan}}},
  };
}

// Chunks of one lane and of many, few threads and more threads than lanes, nothing shared or much.
void check_invariance(const Example& example) {
  const Data data(3, 6, 5, {35, 1}, 1), calibration(3, 6, 5, {20, 3}, 2);
  const int32_t lanes_of_all = example.num_lanes();
  for (const BatchNormMode mode : {kBatch, kRecalibrate, kRunning}) {
    const Network alone(example.with(mode, 1));
    const auto arena = random_arena(alone.table);
    for_every_setting([&](Isa isa, Precision precision) {
      std::vector<Scores> expected;
      for (int32_t lane = 0; lane < lanes_of_all; ++lane) {
        expected.push_back(run(alone.table, lane, arena.data(), data,
                               options_for(data, isa, precision, mode, 1), calibration.get()));
      }
      for (int32_t turn = 0; turn < 5; ++turn) {
        const int32_t chunk =
            std::vector{lanes_of_all, 5, 2, lanes_of_all, lanes_of_all}[static_cast<size_t>(turn)];
        const int32_t threads = std::vector{2, 1, 3, 1, 3}[static_cast<size_t>(turn)];
        const Network network(
            example.with(mode, chunk, example.shares[static_cast<size_t>(turn % 4)]));
        for (int32_t k = 0; k < network.table.num_chunks(); ++k) {
          const auto lanes = network.table.chunk(k);
          const Scores scores =
              run(network.table, k, arena.data(), data,
                  options_for(data, isa, precision, mode, threads), calibration.get());
          for (size_t i = 0; i < lanes.size(); ++i) {
            CHECK(scores.is_same(i, expected[static_cast<size_t>(lanes[i])], 0,
                                 static_cast<size_t>(data.count())));
          }
        }
      }
    });
  }
}

// In another order, other lanes beside it, and twice: the last lane but two and lane 2.
void check_order(const Example& example) {
  const Data data(3, 5, 4, {9}, 3);
  const int32_t late = example.num_lanes() - 3;
  const auto far = static_cast<size_t>(late);
  const Network whole(example.with(kBatch, example.num_lanes(), example.shares[1]));
  auto sections = example.with(kBatch, example.num_lanes(), example.shares[2]);
  sections[nasfast::kLanes] = {late, 0, 0, 2, 0, 0, late, 0, 0};
  sections[nasfast::kLaneOrder] = {2, 1, 0};
  sections[nasfast::kChunkBegin] = {0, 3};
  const Network few(sections);
  const auto arena = random_arena(whole.table);
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = options_of(data, isa, precision, 2);
    const Scores all = run(whole.table, 0, arena.data(), data, options);
    const Scores some = run(few.table, 0, arena.data(), data, options);
    CHECK(some.is_same(0, all, far, 9));
    CHECK(some.is_same(1, all, 2, 9));
    CHECK(some.is_same(2, all, far, 9));
    CHECK(!some.is_same(1, all, far, 9));
  });
}

// Nothing of an operation that no lane of the chunk uses is read.
void check_unread(const Example& example) {
  const auto page =
      static_cast<int32_t>(static_cast<size_t>(sysconf(_SC_PAGESIZE)) / sizeof(float));
  for (const BatchNormMode mode : {kBatch, kRecalibrate, kRunning}) {
    const Network network(example.with(mode, 1, {}, page));
    const auto units = network.table.units();
    const int32_t size = network.table.settings().arena_size;
    const PagedArena arena(size);
    fill_arena(network.table, arena.get());
    const Data data(3, 4, 4, {3}, 4);
    for (int32_t lane = 0; lane < example.num_lanes(); ++lane) {
      const auto used = units_used(network.table, lane);
      arena.protect(0, size, PROT_NONE);
      for (const int32_t unit : used) {
        const auto& row = units[static_cast<size_t>(unit)];
        for (const int32_t offset :
             {row.weight, row.bias, row.gamma, row.beta, row.mean, row.variance}) {
          if (offset >= 0) arena.protect(offset, offset + page, PROT_READ);
        }
      }
      for_every_setting([&](Isa isa, Precision precision) {
        const Scores scores =
            run(network.table, lane, arena.get(), data, options_for(data, isa, precision, mode, 1));
        for (const float loss : scores.loss) CHECK(std::isfinite(loss));
      });
    }
    CHECK(units_used(network.table, 0).size() < units.size());
  }
}

// A unit that is not finite spoils the lanes that use it and no other.
void check_not_finite(const Example& example) {
  const Data data(3, 5, 6, {18}, 5);
  const Network network(example.with(kBatch, example.num_lanes(), {1}));
  const auto arena = random_arena(network.table);
  const Network alone(example.with(kBatch, 1));
  const size_t images = 18;
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = options_of(data, isa, precision, 2);
    const Scores good = run(network.table, 0, arena.data(), data, options);
    for (const auto& [unit, bad] : example.broken) {
      int32_t spoilt = 0;
      auto broken = arena;
      broken[static_cast<size_t>(network.table.units()[static_cast<size_t>(unit)].weight)] = bad;
      const Scores scores = run(network.table, 0, broken.data(), data, options);
      for (int32_t lane = 0; lane < example.num_lanes(); ++lane) {
        const bool uses = units_used(alone.table, lane).count(unit) > 0;
        const auto l = static_cast<size_t>(lane);
        spoilt += uses;
        CHECK_EQ(scores.is_same(l, good, l, images), !uses);
        for (size_t i = l * images; uses && i < (l + 1) * images; ++i) {
          CHECK(!std::isfinite(scores.loss[i]));
          CHECK_EQ(int32_t{scores.correct[i]}, 0);
        }
      }
      CHECK(spoilt > 0 && spoilt < example.num_lanes());
    }
  });
}

}  // namespace

int main() {
  for (const Example& example : examples()) {
    check_invariance(example);
    check_order(example);
    check_unread(example);
    check_not_finite(example);
  }
  return check::result();
}
