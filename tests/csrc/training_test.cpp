// SPDX-License-Identifier: MIT
// SGD steps of lanes and of paths on the CPU engine: what a step does, in double precision, and
// what it leaves alone.
#include <unistd.h>

#include <functional>
#include <limits>
#include <string>

#include "engine/lane_step.h"
#include "training_steps.h"

namespace {

using namespace training_runs;
using nasfast::kernels::cpu::Isa, nasfast::kernels::cpu::Precision;

// A table of images of 3 channels, laid out at multiples of `alignment` numbers, and lanes of it.
struct Example {
  std::function<Sections(int32_t alignment)> make;
  std::vector<int32_t> lanes;          // ones that train something in every position, and others
  std::vector<int32_t> stepped, many;  // two and three of them
  // One of `lanes` and the unit of a convolution that it has and the first of them has not.
  int64_t other;
  size_t unit;

  // A table of some lanes in one chunk, each with a row of weights of its own.
  Sections chosen(const std::vector<int32_t>& some,
                  int32_t alignment = nasfast::kArenaAlignment) const {
    auto sections = make(alignment);
    sections[nasfast::kLanes].clear();
    for (const int32_t lane : some) {
      sections[nasfast::kLanes].insert(sections[nasfast::kLanes].end(), {lane, 0, 0});
    }
    small_tables::set_chunks(sections, static_cast<int32_t>(some.size()), {});
    return sections;
  }
};

std::vector<Example> examples() {
  return {
      // The sixth lane is one of zeros. Lane 0 is conv1x1 twice; lane 1 has conv3x3 of the first
      // cell too.
      {[](int32_t alignment) { return stages({3, 3, 5}, false, alignment); },
       {8, 16, 24, 32, 30, 17, 48},
       {24, 32},
       {8, 24, 30},
       1,
       3},
      // Lane 2 has the second conv3x3 of the first cell.
      {[](int32_t alignment) { return small_tables::choice_blocks({3, 4, 2, 3, 4}, alignment); },
       {1, 3, 2, 4, 7, 8, 9, 10},
       {2, 3},
       {1, 4, 8},
       2,
       5},
      // Lane 3 has conv3x3 of the narrow vertex of the first cell.
      {[](int32_t alignment) { return small_tables::vertex_cells({3, 4, 5, 7}, alignment); },
       {0, 1, 2, 3, 4, 5, 6},
       {1, 3},
       {0, 2, 4},
       3,
       6},
  };
}

// Calls of some minibatches, threads by lane and by block, other lanes beside it: the same bits.
void check_invariance(const Example& example) {
  const Data data(3, 6, 5, {18, 5, 18, 33}, 1);
  const Network together(example.chosen(example.lanes));
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = [&](int32_t threads) { return options_of(data, isa, precision, threads); };
    const size_t lanes = example.lanes.size();
    const Training whole = trained(together.table, lanes, data, options(1));
    for (const int32_t threads : {2, 8}) {  // 8: more than there are lanes
      Training other(together.table, lanes);
      train(together.table, other, data, 0, 1, kSteady, kNesterov, options(threads));
      train(together.table, other, data, 1, 4, kSteady, kNesterov, options(threads));
      for (size_t k = 0; k < lanes; ++k) CHECK(other.is_same(k, whole, k));
    }
    for (size_t k = 0; k < lanes; ++k) {
      const Network alone(example.chosen({example.lanes[k]}));
      CHECK(trained(alone.table, 1, data, options(k % 3 + 1)).is_same(0, whole, k));
    }
  });
}

// A step against a few lines of double arithmetic on the engine's own gradients.
void check_steps(const Example& example, const Sgd& sgd) {
  const Data data(3, 6, 5, {18, 7, 16}, 2);
  const auto& lanes = example.stepped;
  const Network network(example.chosen(lanes));
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

// Running statistics move towards those of the minibatch by the share that their unit has.
void check_statistics(const Example& example) {
  const Data data(3, 6, 5, {18, 7}, 7);
  const Network network(example.chosen(example.lanes));
  const ProgramTable& table = network.table;
  const size_t lanes = example.lanes.size(),
               size = static_cast<size_t>(table.settings().arena_size);
  const auto options =
      options_of(data, nasfast::kernels::cpu::supported_isas().back(), Precision::kFp32);
  const auto near = [](float actual, double wanted) {
    return is_near(actual, wanted, 1e-5 * (1 + std::abs(wanted)));
  };
  Training state(table, lanes);
  for (size_t s = 0; s < 2; ++s) {
    const Training before = state;
    train(table, state, data, s, s + 1, kSteady, kNesterov, options);
    const Data batch = part_of(data, s, s + 1);
    for (size_t k = 0; k < lanes; ++k) {
      const float *old = &before.weights[k * size], *now = &state.weights[k * size];
      interpreter::Interpreter definition(table, old, nasfast::kBatch, nasfast::kBatch);
      const auto map = map_of(batch);
      definition.run(table.lanes()[k].network, map, batch.sizes, map, batch.sizes);
      for (size_t u = 0; u < table.units().size(); ++u) {
        const auto& unit = table.units()[u];
        if (unit.mean < 0) continue;
        const double share = definition.measured().count(u) > 0 ? unit.momentum / 1e6 : 0.0;
        const auto statistics = share > 0 ? definition.measured().at(u) : interpreter::Measured();
        const size_t channels = share > 0 ? statistics.mean.size() : 1;
        for (size_t c = 0; c < channels; ++c) {
          const size_t mean = static_cast<size_t>(unit.mean) + c,
                       variance = static_cast<size_t>(unit.variance) + c;
          if (share == 0) {
            CHECK(now[mean] == old[mean] && now[variance] == old[variance]);
            continue;
          }
          const double unbiased =
              statistics.variance[c] * statistics.count / (statistics.count - 1);
          CHECK(near(now[mean], (1 - share) * old[mean] + share * statistics.mean[c]));
          CHECK(near(now[variance], (1 - share) * old[variance] + share * unbiased));
        }
      }
    }
  }
}

// A lane with an enormous rate stops; the others do not notice.
void check_divergence(const Example& example) {
  const Data data(3, 6, 5, {18, 7, 16, 9}, 3);
  const Network network(example.chosen(example.many));
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
void check_untouched(const Example& example) {
  const auto page =
      static_cast<int32_t>(static_cast<size_t>(sysconf(_SC_PAGESIZE)) / sizeof(float));
  const Data data(3, 4, 4, {3, 2}, 4);
  for (const int32_t lane : example.lanes) {
    const Network network(example.chosen({lane}, page));
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

void check_paths(const Example& example) {
  const Data data(3, 6, 5, {18, 5, 33}, 5);
  const Network network(example.chosen(example.lanes)), alone(example.chosen({example.lanes[3]}));
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
void check_paths_that_diverge(const Example& example) {
  const Data data(3, 6, 5, {18, 5}, 6);
  const Network network(example.chosen(example.lanes));
  const auto arena = random_arena(network.table);
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = options_of(data, isa, precision, 2);
    auto broken = arena;
    broken[static_cast<size_t>(network.table.units()[example.unit].weight)] =
        std::numeric_limits<float>::quiet_NaN();
    const Paths fine =
        train_paths(network.table, broken, {0, 0, 0}, 3, part_of(data, 0, 1), kNesterov, options);
    CHECK_EQ(fine.taken, 1);
    const Paths sick = train_paths(network.table, broken, {0, 0, 0, 0, 0, example.other}, 3, data,
                                   kNesterov, options);
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
  for (const Example& example : examples()) {
    check_invariance(example);
    check_steps(example, {});
    check_steps(example, {0.9, false, 0.01, 0});
    check_steps(example, {0.9, true, 0.01, 0.2});
    check_statistics(example);
    check_divergence(example);
    check_untouched(example);
    check_paths(example);
    check_paths_that_diverge(example);
  }
  return check::result();
}
