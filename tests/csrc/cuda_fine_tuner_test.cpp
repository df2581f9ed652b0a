// SPDX-License-Identifier: MIT
// SGD of many lanes on the CUDA engine, its kernels run by the emulator, against the CPU engine,
// and lanes that stop.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "cuda_runs.h"
#include "engine/cuda/fine_tuner.h"
#include "training_steps.h"

namespace {

using namespace training_runs;
using nasfast::cuda::FineTuner;
using nasfast::kernels::cuda::Precision;

// Of float32 over a few steps, where batch norm magnifies rounding; of operands in tf32.
constexpr double kTolerance = 2e-3, kTf32Tolerance = 0.1, kLeastOfTf32 = 2e-5;

std::vector<int32_t> all_lanes(size_t lanes) {
  std::vector<int32_t> all(lanes);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// As train(), on the device, by a tuner that is bound to this memory.
void train_by(FineTuner& tuner, const cuda_runs::DeviceMemory& memory, Training& state,
              const Data& data, size_t first, size_t end, const Rates& rates, const Sgd& sgd) {
  const Data part = part_of(data, first, end);
  const size_t lanes = state.diverged_at.size(), steps = end - first;
  std::vector<double> lr, loss(lanes * steps), l1(loss), sum_l1(loss);
  std::vector<int64_t> correct(lanes * steps);
  for (size_t k = 0; k < lanes; ++k) {
    for (size_t s = first; s < end; ++s) lr.push_back(rates(k, s));
  }
  tuner.bind(memory.get(),
             {state.weights.data(), sgd.momentum > 0 ? state.momentum.data() : nullptr,
              state.sums.data(), state.diverged_at.data()},
             nullptr);
  const nasfast::cuda::Steplog log = {static_cast<int32_t>(steps),
                                      lr.data(),
                                      loss.data(),
                                      correct.data(),
                                      l1.data(),
                                      sum_l1.data()};
  const int64_t image = int64_t{data.channels} * data.height * data.width;
  int64_t at = 0;
  for (size_t s = 0; s < steps; ++s) {
    tuner.run({part.images.data() + at * image, part.labels.data() + at,
               static_cast<int32_t>(part.sizes[s]), at},
              sgd, log, static_cast<int32_t>(s), static_cast<int32_t>(first), nullptr);
    at += part.sizes[s];
  }
  append(state.loss, loss, lanes);
  append(state.l1, l1, lanes);
  append(state.sum_l1, sum_l1, lanes);
  append(state.correct, correct, lanes);
}

FineTuner tuner_of(const ProgramTable& table, size_t lanes, const Data& data, Precision precision) {
  const auto most = *std::max_element(data.sizes.begin(), data.sizes.end());
  return FineTuner(table, all_lanes(lanes), cuda_runs::options_of(data, precision),
                   static_cast<int32_t>(most));
}

void train_on_device(const ProgramTable& table, Training& state, const Data& data, size_t first,
                     size_t end, const Rates& rates, const Sgd& sgd,
                     Precision precision = Precision::kFp32) {
  FineTuner tuner = tuner_of(table, state.diverged_at.size(), part_of(data, first, end), precision);
  const cuda_runs::DeviceMemory memory(tuner.bytes());
  train_by(tuner, memory, state, data, first, end, rates, sgd);
}

template <typename T>
double apart(const std::vector<T>& actual, const std::vector<T>& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double a = actual[i], b = expected[i];
    if (std::isnan(a) != std::isnan(b)) return std::numeric_limits<double>::infinity();
    if (std::isnan(a)) continue;
    difference += (a - b) * (a - b);
    size += b * b;
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

// Running statistics alone: they are few among the weights, and rounding hardly changes them.
constexpr double kOfStatistics = 1e-5;
std::vector<float> statistics_of(const ProgramTable& table, const std::vector<float>& weights) {
  std::vector<float> statistics;
  const auto arena = static_cast<size_t>(table.settings().arena_size);
  for (size_t row = 0; row < weights.size(); row += arena) {
    for (const auto& p : table.positions()) {
      for (const auto& unit : table.units_of(p)) {
        const int32_t channels = p.kind == nasfast::kHead ? p.in_channels : unit.out_channels;
        for (const int32_t offset : {unit.mean, unit.variance}) {
          if (offset < 0) continue;
          const auto begin = weights.begin() + static_cast<int64_t>(row) + offset;
          statistics.insert(statistics.end(), begin, begin + channels);
        }
      }
    }
  }
  return statistics;
}

// A table whose lanes are in one chunk.
Sections together(Sections sections) {
  const auto lanes = static_cast<int32_t>(sections[nasfast::kLanes].size()) / 3;
  small_tables::set_chunks(sections, lanes, {});
  sections[nasfast::kSettings][0] = nasfast::kBatch;
  return sections;
}

Sections some_lanes() {
  return together(small_tables::every_lane(two_stages({3, 3, 5}, nasfast::kBatch), 3));
}

const Rates kByLane = [](size_t lane, size_t step) {
  return 0.02 / (1.0 + static_cast<double>(lane)) / (1.0 + static_cast<double>(step));
};

void check_against_cpu(const Sections& sections, const Data& data, const Sgd& sgd) {
  const Network network(together(sections));
  const size_t lanes = network.table.lanes().size(), steps = data.sizes.size();
  const auto options = options_of(data, nasfast::kernels::cpu::Isa::kBaseline,
                                  nasfast::kernels::cpu::Precision::kFp32);
  Training expected(network.table, lanes);
  train(network.table, expected, data, 0, steps, kByLane, sgd, options);
  for (const Precision precision : {Precision::kFp32, Precision::kTf32}) {
    const double tolerance = precision == Precision::kTf32 ? kTf32Tolerance : kTolerance;
    Training own(network.table, lanes);
    train_on_device(network.table, own, data, 0, 1, kByLane, sgd, precision);  // two calls
    train_on_device(network.table, own, data, 1, steps, kByLane, sgd, precision);
    CHECK(apart(own.weights, expected.weights) <= tolerance);
    CHECK(apart(statistics_of(network.table, own.weights),
                statistics_of(network.table, expected.weights)) <=
          (precision == Precision::kTf32 ? kTf32Tolerance : kOfStatistics));
    CHECK(apart(own.loss, expected.loss) <= tolerance);
    CHECK(apart(own.l1, expected.l1) <= tolerance);
    CHECK(apart(own.sum_l1, expected.sum_l1) <= tolerance);
    CHECK(apart(own.sums, expected.sums) <= tolerance);
    // Operands that were not rounded would give the sums of fp32, which are off by 1e-6 at most.
    if (precision == Precision::kTf32) CHECK(apart(own.sums, expected.sums) > kLeastOfTf32);
    if (sgd.momentum > 0) CHECK(apart(own.momentum, expected.momentum) <= tolerance);
    CHECK_EQ(own.diverged_at == expected.diverged_at, true);
    int64_t differ = 0;
    for (size_t i = 0; i < own.correct.size(); ++i) {
      differ += std::abs(own.correct[i] - expected.correct[i]);
    }
    CHECK(differ <= static_cast<int64_t>(own.correct.size()) / 20);
  }
}

// A lane whose loss is no number stops at once, one that a huge rate leads astray later; the others
// go on as if they were alone.
void check_divergence() {
  const Network network(some_lanes());
  const size_t lanes = network.table.lanes().size();
  const auto arena = static_cast<size_t>(network.table.settings().arena_size);
  const Data data(3, 6, 5, {5, 5, 5}, 1);
  const Rates rates = [](size_t lane, size_t) { return lane == 3 ? 1e30 : 0.01; };
  for (const Precision precision : {Precision::kFp32, Precision::kTf32, Precision::kBf16}) {
    Training good(network.table, lanes), own(network.table, lanes);
    train_on_device(network.table, good, data, 0, 3, kSteady, kNesterov, precision);
    for (size_t i = 0; i < arena; ++i) {
      own.weights[arena + i] = std::numeric_limits<float>::quiet_NaN();
    }
    const std::vector<float> before = own.weights;
    train_on_device(
        network.table, own, data, 0, 3,
        [&](size_t lane, size_t step) { return lane == 3 ? rates(lane, step) : 0.05; }, kNesterov,
        precision);
    for (size_t lane = 0; lane < lanes; ++lane) {
      if (lane != 1 && lane != 3) CHECK(own.is_same(lane, good, lane));
    }
    CHECK_EQ(own.diverged_at[1], 0);
    CHECK(own.diverged_at[3] == 1 || own.diverged_at[3] == 2);
    CHECK(std::memcmp(&own.weights[arena], &before[arena], arena * 4) == 0);
    CHECK(std::isnan(own.loss[3]) && std::isnan(own.loss[4]) && std::isnan(own.l1[3]));
    CHECK_EQ(own.correct[4], 0);
  }
}

// A tuner that is bound once more trains other lanes in other memory.
void check_bound_again() {
  const Network network(some_lanes());
  const Data data(3, 6, 5, {4}, 1);
  FineTuner tuner = tuner_of(network.table, 2, data, Precision::kFp32);
  const cuda_runs::DeviceMemory memory(tuner.bytes()), other(tuner.bytes());
  Training first(network.table, 2), second(network.table, 2);
  train_by(tuner, memory, first, data, 0, 1, kSteady, kNesterov);
  train_by(tuner, other, second, data, 0, 1, kSteady, kNesterov);
  for (size_t lane = 0; lane < 2; ++lane) CHECK(second.is_same(lane, first, lane));
}

// The bits do not depend on the order that threads and blocks run in.
void check_orders() {
  const Network network(some_lanes());
  const size_t lanes = network.table.lanes().size();
  const Data data(3, 6, 5, {5, 3}, 1);
  const auto run = [&](emulator::Order order) {
    emulator::set_order(order);
    Training state(network.table, lanes);
    train_on_device(network.table, state, data, 0, 2, kByLane, kNesterov);
    emulator::set_order(emulator::Order::kForward);
    return state;
  };
  const Training expected = run(emulator::Order::kForward);
  for (const auto order : {emulator::Order::kReverse, emulator::Order::kShuffled}) {
    const Training state = run(order);
    for (size_t lane = 0; lane < lanes; ++lane) CHECK(state.is_same(lane, expected, lane));
  }
}

}  // namespace

int main() {
  const Data data(3, 6, 5, {6, 4, 6}, 1);
  check_against_cpu(two_stages({3, 3, 5}, nasfast::kBatch), data, {});
  check_against_cpu(small_tables::every_lane(stages({3, 3, 5}, false), 6), Data(3, 6, 5, {6, 4}, 2),
                    kNesterov);
  check_against_cpu(small_tables::choice_blocks(), data, {0.9, false, 1e-3, 0.5});
  check_against_cpu(small_tables::vertex_cells(), data, {0.9, true, 0, 1.0});
  // More images and channels than a block has threads, and more numbers than a lane's blocks.
  check_against_cpu(small_tables::one_cell(), Data(3, 2, 2, {260, 250}, 3), kNesterov);
  check_divergence();
  check_bound_again();
  check_orders();
  return check::result();
}
