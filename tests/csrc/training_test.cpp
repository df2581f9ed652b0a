// SPDX-License-Identifier: MIT
// SGD steps of lanes and of paths on the CPU engine: what a step does, in double precision, and
// what it leaves alone.
#include <unistd.h>

#include <functional>
#include <limits>
#include <string>

#include "engine/lane_step.h"
#include "training_runs.h"

namespace {

using namespace training_runs;
using nasfast::Sgd;
using nasfast::kernels::cpu::Isa, nasfast::kernels::cpu::Precision;

// Ones that train something in every position, and one of zeros.
const std::vector<int32_t> kLanes = {8, 16, 24, 32, 30, 17, 48};

// A table of some lanes in one chunk, each with a row of weights of its own.
Sections chosen(const std::vector<int32_t>& lanes, int32_t alignment = nasfast::kArenaAlignment) {
  auto sections = stages({3, 3, 5}, false, alignment);
  sections[nasfast::kLanes].clear();
  sections[nasfast::kLaneOrder].clear();
  for (size_t k = 0; k < lanes.size(); ++k) {
    sections[nasfast::kLanes].insert(sections[nasfast::kLanes].end(), {lanes[k], 0, 0});
    sections[nasfast::kLaneOrder].push_back(static_cast<int32_t>(k));
  }
  sections[nasfast::kChunkBegin] = {0, static_cast<int32_t>(lanes.size())};
  sections[nasfast::kSharedBegin] = {0, 0};
  return sections;
}

// Where lanes stand, and what their steps left behind.
struct Training {
  std::vector<float> weights, momentum, sums;  // [lanes, arena_size]
  std::vector<int32_t> diverged_at;
  std::vector<double> loss, l1, sum_l1;  // [lanes, steps] of all calls
  std::vector<int64_t> correct;

  Training(const ProgramTable& table, size_t lanes)
      : momentum(lanes * static_cast<size_t>(table.settings().arena_size)),
        sums(momentum),
        diverged_at(lanes, -1) {
    const auto arena = random_arena(table);
    for (size_t k = 0; k < lanes; ++k) weights.insert(weights.end(), arena.begin(), arena.end());
  }

  template <typename T>
  static bool same(const std::vector<T>& a, size_t mine, const std::vector<T>& b, size_t theirs,
                   size_t row) {
    return std::memcmp(&a[mine * row], &b[theirs * row], row * sizeof(T)) == 0;
  }
  // Whether lane `mine` has the bits of another's lane `theirs`.
  bool is_same(size_t mine, const Training& other, size_t theirs) const {
    const size_t row = weights.size() / diverged_at.size(),
                 steps = loss.size() / diverged_at.size();
    return same(weights, mine, other.weights, theirs, row) &&
           same(momentum, mine, other.momentum, theirs, row) &&
           same(sums, mine, other.sums, theirs, row) &&
           same(loss, mine, other.loss, theirs, steps) && same(l1, mine, other.l1, theirs, steps) &&
           same(sum_l1, mine, other.sum_l1, theirs, steps) &&
           same(correct, mine, other.correct, theirs, steps) &&
           diverged_at[mine] == other.diverged_at[theirs];
  }
};

// The minibatches [first, end) of some data.
Data part_of(const Data& data, size_t first, size_t end) {
  Data part(data.channels, data.height, data.width, {}, 1);
  const int64_t image = int64_t{data.channels} * data.height * data.width;
  int64_t at = 0;
  for (size_t s = 0; s < end; at += data.sizes[s++]) {
    if (s < first) continue;
    part.sizes.push_back(data.sizes[s]);
    const auto images = data.images.begin() + at * image;
    part.images.insert(part.images.end(), images, images + data.sizes[s] * image);
    part.labels.insert(part.labels.end(), data.labels.begin() + at,
                       data.labels.begin() + at + data.sizes[s]);
  }
  return part;
}

// Appends columns [lanes, more] to [lanes, before].
template <typename T>
void append(std::vector<T>& to, const std::vector<T>& columns, size_t lanes) {
  std::vector<T> all;
  for (size_t k = 0; k < lanes; ++k) {
    for (const auto* from : {static_cast<const std::vector<T>*>(&to), &columns}) {
      const auto width = static_cast<int64_t>(from->size() / lanes);
      const auto row = from->begin() + static_cast<int64_t>(k) * width;
      all.insert(all.end(), row, row + width);
    }
  }
  to = std::move(all);
}

using Rates = std::function<double(size_t lane, size_t step)>;

// Trains the only chunk on minibatches [first, end).
void train(const ProgramTable& table, Training& state, const Data& data, size_t first, size_t end,
           const Rates& rates, const Sgd& sgd, RunOptions options) {
  const Data part = part_of(data, first, end);
  const size_t lanes = state.diverged_at.size(), steps = end - first;
  std::vector<double> lr, loss(lanes * steps), l1(loss), sum_l1(loss);
  std::vector<int64_t> correct(lanes * steps);
  for (size_t k = 0; k < lanes; ++k) {
    for (size_t s = first; s < end; ++s) lr.push_back(rates(k, s));
  }
  nasfast::train_lanes(
      table, 0,
      {state.weights.data(), sgd.momentum > 0 ? state.momentum.data() : nullptr, state.sums.data()},
      part.get(), part.labels.data(), lr.data(), sgd, options, static_cast<int32_t>(first),
      state.diverged_at.data(), {loss.data(), correct.data(), l1.data(), sum_l1.data()});
  append(state.loss, loss, lanes);
  append(state.l1, l1, lanes);
  append(state.sum_l1, sum_l1, lanes);
  append(state.correct, correct, lanes);
}

const Rates kSteady = [](size_t, size_t) { return 0.05; };
const Sgd kNesterov = {0.9, true, 5e-4, 0};

// In every setting, one call by one thread.
Training trained(const ProgramTable& table, size_t lanes, const Data& data,
                 const RunOptions& options, const Rates& rates = kSteady,
                 const Sgd& sgd = kNesterov) {
  Training state(table, lanes);
  train(table, state, data, 0, data.sizes.size(), rates, sgd, options);
  return state;
}

// Calls of some minibatches, threads by lane and by block, other lanes beside it: the same bits.
void check_invariance() {
  const Data data(3, 6, 5, {18, 5, 18, 33}, 1);
  const Network together(chosen(kLanes));
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = [&](int32_t threads) { return options_of(data, isa, precision, threads); };
    const size_t lanes = kLanes.size();
    const Training whole = trained(together.table, lanes, data, options(1));
    for (const int32_t threads : {2, 8}) {  // 8: more than there are lanes
      Training other(together.table, lanes);
      train(together.table, other, data, 0, 1, kSteady, kNesterov, options(threads));
      train(together.table, other, data, 1, 4, kSteady, kNesterov, options(threads));
      for (size_t k = 0; k < lanes; ++k) CHECK(other.is_same(k, whole, k));
    }
    for (size_t k = 0; k < lanes; ++k) {
      const Network alone(chosen({kLanes[k]}));
      CHECK(trained(alone.table, 1, data, options(k % 3 + 1)).is_same(0, whole, k));
    }
  });
}

// A step against a few lines of double arithmetic on the engine's own gradients.
void check_steps(const Sgd& sgd) {
  const Data data(3, 6, 5, {18, 7, 16}, 2);
  const std::vector<int32_t> lanes = {24, 32};
  const Network network(chosen(lanes));
  const auto size = static_cast<size_t>(network.table.settings().arena_size);
  const auto options =
      options_of(data, nasfast::kernels::cpu::supported_isas().back(), Precision::kFp32);
  Training state(network.table, lanes.size());
  const Rates rates = [](size_t lane, size_t step) {
    return 0.1 + 0.05 * static_cast<double>(lane) + 0.01 * static_cast<double>(step);
  };
  for (size_t s = 0; s < data.sizes.size(); ++s) {
    const Training before = state;
    train(network.table, state, data, s, s + 1, rates, sgd, options);
    const Data batch = part_of(data, s, s + 1);
    for (size_t k = 0; k < lanes.size(); ++k) {
      const float* old = &before.weights[k * size];
      const auto gradient =
          gradients_of(network.table, static_cast<int32_t>(k), old, {}, batch, options).gradient;
      const Exact exact(network.table, static_cast<int32_t>(k), old, {}, batch);
      const size_t at = k * (s + 1) + s;
      CHECK(std::abs(state.loss[at] - exact.loss) <= 1e-5 * std::max(1.0, exact.loss));
      double square = 0, l1 = 0, sum_l1 = 0;
      for (size_t i = 0; i < size; ++i) {
        square += double{gradient[i]} * gradient[i];
        l1 += std::abs(double{gradient[i]});
        sum_l1 += std::abs(double{before.sums[k * size + i]} + gradient[i]);
      }
      CHECK(std::abs(state.l1[at] - l1) <= 1e-9 * l1);
      CHECK(std::abs(state.sum_l1[at] - sum_l1) <= 1e-6 * sum_l1);
      const double norm = std::sqrt(square);
      const double factor = sgd.clip > 0 ? std::min(1.0, sgd.clip / (norm + 1e-6)) : 1.0;
      const nasfast::TrainingNetwork trained(network.table, network.table.lanes()[k].network);
      for (const auto [offset, count] : trained.trained) {
        for (auto i = static_cast<size_t>(offset); i < static_cast<size_t>(offset + count); ++i) {
          double step = gradient[i] * factor + sgd.weight_decay * old[i];
          if (sgd.momentum > 0) {
            const double kept = sgd.momentum * before.momentum[k * size + i];
            const double momentum = kept + step, room = 1e-6 * (std::abs(kept) + std::abs(step));
            CHECK(is_near(state.momentum[k * size + i], momentum, room + 1e-9));
            step = sgd.nesterov ? step + sgd.momentum * momentum : momentum;
          }
          const double wanted = old[i] - rates(k, s) * step;
          CHECK(is_near(state.weights[k * size + i], wanted, 1e-6 * (std::abs(wanted) + 1e-2)));
        }
      }
    }
  }
}

// A lane with an enormous rate stops; the others do not notice.
void check_divergence() {
  const Data data(3, 6, 5, {18, 7, 16, 9}, 3);
  const Network network(chosen({8, 24, 30}));
  const size_t lanes = 3, sick = 1;
  const auto size = static_cast<size_t>(network.table.settings().arena_size);
  const Rates rates = [&](size_t lane, size_t step) {
    return lane == sick && step == 1 ? 1e37 : 0.05;
  };
  for_every_setting([&](Isa isa, Precision precision) {
    for (const int32_t threads : {2, 4}) {  // by lane and by block
      const auto options = options_of(data, isa, precision, threads);
      const Training healthy = trained(network.table, lanes, data, options);
      Training state(network.table, lanes), until(network.table, lanes);
      train(network.table, until, data, 0, 2, rates, kNesterov, options);
      train(network.table, state, data, 0, 1, rates, kNesterov, options);
      train(network.table, state, data, 1, 3, rates, kNesterov, options);
      train(network.table, state, data, 3, 4, rates, kNesterov, options);
      for (size_t k = 0; k < lanes; ++k) CHECK(k == sick || state.is_same(k, healthy, k));
      CHECK_EQ(state.diverged_at[sick], 2);
      CHECK(Training::same(state.weights, sick, until.weights, sick, size));
      CHECK(Training::same(state.momentum, sick, until.momentum, sick, size));
      const auto at = sick * 4;
      CHECK(std::isfinite(state.loss[at]) && std::isfinite(state.loss[at + 1]));
      CHECK(!std::isfinite(state.loss[at + 2]));
      CHECK(std::isnan(state.loss[at + 3]));
      CHECK(std::isnan(state.l1[at + 2]) && std::isnan(state.sum_l1[at + 3]));
      CHECK_EQ(state.correct[at + 3], 0);
    }
  });
}

// Nothing of an operation that a lane does not use is read or written: weights, momentum, sums.
void check_untouched() {
  const auto page =
      static_cast<int32_t>(static_cast<size_t>(sysconf(_SC_PAGESIZE)) / sizeof(float));
  const Data data(3, 4, 4, {3, 2}, 4);
  for (const int32_t lane : kLanes) {
    const Network network(chosen({lane}, page));
    const ProgramTable& table = network.table;
    const int32_t size = table.settings().arena_size;
    const PagedArena weights(size), momentum(size), sums(size);
    fill_arena(table, weights.get());
    const auto used = units_used(table, 0);
    CHECK(used.size() < table.units().size());
    for (const PagedArena* arena : {&weights, &momentum, &sums}) {
      arena->protect(0, size, PROT_NONE);
      for (const int32_t unit : used) {
        const auto& row = table.units()[static_cast<size_t>(unit)];
        for (const int32_t offset :
             {row.weight, row.bias, row.gamma, row.beta, row.mean, row.variance}) {
          const bool is_statistic = offset == row.mean || offset == row.variance;
          if (offset < 0 || (is_statistic && arena != &weights)) continue;
          arena->protect(offset, offset + page, PROT_READ | PROT_WRITE);
        }
      }
    }
    for_every_setting([&](Isa isa, Precision precision) {
      std::vector<double> loss(2), l1(2), sum_l1(2);
      const std::vector<double> lr = {0.01, 0.01};
      std::vector<int64_t> correct(2);
      int32_t diverged_at = -1;
      nasfast::train_lanes(table, 0, {weights.get(), momentum.get(), sums.get()}, data.get(),
                           data.labels.data(), lr.data(), kNesterov,
                           options_of(data, isa, precision), 0, &diverged_at,
                           {loss.data(), correct.data(), l1.data(), sum_l1.data()});
      CHECK_EQ(diverged_at, -1);
    });
  }
}

// Paths on one row of weights.
struct Paths {
  std::vector<float> weights, momentum;
  std::vector<double> loss;
  std::vector<int64_t> correct;
  int64_t taken = 0;
};

Paths train_paths(const ProgramTable& table, std::vector<float> weights,
                  const std::vector<int64_t>& lanes, int64_t paths, const Data& data,
                  const Sgd& sgd, const RunOptions& options) {
  Paths result{std::move(weights),
               {},
               std::vector<double>(lanes.size(), 7.0),
               std::vector<int64_t>(lanes.size(), 7)};
  result.momentum.resize(result.weights.size());
  std::vector<double> l1(data.sizes.size());
  result.taken = nasfast::train_paths(
      table, lanes, paths,
      {result.weights.data(), sgd.momentum > 0 ? result.momentum.data() : nullptr, nullptr},
      data.get(), data.labels.data(), 0.05, sgd, options,
      {result.loss.data(), result.correct.data(), l1.data(), nullptr});
  return result;
}

void check_paths() {
  const Data data(3, 6, 5, {18, 5, 33}, 5);
  const Network network(chosen(kLanes)), alone(chosen({kLanes[3]}));
  const auto size = static_cast<size_t>(network.table.settings().arena_size);
  const auto arena = random_arena(network.table);
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = [&](int32_t threads) { return options_of(data, isa, precision, threads); };
    // One path a step, the same one: a lane.
    const Training lane = trained(alone.table, 1, data, options(1));
    const Paths one = train_paths(network.table, arena, {3, 3, 3}, 1, data, kNesterov, options(2));
    CHECK_EQ(one.taken, 3);
    CHECK(one.weights == lane.weights && one.momentum == lane.momentum);
    CHECK(one.loss == lane.loss && one.correct == lane.correct);
    // Several, of which one comes twice: the same for any number of threads.
    const std::vector<int64_t> paths = {0, 3, 3, 1, 6, 2, 4, 5, 0};
    const Paths many = train_paths(network.table, arena, paths, 3, data, kNesterov, options(1));
    for (const int32_t threads : {2, 3}) {
      const Paths other =
          train_paths(network.table, arena, paths, 3, data, kNesterov, options(threads));
      CHECK(other.weights == many.weights && other.momentum == many.momentum);
      CHECK(other.loss == many.loss && other.correct == many.correct);
    }
    // Their gradients are added.
    const Data first = part_of(data, 0, 1);
    const Paths plain = train_paths(network.table, arena, {0, 3, 3}, 3, first, {}, options(1));
    std::vector<double> gradient(size);
    for (const int32_t k : {0, 3, 3}) {
      const auto own = gradients_of(network.table, k, arena.data(), {}, first, options(1)).gradient;
      for (size_t i = 0; i < size; ++i) gradient[i] += own[i];
    }
    for (const auto& unit : network.table.units()) {
      for (const int32_t offset : {unit.weight, unit.gamma, unit.beta, unit.bias}) {
        if (offset < 0) continue;
        const auto i = static_cast<size_t>(offset);
        CHECK(is_near(plain.weights[i], arena[i] - 0.05 * gradient[i], 1e-6));
      }
    }
  });
}

// A step that diverges on a later path leaves weights, momentum and running statistics as they were
// before it, also where two paths moved the same ones.
void check_paths_that_diverge() {
  const Data data(3, 6, 5, {18, 5}, 6);
  const Network network(chosen(kLanes));
  const auto arena = random_arena(network.table);
  // Lane 0 is conv1x1 twice; lane 1 has conv3x3 of the first cell too: unit 3.
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = options_of(data, isa, precision, 2);
    auto broken = arena;
    broken[static_cast<size_t>(network.table.units()[3].weight)] =
        std::numeric_limits<float>::quiet_NaN();
    const Paths fine =
        train_paths(network.table, broken, {0, 0, 0}, 3, part_of(data, 0, 1), kNesterov, options);
    CHECK_EQ(fine.taken, 1);
    const Paths sick =
        train_paths(network.table, broken, {0, 0, 0, 0, 0, 1}, 3, data, kNesterov, options);
    CHECK_EQ(sick.taken, 1);
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    CHECK(same(sick.weights, fine.weights) && same(sick.momentum, fine.momentum));
    CHECK(std::isfinite(sick.loss[4]) && !std::isfinite(sick.loss[5]));
  });
}

}  // namespace

int main() {
  check_invariance();
  check_steps({});
  check_steps({0.9, false, 0.01, 0});
  check_steps({0.9, true, 0.01, 0.2});
  check_divergence();
  check_untouched();
  check_paths();
  check_paths_that_diverge();
  return check::result();
}
