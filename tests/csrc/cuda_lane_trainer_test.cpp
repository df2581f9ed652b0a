// SPDX-License-Identifier: MIT
// Groups of lanes in training on the emulated device: the same bits whatever memory there is.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runs.h"
#include "engine/cuda/lane_trainer.h"
#include "training_steps.h"

namespace {

using namespace training_runs;
using cuda_runs::Device;
using cuda_runs::has;
using cuda_runs::kMuch;
using cuda_runs::options_of;
using cuda_runs::refusal;
using nasfast::cuda::Budget;
using nasfast::cuda::FineTuner;
using nasfast::cuda::Options;
using nasfast::kernels::cuda::Precision;

constexpr int32_t kFirstStep = 7;

// A table whose lanes are in one chunk, not in their order.
Sections turned(Sections sections) {
  const auto lanes = static_cast<int32_t>(sections[nasfast::kLanes].size()) / 3;
  small_tables::set_chunks(sections, lanes, {});
  auto& order = sections[nasfast::kLaneOrder];
  std::reverse(order.begin(), order.end());
  sections[nasfast::kSettings][0] = nasfast::kBatch;
  return sections;
}

const Rates kByLane = [](size_t lane, size_t) { return 0.05 / (1.0 + static_cast<double>(lane)); };

Training train_in_groups(const ProgramTable& table, const Data& data, const Options& options,
                         Device& device, const Budget& budget) {
  const size_t lanes = table.lanes().size(), steps = data.sizes.size();
  Training state(table, lanes);
  const auto arena = static_cast<size_t>(table.settings().arena_size);
  state.weights[arena] = std::numeric_limits<float>::quiet_NaN();  // of a lane in the midst
  for (size_t i = 0; i < arena; ++i) state.weights[2 * arena + i] *= 0.5f;
  state.diverged_at[3] = 4;  // in a call before
  state.loss.resize(lanes * steps);
  state.l1.resize(lanes * steps);
  state.sum_l1.resize(lanes * steps);
  state.correct.resize(lanes * steps);
  std::vector<double> lr;
  for (size_t k = 0; k < lanes; ++k) {
    for (size_t s = 0; s < steps; ++s) lr.push_back(kByLane(k, s));
  }
  nasfast::cuda::LaneTrainer trainer(table, 0, options, budget, device.allocator());
  trainer.run(
      {state.weights.data(), state.momentum.data(), state.sums.data(), state.diverged_at.data()},
      data.get(), data.labels.data(), kNesterov,
      {static_cast<int32_t>(steps), lr.data(), state.loss.data(), state.correct.data(),
       state.l1.data(), state.sum_l1.data()},
      kFirstStep, nullptr);
  return state;
}

void check_groups(const Sections& sections, Precision precision) {
  const Network network(turned(sections));
  const Data data(3, 6, 5, {4, 3, 4}, 1);
  const Options options = options_of(data, precision);
  const auto members = network.table.chunk(0);
  const auto bytes_of = [&](size_t first, size_t count) {
    return FineTuner(network.table, members.subspan(first, count), options, 4).bytes();
  };
  const int64_t all = bytes_of(0, members.size());
  int64_t one = 0;  // the largest
  for (size_t lane = 0; lane < members.size(); ++lane) one = std::max(one, bytes_of(lane, 1));
  CHECK(one < all);
  Device whole;
  const Training expected = train_in_groups(network.table, data, options, whole, {kMuch, kMuch});
  CHECK(whole.asked == std::vector{all});
  CHECK_EQ(expected.diverged_at[0], -1);
  CHECK_EQ(expected.diverged_at[1], kFirstStep);
  CHECK_EQ(expected.diverged_at[3], 4);
  const auto check_same = [&](const Training& state) {
    for (size_t lane = 0; lane < members.size(); ++lane) {
      CHECK(state.is_same(lane, expected, lane));
    }
  };
  for (const int64_t budget : {(one + all) / 2, one}) {
    Device device;
    check_same(train_in_groups(network.table, data, options, device, {budget, budget}));
    for (const int64_t asked : device.asked) CHECK(asked <= budget);
  }
  Device lonely;  // a lane may take more than groups do
  check_same(train_in_groups(network.table, data, options, lonely, {1, kMuch}));
  Device smaller{(one + all) / 2, {}, {}};
  check_same(train_in_groups(network.table, data, options, smaller, {kMuch, kMuch}));
  CHECK_EQ(smaller.asked[0], all);
}

// A call of one group is FineTuner, lane by lane of the chunk.
void check_alone() {
  const Network network(turned(small_tables::every_lane(stages({3, 3, 5}, false), 8)));
  const Data data(3, 6, 5, {4, 3}, 1);
  const Options options = options_of(data, Precision::kFp32);
  Device device;
  const Training expected = train_in_groups(network.table, data, options, device, {1, kMuch});
  const size_t lanes = network.table.lanes().size(), row = lanes - 1;  // the last of the chunk
  const auto arena = static_cast<size_t>(network.table.settings().arena_size);
  Training own(network.table, lanes);
  FineTuner tuner(network.table, network.table.chunk(0).subspan(row, 1), options, 4);
  const cuda_runs::DeviceMemory memory(tuner.bytes());
  tuner.bind(memory.get(),
             {&own.weights[row * arena], &own.momentum[row * arena], &own.sums[row * arena],
              &own.diverged_at[row]},
             nullptr);
  std::vector<double> lr(2, kByLane(row, 0)), loss(2), l1(2), sum_l1(2);
  std::vector<int64_t> correct(2);
  int64_t at = 0;
  for (int32_t step = 0; step < 2; ++step) {
    const auto size = static_cast<int32_t>(data.sizes[static_cast<size_t>(step)]);
    tuner.run({data.images.data() + at * 3 * 6 * 5, data.labels.data() + at, size, at}, kNesterov,
              {2, lr.data(), loss.data(), correct.data(), l1.data(), sum_l1.data()}, step, 0,
              nullptr);
    at += size;
  }
  CHECK(Training::same(own.weights, row, expected.weights, row, arena));
  CHECK(Training::same(own.momentum, row, expected.momentum, row, arena));
  CHECK(Training::same(own.sums, row, expected.sums, row, arena));
  CHECK(Training::same(loss, 0, expected.loss, row, 2));
  CHECK(Training::same(correct, 0, expected.correct, row, 2));
  CHECK(Training::same(l1, 0, expected.l1, row, 2));
  CHECK(Training::same(sum_l1, 0, expected.sum_l1, row, 2));
}

// A trainer forgets how many lanes fitted in the call before.
void check_calls() {
  const Network network(
      turned(small_tables::every_lane(two_stages({3, 3, 5}, nasfast::kBatch), 8)));
  const Data data(3, 6, 5, {2}, 1);
  const Options options = options_of(data, Precision::kFp32);
  const auto members = network.table.chunk(0);
  const int64_t all = FineTuner(network.table, members, options, 2).bytes();
  Device device{all - 1, {}, {}};
  nasfast::cuda::LaneTrainer trainer(network.table, 0, options, {kMuch, kMuch}, device.allocator());
  std::vector<double> lr(2, 0.05), loss(2), l1(2), sum_l1(2);
  std::vector<int64_t> correct(2);
  for (int32_t call = 0; call < 2; ++call) {
    Training own(network.table, 2);
    device.asked.clear();
    trainer.run({own.weights.data(), own.momentum.data(), own.sums.data(), own.diverged_at.data()},
                data.get(), data.labels.data(), kNesterov,
                {1, lr.data(), loss.data(), correct.data(), l1.data(), sum_l1.data()}, 0, nullptr);
    CHECK(!device.asked.empty() && device.asked[0] == all);
    device.bytes = kMuch;
  }
}

void check_refusals() {
  const Network network(turned(stages({3, 3, 5}, false)));
  const Data data(3, 6, 5, {3, 2}, 1);
  const Options options = options_of(data, Precision::kFp32);
  const auto refused = [&](const Data& images, Device& device, const Budget& budget) {
    Options own = options;
    own.height = images.height;
    own.width = images.width;
    return refusal([&] { train_in_groups(network.table, images, own, device, budget); });
  };
  Device tiny{1000, {}, {}}, device;
  const std::string none = refused(data, tiny, {kMuch, kMuch});
  CHECK(has(none, "out of memory: lane "));
  CHECK(has(none, " bytes for minibatches of 3 images of 6x5"));
  const std::string little = refused(data, device, {1000, 1000});
  CHECK(has(little, "memory: lane ") && has(little, "got 1000"));
  CHECK(device.asked.empty());
  CHECK(has(refused(Data(3, 6, 5, {}, 1), device, {kMuch, kMuch}),
            "sizes: wanted at least one minibatch"));
  // Sides of one element after two reductions.
  CHECK(has(refused(Data(3, 1, 1, {2, 1}, 1), device, {kMuch, kMuch}),
            "images: running statistics need more than one element a channel, got 1x1x1"));
}

}  // namespace

int main() {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    check_groups(small_tables::every_lane(two_stages({3, 3, 5}, nasfast::kBatch), 3), precision);
  }
  check_alone();
  check_calls();
  check_refusals();
  return check::result();
}
