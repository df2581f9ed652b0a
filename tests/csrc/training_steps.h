// SPDX-License-Identifier: MIT
// What the tests of training steps share: lanes that are trained call by call.
#pragma once

#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "training_runs.h"

namespace training_runs {

using nasfast::Sgd;

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
inline Data part_of(const Data& data, size_t first, size_t end) {
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
inline void train(const ProgramTable& table, Training& state, const Data& data, size_t first,
                  size_t end, const Rates& rates, const Sgd& sgd, RunOptions options) {
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

inline const Rates kSteady = [](size_t, size_t) { return 0.05; };
inline const Sgd kNesterov = {0.9, true, 5e-4, 0};

// In every setting, one call by one thread.
inline Training trained(const ProgramTable& table, size_t lanes, const Data& data,
                        const RunOptions& options, const Rates& rates = kSteady,
                        const Sgd& sgd = kNesterov) {
  Training state(table, lanes);
  train(table, state, data, 0, data.sizes.size(), rates, sgd, options);
  return state;
}

}  // namespace training_runs
