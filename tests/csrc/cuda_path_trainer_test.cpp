// SPDX-License-Identifier: MIT
// SGD of one row of weights by paths, and gradients of a lane, on the CUDA engine, its kernels run
// by the emulator: against the CPU engine, and what they do not depend on.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda_runs.h"
#include "engine/cuda/lane_gradients.h"
#include "engine/cuda/path_trainer.h"
#include "training_steps.h"

namespace {

using namespace training_runs;
using cuda_runs::Device;
using cuda_runs::has;
using cuda_runs::kMuch;
using cuda_runs::refusal;
using nasfast::cuda::Budget;
using nasfast::cuda::PathTrainer;
using nasfast::kernels::cuda::Precision;

// Of float32 over a few steps, where batch norm magnifies rounding.
constexpr double kTolerance = 2e-3;
constexpr double kRate = 0.02;

// What is left of a call.
struct Trained {
  std::vector<float> weights, momenta;
  std::vector<double> loss;
  std::vector<int64_t> correct;
  int64_t taken = 0;

  Trained(std::vector<float> arena, size_t records)
      : weights(std::move(arena)), momenta(weights.size()), loss(records, 7), correct(records, 7) {}

  bool operator==(const Trained& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(weights, other.weights) && same(momenta, other.momenta) && same(loss, other.loss) &&
           same(correct, other.correct) && taken == other.taken;
  }
};

struct Call {
  std::vector<int64_t> lanes;
  int32_t paths;
  Sgd sgd;
};

Trained train_on_device(const ProgramTable& table, const std::vector<float>& arena,
                        const Call& call, const Data& data, Device& device,
                        Precision precision = Precision::kFp32,
                        const Budget& budget = {kMuch, kMuch}) {
  Trained out(arena, call.lanes.size());
  PathTrainer trainer(table, call.paths, static_cast<int32_t>(data.sizes.size()) + 1,
                      cuda_runs::options_of(data, precision), budget, device.allocator());
  const cuda_runs::DeviceMemory kept(trainer.bytes());
  out.taken = trainer.run(kept.get(),
                          {out.weights.data(), call.sgd.momentum > 0 ? out.momenta.data() : nullptr,
                           out.loss.data(), out.correct.data()},
                          call.lanes, data.get(), data.labels.data(), kRate, call.sgd, nullptr);
  return out;
}

Trained train_on_cpu(const ProgramTable& table, const std::vector<float>& arena, const Call& call,
                     const Data& data) {
  Trained out(arena, call.lanes.size());
  std::vector<double> l1(data.sizes.size());
  out.taken = nasfast::train_paths(
      table, call.lanes, call.paths,
      {out.weights.data(), call.sgd.momentum > 0 ? out.momenta.data() : nullptr, nullptr},
      data.get(), data.labels.data(), kRate, call.sgd,
      options_of(data, nasfast::kernels::cpu::Isa::kBaseline,
                 nasfast::kernels::cpu::Precision::kFp32),
      {out.loss.data(), out.correct.data(), l1.data(), nullptr});
  return out;
}

template <typename T>
double apart(const std::vector<T>& actual, const std::vector<T>& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double a = actual[i], b = expected[i];
    difference += (a - b) * (a - b);
    size += b * b;
  }
  return std::sqrt(difference / size);
}

// How far weights have moved is what is compared, not where they are.
std::vector<float> moved(const std::vector<float>& weights, const std::vector<float>& arena) {
  std::vector<float> by(weights);
  for (size_t i = 0; i < by.size(); ++i) by[i] -= arena[i];
  return by;
}

void check_against_cpu(const Sections& sections, const Data& data, const Call& call) {
  const Network network(sections);
  const auto arena = random_arena(network.table);
  const Trained expected = train_on_cpu(network.table, arena, call, data);
  Device device;
  const Trained own = train_on_device(network.table, arena, call, data, device);
  CHECK_EQ(own.taken, expected.taken);
  CHECK(apart(moved(own.weights, arena), moved(expected.weights, arena)) <= kTolerance);
  CHECK(apart(own.loss, expected.loss) <= kTolerance);
  if (call.sgd.momentum > 0) CHECK(apart(own.momenta, expected.momenta) <= kTolerance);
  // What no path uses stays, to the bit; so do the running statistics of such batch norms.
  for (size_t i = 0; i < arena.size(); ++i) {
    if (std::memcmp(&expected.weights[i], &arena[i], 4) == 0) {
      CHECK(is_near(own.weights[i], arena[i], 1e-6));
    }
  }
  int64_t differ = 0;
  for (size_t i = 0; i < own.correct.size(); ++i) {
    differ += std::abs(own.correct[i] - expected.correct[i]);
  }
  CHECK(differ <= static_cast<int64_t>(own.correct.size()) / 5);
}

// The bits do not depend on how many paths fit side by side, nor on the order that threads run in.
void check_groups() {
  const Network network(stages({3, 3, 5}, false));
  const auto arena = random_arena(network.table);
  const Data data(3, 6, 5, {5, 3}, 1);
  const Call call{{8, 24, 24, 1, 8, 16}, 3, kNesterov};
  for (const Precision precision : {Precision::kFp32, Precision::kTf32, Precision::kBf16}) {
    Device whole;
    const Trained expected = train_on_device(network.table, arena, call, data, whole, precision);
    CHECK_EQ(expected.taken, 2);
    Device lonely;
    CHECK(train_on_device(network.table, arena, call, data, lonely, precision, {1, kMuch}) ==
          expected);
    const int64_t most = *std::max_element(whole.asked.begin(), whole.asked.end());
    const int64_t least = *std::max_element(lonely.asked.begin(), lonely.asked.end());
    CHECK(least < most);
    Device smaller{(least + most) / 2, {}, {}};
    CHECK(train_on_device(network.table, arena, call, data, smaller, precision) == expected);
    for (const auto order : {emulator::Order::kReverse, emulator::Order::kShuffled}) {
      emulator::set_order(order);
      Device device;
      CHECK(train_on_device(network.table, arena, call, data, device, precision) == expected);
    }
    emulator::set_order(emulator::Order::kForward);
  }
}

// Two calls are as one, and one path a step is a lane of its own.
void check_calls() {
  const Network network(stages({3, 3, 5}, false));
  const auto arena = random_arena(network.table);
  const Data data(3, 6, 5, {5, 3, 5}, 1);
  Device device;
  const Trained expected = train_on_device(network.table, arena, {{8, 24, 8}, 1, {}}, data, device);
  const Trained first =
      train_on_device(network.table, arena, {{8}, 1, {}}, part_of(data, 0, 1), device);
  const Trained second =
      train_on_device(network.table, first.weights, {{24, 8}, 1, {}}, part_of(data, 1, 3), device);
  CHECK(second.weights == expected.weights);
  CHECK(second.loss[1] == expected.loss[2]);
}

// A step that diverges, on whichever path, leaves weights, momenta and running statistics as they
// were before it; nothing is known of the paths behind, and no later step is taken.
void check_divergence() {
  const Network network(stages({3, 3, 5}, false));
  const Data data(3, 6, 5, {5, 4, 5}, 2);
  auto arena = random_arena(network.table);
  // The conv3x3 of the first cell, which lane 16 has and lane 8 has not.
  arena[static_cast<size_t>(network.table.units()[3].weight)] =
      std::numeric_limits<float>::quiet_NaN();
  const Call call{{8, 8, 8, 8, 16, 8, 8, 8, 8}, 3, kNesterov};
  Device whole;
  const Trained fine =
      train_on_device(network.table, arena, {{8, 8, 8}, 3, kNesterov}, part_of(data, 0, 1), whole);
  CHECK_EQ(fine.taken, 1);
  for (const Budget& budget : {Budget{kMuch, kMuch}, Budget{1, kMuch}}) {
    Device device;
    const Trained sick =
        train_on_device(network.table, arena, call, data, device, Precision::kFp32, budget);
    CHECK_EQ(sick.taken, 1);
    CHECK(std::memcmp(sick.weights.data(), fine.weights.data(), arena.size() * 4) == 0);
    CHECK(std::memcmp(sick.momenta.data(), fine.momenta.data(), arena.size() * 4) == 0);
    CHECK(std::isfinite(sick.loss[3]) && !std::isfinite(sick.loss[4]));
    CHECK(std::isnan(sick.loss[5]) && sick.correct[5] == 0);
    CHECK(std::isnan(sick.loss[6]) && std::isnan(sick.loss[8]) && sick.correct[8] == 0);
  }
  // A gradient that is not finite, of losses that are.
  auto wild = random_arena(network.table);
  for (const auto& unit : network.table.units()) {
    if (unit.gamma >= 0) wild[static_cast<size_t>(unit.gamma)] = 1e38f;
  }
  Device device;
  const Trained lost =
      train_on_device(network.table, wild, {{8, 8, 8}, 3, {}}, part_of(data, 0, 1), device);
  CHECK_EQ(lost.taken, 0);
  CHECK(std::memcmp(lost.weights.data(), wild.data(), wild.size() * 4) == 0);
}

void check_refusals() {
  const Network network(stages({3, 3, 5}, false));
  const auto arena = random_arena(network.table);
  const Data data(3, 6, 5, {3, 2}, 1);
  const auto refused = [&](const Call& call, Device& device, const Budget& budget) {
    return refusal([&] {
      train_on_device(network.table, arena, call, data, device, Precision::kFp32, budget);
    });
  };
  Device device, tiny{1000, {}, {}};
  const Budget much{kMuch, kMuch};
  CHECK(has(refused({{0, 1, 2}, 2, {}}, device, much), "lanes: wanted 2 minibatches times paths"));
  CHECK(has(refused({{0, 49}, 1, {}}, device, much), "lanes: wanted 0..48, got 49"));
  CHECK(has(refused({{0, -1}, 1, {}}, device, much), "lanes: wanted 0..48, got -1"));
  CHECK(has(refused({{}, 0, {}}, device, much), "paths: wanted at least 1, got 0"));
  CHECK(device.asked.empty());
  CHECK(has(refused({{8, 8}, 1, {}}, tiny, much), "out of memory: lane 8 needs "));
  CHECK(has(refused({{8, 8}, 1, {}}, device, {1000, 1000}), "memory: lane 8 needs "));
}

// Results of a lane on the device, as Gradients of the CPU.
struct OnDevice {
  Gradients gradients;
  std::vector<float> running;

  OnDevice(const ProgramTable& table, int32_t lane, const std::vector<float>& arena,
           const std::vector<float>& mixing, const Data& data, bool has_labels,
           const std::vector<float>& logit_gradient)
      : running(arena) {
    const auto classes = static_cast<size_t>(table.positions().back().out_channels);
    gradients.logits.assign(static_cast<size_t>(data.count()) * classes, 7.0f);
    gradients.gradient.assign(arena.size(), 7.0f);
    gradients.mixing_gradient.assign(mixing.size(), 7.0f);
    Device device;
    nasfast::cuda::lane_gradients(
        table, lane, cuda_runs::options_of(data, Precision::kFp32), {kMuch, kMuch},
        device.allocator(),
        {arena.data(), mixing.empty() ? nullptr : mixing.data(),
         logit_gradient.empty() ? nullptr : logit_gradient.data()},
        {data.images.data(), has_labels ? data.labels.data() : nullptr,
         static_cast<int32_t>(data.count()), 0},
        {gradients.logits.data(), gradients.gradient.data(),
         mixing.empty() ? nullptr : gradients.mixing_gradient.data(), running.data()},
        nullptr);
  }
};

// Gradients of losses and of logits, mixing weights and running statistics; or logits alone.
void check_gradients(bool is_mixed) {
  const Network network(stages({3, 3, 5}, is_mixed));
  const ProgramTable& table = network.table;
  const auto arena = random_arena(table);
  const auto mixing = is_mixed ? random_mixing(table) : std::vector<float>{};
  const Data data(3, 6, 5, {6}, 3);
  const auto options = options_of(data, nasfast::kernels::cpu::Isa::kBaseline,
                                  nasfast::kernels::cpu::Precision::kFp32);
  const auto classes = static_cast<size_t>(table.positions().back().out_channels);
  Random random(4);
  std::vector<float> seeds(static_cast<size_t>(data.count()) * classes);
  for (float& seed : seeds) seed = static_cast<float>(random.uniform());
  for (const int32_t lane : {8, 24, 32}) {
    for (const bool has_labels : {true, false}) {
      const Gradients expected = gradients_of(table, lane, arena.data(), mixing, data, options,
                                              has_labels ? nullptr : seeds.data());
      std::vector<float> running(arena);
      std::vector<float> logits(seeds.size());
      nasfast::program_gradients(table, lane, arena.data(), data.get(), nullptr, nullptr,
                                 is_mixed ? mixing.data() : nullptr, options,
                                 {logits.data(), nullptr, nullptr, running.data()});
      // Labels come first where both are given.
      const OnDevice own(table, lane, arena, mixing, data, has_labels, seeds);
      CHECK(apart(own.gradients.logits, expected.logits) <= 1e-5);
      CHECK(apart(own.gradients.gradient, expected.gradient) <= 1e-4);
      if (is_mixed) {
        CHECK(apart(own.gradients.mixing_gradient, expected.mixing_gradient) <= 1e-4);
      }
      CHECK(running != arena);
      CHECK(apart(moved(own.running, arena), moved(running, arena)) <= 1e-5);
    }
    const OnDevice forward(table, lane, arena, mixing, data, false, {});
    const OnDevice back(table, lane, arena, mixing, data, true, {});
    CHECK(forward.gradients.logits == back.gradients.logits);
    CHECK(forward.running == back.running);
    const auto is_left = [](float number) { return number == 7.0f; };
    const auto& left = forward.gradients;
    CHECK(std::all_of(left.gradient.begin(), left.gradient.end(), is_left));
    CHECK(std::all_of(left.mixing_gradient.begin(), left.mixing_gradient.end(), is_left));
  }
}

}  // namespace

int main() {
  const Data data(3, 6, 5, {6, 4, 6}, 1);
  check_against_cpu(stages({3, 3, 5}, false), data, {{8, 24, 32}, 1, {}});
  check_against_cpu(stages({3, 3, 5}, false), data, {{8, 24, 24, 1, 30, 8}, 2, kNesterov});
  check_against_cpu(small_tables::choice_blocks(), Data(3, 6, 5, {6, 4}, 2),
                    {{1, 3, 1, 4, 8, 2}, 3, {0.9, false, 1e-3, 0.5}});
  check_against_cpu(small_tables::vertex_cells(), Data(3, 6, 5, {6, 4}, 2),
                    {{0, 1, 3, 2}, 2, {0.9, true, 0, 1.0}});
  check_groups();
  check_calls();
  check_divergence();
  check_refusals();
  check_gradients(false);
  check_gradients(true);
  return check::result();
}
