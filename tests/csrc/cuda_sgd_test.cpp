// SPDX-License-Identifier: MIT
// The kernels of SGD, run by the emulator, against straight lines: more lanes, numbers, images and
// channels than the threads that see to them, and lanes that stop.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "emulator.h"
#include "kernel_rows.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/sgd.h"

namespace {

using namespace nasfast::kernels::cuda;
using kernel_rows::Random;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNoFloat = std::numeric_limits<float>::quiet_NaN();
constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

constexpr int32_t kLanes = 33, kImages = 130, kSteps = 3, kStep = 1, kFirstStep = 10;
constexpr int64_t kNumbers = 4500;
// Lanes that do not take the step: one stopped before, of one the loss is no number, of one the
// gradient is not finite.
constexpr size_t kStopped = 3, kLost = 5, kAstray = 7;

struct Options {
  bool has_momenta, has_sums, is_nesterov;
  double momentum, weight_decay, clip;
};

// Everything that a step reads and writes.
struct State {
  std::vector<uint8_t> trained, correct;
  std::vector<float> gradients, weights, momenta, sums, loss;
  std::vector<double> lr, losses, l1, sum_l1;
  std::vector<int64_t> corrects;
  std::vector<int32_t> diverged_at;

  State()
      : momenta(kLanes * kNumbers),
        sums(momenta),
        losses(kLanes * kSteps, 7.0),
        l1(losses),
        sum_l1(losses),
        corrects(kLanes * kSteps, 7),
        diverged_at(kLanes, -1) {
    Random random(1);
    for (int32_t lane = 0; lane < kLanes; ++lane) {
      for (int64_t k = 0; k < kNumbers; ++k) {
        const bool is_trained = k % 5 != 2;
        trained.push_back(is_trained);
        // Of norms from 0.2 to 7.
        const double scale = 0.006 * (lane + 1);
        gradients.push_back(is_trained ? static_cast<float>(random.uniform() * scale) : 0.0f);
        weights.push_back(static_cast<float>(random.uniform()));
      }
      for (int32_t i = 0; i < kImages; ++i) {
        loss.push_back(static_cast<float>(random.uniform() + 2));
        correct.push_back(static_cast<uint8_t>(random.below(2)));
      }
      for (int32_t step = 0; step < kSteps; ++step) lr.push_back(0.1 + random.uniform() * 0.05);
    }
    for (float& number : momenta) number = static_cast<float>(random.uniform());
    for (float& number : sums) number = static_cast<float>(random.uniform());
    diverged_at[kStopped] = 4;
    loss[kLost * kImages + 129] = kNoFloat;
    gradients[kAstray * kNumbers + 4499] = kInfinity;
  }
};

State after_step(const Options& options) {
  State state;
  std::vector<double> partial(kLanes * kSgdParts * 2, kNoNumber);
  std::vector<SgdState> states(kLanes);
  SgdLaunch launch{};
  launch.trained = state.trained.data();
  launch.gradients = state.gradients.data();
  launch.weights = state.weights.data();
  launch.momenta = options.has_momenta ? state.momenta.data() : nullptr;
  launch.gradient_sums = options.has_sums ? state.sums.data() : nullptr;
  launch.numbers = kNumbers;
  launch.lanes = kLanes;
  launch.loss = state.loss.data();
  launch.correct = state.correct.data();
  launch.images = kImages;
  launch.loss_record = state.losses.data();
  launch.correct_record = state.corrects.data();
  launch.gradient_l1 = state.l1.data();
  launch.gradient_sum_l1 = options.has_sums ? state.sum_l1.data() : nullptr;
  launch.lr = state.lr.data();
  launch.steps = kSteps;
  launch.step = kStep;
  launch.first_step = kFirstStep;
  launch.diverged_at = state.diverged_at.data();
  launch.partial = partial.data();
  launch.states = states.data();
  launch.clip = options.clip;
  launch.momentum = static_cast<float>(options.momentum);
  launch.weight_decay = static_cast<float>(options.weight_decay);
  launch.is_nesterov = options.is_nesterov;
  CHECK_EQ(launch_measure(launch, nullptr), cudaSuccess);
  CHECK_EQ(launch_updates(launch, nullptr), cudaSuccess);
  return state;
}

bool is_near(double actual, double expected) {
  if (std::isnan(expected)) return std::isnan(actual);
  return std::abs(actual - expected) <= 1e-6 * std::max(1.0, std::abs(expected));
}

// Numbers that are not near what is expected, of rows of a lane.
template <typename T, typename Of>
int64_t misses(const std::vector<T>& actual, size_t lane, int64_t row, const Of& of) {
  int64_t count = 0;
  for (int64_t k = 0; k < row; ++k) {
    const auto at = static_cast<size_t>(static_cast<int64_t>(lane) * row + k);
    count += !is_near(static_cast<double>(actual[at]), of(at));
  }
  return count;
}

void check_lane(const Options& options, const State& before, const State& state, size_t lane) {
  const auto first = static_cast<int64_t>(lane) * kNumbers;
  double l1 = 0, square = 0, loss = 0, correct = 0;
  for (int64_t k = first; k < first + kNumbers; ++k) {
    const double number = before.gradients[static_cast<size_t>(k)];
    l1 += std::abs(number);
    square += number * number;
  }
  for (size_t i = lane * kImages; i < (lane + 1) * kImages; ++i) {
    loss += before.loss[i] / static_cast<double>(kImages);
    correct += before.correct[i];
  }
  const bool was_active = lane != kStopped;
  const bool is_active = was_active && lane != kLost && lane != kAstray;
  const double norm = std::sqrt(square) + 1e-6;
  const double factor = options.clip > 0 ? std::min(1.0, options.clip / norm) : 1;
  double sum_l1 = 0;
  const auto step_of = [&](size_t at) {
    return before.gradients[at] * factor + options.weight_decay * before.weights[at];
  };
  const auto momentum_of = [&](size_t at) {
    if (!is_active || !options.has_momenta || before.trained[at] == 0) {
      return double{before.momenta[at]};
    }
    return options.momentum * before.momenta[at] + step_of(at);
  };
  const auto weight_of = [&](size_t at) {
    if (!is_active || before.trained[at] == 0) return double{before.weights[at]};
    double step = options.has_momenta ? momentum_of(at) : step_of(at);
    if (options.has_momenta && options.is_nesterov) {
      step = step_of(at) + options.momentum * momentum_of(at);
    }
    return before.weights[at] - before.lr[lane * kSteps + kStep] * step;
  };
  const auto sum_of = [&](size_t at) {
    const bool adds = is_active && options.has_sums && before.trained[at] != 0;
    const double sum = before.sums[at] + double{adds ? before.gradients[at] : 0.0f};
    if (adds) sum_l1 += std::abs(sum);
    return sum;
  };
  CHECK_EQ(misses(state.weights, lane, kNumbers, weight_of), 0);
  CHECK_EQ(misses(state.momenta, lane, kNumbers, momentum_of), 0);
  CHECK_EQ(misses(state.sums, lane, kNumbers, sum_of), 0);
  if (!options.has_sums) sum_l1 = 7;
  // Of other steps nothing is recorded.
  const auto recorded = [&](double number) {
    return [=](size_t at) { return at % kSteps == kStep ? number : 7.0; };
  };
  CHECK_EQ(misses(state.losses, lane, kSteps, recorded(was_active ? loss : kNoNumber)), 0);
  CHECK_EQ(misses(state.corrects, lane, kSteps, recorded(was_active ? correct : 0)), 0);
  CHECK_EQ(misses(state.l1, lane, kSteps, recorded(is_active ? l1 : kNoNumber)), 0);
  const bool has_sum = is_active || !options.has_sums;
  CHECK_EQ(misses(state.sum_l1, lane, kSteps, recorded(has_sum ? sum_l1 : kNoNumber)), 0);
  const int32_t stops_at = was_active ? kFirstStep + kStep : 4;
  CHECK_EQ(state.diverged_at[lane], is_active ? -1 : stops_at);
}

void check_steps() {
  const State before;
  for (const Options& options : std::vector<Options>{{true, true, true, 0.9, 5e-2, 2},
                                                     {true, false, false, 0.8, 0, 0},
                                                     {false, true, false, 0, 1e-1, 0.5}}) {
    const State state = after_step(options);
    for (size_t lane = 0; lane < kLanes; ++lane) check_lane(options, before, state, lane);
    emulator::set_order(emulator::Order::kShuffled);
    const State other = after_step(options);
    emulator::set_order(emulator::Order::kForward);
    CHECK(other.weights == state.weights);
    CHECK_EQ(std::memcmp(other.l1.data(), state.l1.data(), state.l1.size() * sizeof(double)), 0);
  }
}

// Running statistics of three lanes, one of which has stopped; the first with a bias.
void check_statistics() {
  constexpr int32_t kChannels = 150, kDepth = depth_of(kChannels);
  constexpr double kCounts[] = {12, 40, 12}, kMomenta[] = {0.25, 0.125, 0.25};
  Random random(2);
  std::vector<double> statistics;  // [3][depth] of each lane
  std::vector<float> means, variances, bias;
  for (int32_t k = 0; k < 3 * 3 * kDepth; ++k) statistics.push_back(random.uniform() + 1);
  for (int32_t k = 0; k < 3 * kChannels; ++k) {
    means.push_back(static_cast<float>(random.uniform()));
    variances.push_back(static_cast<float>(random.uniform() + 1));
    bias.push_back(static_cast<float>(random.uniform()));
  }
  auto mean = means, variance = variances;
  std::vector<StatisticsRow> rows;
  for (int32_t lane = 0; lane < 3; ++lane) {
    const float* own_bias = lane == 0 ? bias.data() : nullptr;
    rows.push_back({statistics.data() + lane * 3 * kDepth, mean.data() + lane * kChannels,
                    variance.data() + lane * kChannels, own_bias, kChannels, lane, kCounts[lane],
                    kMomenta[lane]});
  }
  const std::vector<SgdState> states = {{1, 1}, {1, 1}, {1, 0}};
  CHECK_EQ(launch_statistics(rows.data(), 3, states.data(), nullptr), cudaSuccess);
  for (size_t lane = 0; lane < 3; ++lane) {
    const double momentum = lane < 2 ? kMomenta[lane] : 0, count = kCounts[lane];
    const double* own = statistics.data() + lane * 3 * kDepth;
    const auto channel_of = [&](size_t at) { return at - lane * kChannels; };
    CHECK_EQ(misses(mean, lane, kChannels,
                    [&](size_t at) {
                      const size_t c = channel_of(at);
                      const double seen = own[c] + (lane == 0 ? bias[c] : 0.0f);
                      return means[at] + momentum * (seen - means[at]);
                    }),
             0);
    CHECK_EQ(misses(variance, lane, kChannels,
                    [&](size_t at) {
                      const double seen = own[2 * kDepth + channel_of(at)] * count / (count - 1);
                      return variances[at] + momentum * (seen - variances[at]);
                    }),
             0);
  }
}

}  // namespace

int main() {
  check_steps();
  check_statistics();
  return check::result();
}
