// SPDX-License-Identifier: MIT
// Gradients of every lane of small tables on the CUDA engine, its kernels run by the emulator,
// against the chain rule in double precision, and what they do not depend on.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runs.h"
#include "engine/cuda/trainer.h"
#include "training_runs.h"

namespace {

using namespace training_runs;
using nasfast::kernels::cuda::Precision;

// As those of the CPU engine (training_gradients_test.cpp).
constexpr double kFp32 = 1e-5, kFp32OfConstants = 5e-4;
// bf16 rounds in other places than the CPU engine does, so single lanes differ in either direction.
constexpr double kTimesCpu = 1.5;
// Operands in tf32 have two bits more than in bf16, and values are not rounded; the rest is for
// medians of a few lanes.
constexpr double kTf32OfBf16 = 0.4;

// Results of all lanes.
struct AllGradients {
  std::vector<float> logits, gradient;  // [lanes, images, classes], [lanes, arena]
  std::vector<float> mixing_gradient;   // of a single lane
};

AllGradients gradients_on_device(const ProgramTable& table, const std::vector<int32_t>& lanes,
                                 const std::vector<float>& arena, const std::vector<float>& mixing,
                                 const Data& data, Precision precision,
                                 const std::vector<float>& logit_gradient = {}) {
  nasfast::cuda::Trainer trainer(table, lanes, nasfast::cuda::Weights::kOwn,
                                 cuda_runs::options_of(data, precision),
                                 static_cast<int32_t>(data.count()));
  const cuda_runs::DeviceMemory memory(trainer.bytes());
  std::vector<float> weights;
  for (size_t k = 0; k < lanes.size(); ++k) {
    weights.insert(weights.end(), arena.begin(), arena.end());
  }
  const auto classes = static_cast<size_t>(table.positions().back().out_channels);
  AllGradients out{
      std::vector<float>(lanes.size() * static_cast<size_t>(data.count()) * classes, 7.0f),
      std::vector<float>(weights.size(), 7.0f), std::vector<float>(mixing.size(), 0.0f)};
  const bool wants_mixing = !mixing.empty() && lanes.size() == 1;
  trainer.bind(memory.get(),
               {weights.data(), out.gradient.data(), mixing.empty() ? nullptr : mixing.data(),
                wants_mixing ? out.mixing_gradient.data() : nullptr},
               nullptr);
  trainer.run({data.images.data(), data.labels.data(), static_cast<int32_t>(data.count()), 0},
              logit_gradient.empty() ? nullptr : logit_gradient.data(),
              {out.logits.data(), nullptr, nullptr, data.count()}, nullptr);
  return out;
}

double length(const std::vector<double>& numbers) {
  return std::sqrt(std::inner_product(numbers.begin(), numbers.end(), numbers.begin(), 0.0));
}

double apart(const float* actual, const std::vector<double>& expected) {
  std::vector<double> difference;
  for (size_t i = 0; i < expected.size(); ++i) difference.push_back(actual[i] - expected[i]);
  return length(difference);
}

std::vector<int32_t> all_lanes(const ProgramTable& table) {
  std::vector<int32_t> lanes(table.lanes().size());
  std::iota(lanes.begin(), lanes.end(), 0);
  return lanes;
}

// Of bf16 on the CPU engine.
double error_on_cpu(const ProgramTable& table, int32_t lane, const std::vector<float>& arena,
                    const std::vector<float>& mixing, const Data& data,
                    const std::vector<float>& logit_gradient, const Exact& exact) {
  const auto options = engine_runs::options_of(data, nasfast::kernels::cpu::Isa::kBaseline,
                                               nasfast::kernels::cpu::Precision::kBf16);
  const Gradients own = gradients_of(table, lane, arena.data(), mixing, data, options,
                                     logit_gradient.empty() ? nullptr : logit_gradient.data());
  return apart(own.gradient.data(), exact.gradient) / length(exact.gradient);
}

double median(std::vector<double> numbers) {
  std::sort(numbers.begin(), numbers.end());
  return numbers[numbers.size() / 2];
}

// Every `stride`-th lane, all of them in one call.
void check_lanes(const Sections& sections, const Data& data, int32_t stride,
                 bool has_constants = false, const std::vector<float>& logit_gradient = {}) {
  const Network network(sections);
  const auto arena = random_arena(network.table), mixing = random_mixing(network.table);
  std::vector<int32_t> lanes;
  for (const int32_t lane : all_lanes(network.table)) {
    if (lane % stride == 0) lanes.push_back(lane);
  }
  const AllGradients wide = gradients_on_device(network.table, lanes, arena, mixing, data,
                                                Precision::kFp32, logit_gradient);
  const AllGradients rounded = gradients_on_device(network.table, lanes, arena, mixing, data,
                                                   Precision::kTf32, logit_gradient);
  const AllGradients narrow = gradients_on_device(network.table, lanes, arena, mixing, data,
                                                  Precision::kBf16, logit_gradient);
  std::vector<double> errors, errors_of_tf32, errors_on_cpu;
  for (size_t k = 0; k < lanes.size(); ++k) {
    const Exact exact(network.table, lanes[k], arena.data(), mixing, data, logit_gradient);
    const auto error_of = [&](const AllGradients& own) {
      return apart(own.gradient.data() + k * arena.size(), exact.gradient) / length(exact.gradient);
    };
    const double error = error_of(wide);
    // Batch norm divides by the deviation of what is nearly constant behind a zero cell.
    const double tolerance = has_constants && lanes[k] / 7 == 6 ? kFp32OfConstants : kFp32;
    if (!(error <= tolerance)) {
      check::fail("lane", lanes[k],
                  std::to_string(data.count()) + " images: error " + check::show(error));
    }
    errors.push_back(error_of(narrow));
    errors_of_tf32.push_back(error_of(rounded));
    CHECK(std::isfinite(errors.back()) && std::isfinite(errors_of_tf32.back()));
    errors_on_cpu.push_back(
        error_on_cpu(network.table, lanes[k], arena, mixing, data, logit_gradient, exact));
  }
  const double own = median(errors), of_tf32 = median(errors_of_tf32),
               on_cpu = median(errors_on_cpu);
  if (!(own <= kTimesCpu * on_cpu)) {
    check::fail("bf16", static_cast<int>(lanes.size()),
                "median error " + check::show(own) + ", on the CPU " + check::show(on_cpu));
  }
  // What is not rounded would be as near as fp32.
  if (!(of_tf32 > kFp32 && of_tf32 <= kTf32OfBf16 * on_cpu)) {
    check::fail("tf32", static_cast<int>(lanes.size()),
                "median error " + check::show(of_tf32) + ", bf16 " + check::show(own));
  }
}

// Gradients of mixing weights.
void check_mixing(const Data& data) {
  const Network network(stages({3, 3, 5}, true));
  const auto arena = random_arena(network.table), mixing = random_mixing(network.table);
  for (const int32_t lane : {8, 16, 24, 32, 40, 11}) {
    const Exact exact(network.table, lane, arena.data(), mixing, data);
    const AllGradients own =
        gradients_on_device(network.table, {lane}, arena, mixing, data, Precision::kFp32);
    const double size = std::max(length(exact.gradient), length(exact.mixing_gradient));
    CHECK(apart(own.gradient.data(), exact.gradient) <= kFp32 * size);
    CHECK(apart(own.mixing_gradient.data(), exact.mixing_gradient) <= kFp32 * size);
  }
}

// Lanes that share a row of weights have the same gradients as with a copy each.
void check_shared(const Data& data) {
  const Network network(two_stages({3, 3, 5}, nasfast::kBatch));
  const auto arena = random_arena(network.table);
  const std::vector<int32_t> lanes = {1, 6, 11};
  const AllGradients expected =
      gradients_on_device(network.table, lanes, arena, {}, data, Precision::kBf16);
  nasfast::cuda::Trainer trainer(network.table, lanes, nasfast::cuda::Weights::kShared,
                                 cuda_runs::options_of(data, Precision::kBf16),
                                 static_cast<int32_t>(data.count()));
  const cuda_runs::DeviceMemory memory(trainer.bytes());
  std::vector<float> gradient(lanes.size() * arena.size(), 7.0f);
  trainer.bind(memory.get(), {arena.data(), gradient.data(), nullptr, nullptr}, nullptr);
  trainer.run({data.images.data(), data.labels.data(), static_cast<int32_t>(data.count()), 0},
              nullptr, {nullptr, nullptr, nullptr, data.count()}, nullptr);
  CHECK(std::memcmp(gradient.data(), expected.gradient.data(), gradient.size() * 4) == 0);
}

void check_one_cell() {
  for (const int32_t height : {1, 2, 5}) {
    for (const int64_t batch : {1, 9}) {
      const Data data(3, height, 4, {batch}, 5);
      Random random(6);
      std::vector<float> seeds(static_cast<size_t>(batch) * 5);
      for (float& seed : seeds) seed = static_cast<float>(random.uniform());
      check_lanes(small_tables::one_cell(), data, 1, false, seeds);
    }
  }
}

// More channels than a block has columns, inputs or outputs, than it has weights of at a time, and
// than threads; windows that reach further than the nearest pixels.
void check_wide() {
  check_lanes(stages({17, 33, 70}, false), Data(17, 3, 4, {5}, 1), 16, true);
  check_lanes(stages({2, 5, 130}, false), Data(2, 4, 4, {3}, 2), 16, true);
  check_lanes(small_tables::choice_blocks({3, 18, 7, 24, 33}), Data(3, 4, 5, {2}, 3), 2);
  check_lanes(small_tables::vertex_cells({3, 20, 36, 70}), Data(3, 4, 4, {2}, 4), 2);
  check_lanes(small_tables::with_kernels(stages({3, 3, 18}, false), 5, 5), Data(3, 7, 9, {4}, 1), 8,
              true);
  check_lanes(small_tables::with_kernels(small_tables::choice_blocks(), 3, 5),
              Data(3, 7, 6, {3}, 2), 3);
  check_lanes(small_tables::many_classes(), Data(3, 2, 3, {3}, 1), 1);
  // Many images a tile, whose windows reach far around them: more than a block has room for.
  check_lanes(small_tables::with_kernels(small_tables::one_cell(), 7, 7), Data(3, 1, 2, {40}, 3),
              1);
  // More tiles than there are parts of a gradient.
  check_lanes(small_tables::one_cell(), Data(3, 18, 18, {9}, 4), 1);
}

// A logit so much larger than the first one that its exponential would be infinite.
void check_large_logit() {
  const Network network(small_tables::one_cell());
  const Data data(3, 2, 3, {4}, 1);
  auto arena = random_arena(network.table);
  const nasfast::Unit& classifier = network.table.units().back();
  std::fill_n(arena.begin() + classifier.weight, 10, 0.0f);
  const auto bias = static_cast<size_t>(classifier.bias);
  arena[bias + 1] = 1000;
  const AllGradients own =
      gradients_on_device(network.table, {0}, arena, {}, data, Precision::kFp32);
  for (size_t k = 0; k < 5; ++k) {
    const auto met = std::count(data.labels.begin(), data.labels.end(), static_cast<int64_t>(k));
    const float share = k == 1 ? 1.0f : 0.0f;
    CHECK_EQ(own.gradient[bias + k], share - static_cast<float>(met) / 4);
  }
}

// Where pixels are equal, the first one has a window's maximum.
void check_ties() {
  Data data(3, 9, 7, {5}, 1);
  for (size_t i = 0; i < data.images.size(); ++i) data.images[i] = data.images[i / 63 * 63];
  check_lanes(stages({3, 3, 5}, false), data, 4, true);
  check_lanes(small_tables::choice_blocks(), data, 2);
  check_lanes(small_tables::vertex_cells(), data, 2);
}

// More rows than a grid has.
void check_many_rows() {
  const std::vector<nasfast::kernels::cuda::WeightGradientRow> rows(65537);
  const int64_t before = emulator::num_launches();
  const nasfast::kernels::cuda::WeightGradientLaunch launch{
      rows.data(), nullptr, nullptr, nullptr, static_cast<int32_t>(rows.size()), 1, 0};
  CHECK_EQ(nasfast::kernels::cuda::launch_weight_gradients(Precision::kFp32, launch, nullptr),
           cudaSuccess);
  CHECK_EQ(emulator::num_launches() - before, 2);
}

// A lane has the same bits alone and beside others, and in whatever order threads run.
void check_invariance(const Sections& sections, const Data& data) {
  const Network network(sections);
  const auto arena = random_arena(network.table);
  const auto lanes = all_lanes(network.table);
  for (const Precision precision : {Precision::kFp32, Precision::kTf32, Precision::kBf16}) {
    const auto with = [&](const std::vector<int32_t>& some, emulator::Order order) {
      emulator::set_order(order);
      AllGradients out = gradients_on_device(network.table, some, arena, {}, data, precision);
      emulator::set_order(emulator::Order::kForward);
      return out;
    };
    const AllGradients all = with(lanes, emulator::Order::kForward);
    for (const auto order : {emulator::Order::kReverse, emulator::Order::kShuffled}) {
      const AllGradients other = with(lanes, order);
      CHECK(std::memcmp(other.gradient.data(), all.gradient.data(), all.gradient.size() * 4) == 0);
      CHECK(std::memcmp(other.logits.data(), all.logits.data(), all.logits.size() * 4) == 0);
    }
    for (size_t k = 0; k < lanes.size(); k += 3) {
      const AllGradients alone = with({lanes[k]}, emulator::Order::kForward);
      CHECK(std::memcmp(alone.gradient.data(), all.gradient.data() + k * arena.size(),
                        arena.size() * 4) == 0);
    }
  }
}

}  // namespace

int main() {
  check_one_cell();
  check_mixing(Data(3, 7, 5, {6}, 1));
  check_shared(Data(3, 7, 5, {6}, 1));
  check_lanes(stages({3, 3, 5}, false), Data(3, 7, 5, {6}, 1), 3, true);
  check_lanes(stages({2, 4, 18}, false), Data(2, 4, 6, {5}, 2), 5, true);
  check_lanes(stages({1, 2, 3}, false), Data(1, 9, 37, {2}, 3), 8);
  check_lanes(stages({3, 3, 5}, true), Data(3, 7, 5, {6}, 1), 5, true);
  check_lanes(small_tables::choice_blocks(), Data(3, 7, 5, {6}, 1), 1);
  check_lanes(small_tables::choice_blocks({2, 5, 3, 1, 7}), Data(2, 18, 20, {2}, 2), 3);
  check_lanes(small_tables::vertex_cells(), Data(3, 7, 5, {6}, 1), 1);
  check_lanes(small_tables::vertex_cells({2, 3, 9, 4}), Data(2, 4, 6, {5}, 2), 1);
  const Data tiles(3, 18, 20, {1}, 4);
  check_invariance(small_tables::every_lane(two_stages({3, 3, 5}, nasfast::kBatch), 3), tiles);
  check_invariance(small_tables::every_lane(small_tables::choice_blocks(), 3), tiles);
  check_wide();
  check_ties();
  check_large_logit();
  check_many_rows();
  return check::result();
}
