// SPDX-License-Identifier: MIT
// Kendall's counts of pairs, exact in 64-bit integers, and their bootstrap over rows.
//
// tau-a, tau-b and tau-c are quotients of the same counts, taken by nasfast/metrics/kendall.py.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "host/ranks.h"

namespace nasfast {

// Of the n (n - 1) / 2 unordered pairs of rows; a row that is there twice is two rows.
struct PairCounts {
  int64_t rows = 0;
  int64_t concordant = 0;   // ordered alike by x and y, strictly
  int64_t discordant = 0;   // ordered contrarily, strictly
  int64_t tied_x = 0;       // pairs of equal x
  int64_t tied_y = 0;       // pairs of equal y
  int64_t tied_both = 0;    // pairs of equal x and equal y, part of both of the above
  int64_t distinct_x = 0;   // values
  int64_t distinct_y = 0;   // values
  int64_t rows_tied_x = 0;  // rows that share their x with another
  int64_t rows_tied_y = 0;
};

namespace kendall {

inline int64_t pairs_of(int64_t rows) { return rows * (rows - 1) / 2; }

// Sum what runs of equal rank contribute, a rank at a time.
struct Runs {
  int64_t pairs = 0, distinct = 0, rows_tied = 0;

  void add(int64_t rows) {
    pairs += pairs_of(rows);
    distinct += rows > 0;
    rows_tied += rows > 1 ? rows : 0;
  }
};

// Pairs i < j with values[i] > values[j], where all values agree above `bit`; the values are left
// in another order.
//
// A stable partition by one bit at a time: a zero behind a one is such a pair, whatever the bits
// below say. Nothing in the loop depends on a comparison, unlike in a merge.
inline int64_t count_inversions(std::span<int32_t> values, int bit, std::span<int32_t> scratch) {
  constexpr size_t kFew = 32;  // all pairs of so few cost less, and vectorise
  int64_t inversions = 0;
  if (values.size() <= kFew) {
    for (size_t j = 1; j < values.size(); ++j) {
      int32_t above = 0;
      for (size_t i = 0; i < j; ++i) above += values[i] > values[j];
      inversions += above;
    }
    return inversions;
  }
  if (bit < 0) return 0;
  size_t zeros = 0, ones = 0;
  for (const int32_t value : values) {
    const size_t one = value >> bit & 1;
    values[zeros] = value;  // never ahead of the read
    scratch[ones] = value;
    inversions += one ? 0 : static_cast<int64_t>(ones);
    zeros += 1 - one;
    ones += one;
  }
  std::memcpy(values.data() + zeros, scratch.data(), ones * sizeof(int32_t));
  return inversions + count_inversions(values.first(zeros), bit - 1, scratch) +
         count_inversions(values.subspan(zeros), bit - 1, scratch);
}

// Weights by index, of which any can grow and the sum of the first be had in log n steps.
class FenwickTree {
 public:
  explicit FenwickTree(int32_t size) : sums_(static_cast<size_t>(size) + 1) {}
  void clear() { std::fill(sums_.begin(), sums_.end(), 0); }
  void add(int32_t index, int32_t weight) {
    for (size_t i = static_cast<size_t>(index) + 1; i < sums_.size(); i += i & -i) {
      sums_[i] += weight;
    }
  }
  int32_t sum_through(int32_t index) const {
    int32_t sum = 0;
    for (size_t i = static_cast<size_t>(index) + 1; i > 0; i &= i - 1) sum += sums_[i];
    return sum;
  }

 private:
  std::vector<int32_t> sums_;
};

inline void set_ties(const Runs& x, const Runs& y, const Runs& both, PairCounts& counts) {
  counts.tied_x = x.pairs;
  counts.tied_y = y.pairs;
  counts.tied_both = both.pairs;
  counts.distinct_x = x.distinct;
  counts.distinct_y = y.distinct;
  counts.rows_tied_x = x.rows_tied;
  counts.rows_tied_y = y.rows_tied;
  counts.concordant = pairs_of(counts.rows) - counts.discordant - x.pairs - y.pairs + both.pairs;
}

// Random numbers of one resample: splitmix64 (Steele, Lea and Flood, OOPSLA 2014). Its start is a
// hash of seed and resample, so a resample is the same whichever thread draws it.
class SplitMix64 {
 public:
  SplitMix64(uint64_t seed, uint64_t resample)
      : state_(mix(mix(seed + kStep) + (resample + 1) * kStep)) {}

  // Below `bound`, which is below 2^31: no number is likelier than another by more than 2^-33.
  int32_t below(int32_t bound) {
    return static_cast<int32_t>(static_cast<unsigned __int128>(next()) * bound >> 64);
  }
  uint64_t next() { return mix(state_ += kStep); }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
  static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  uint64_t state_;
};

// Counts over rows that are there as often as their weight says; one thread's memory.
class WeightedCounter {
 public:
  explicit WeightedCounter(const RankedRows& rows)
      : rows_(rows), weights_(rows.size()), by_y_(rows.y_ranks), below_(rows.y_ranks) {}

  // Draw as many rows as there are, with replacement, and count.
  PairCounts resample(uint64_t seed, uint64_t index) {
    std::fill(weights_.begin(), weights_.end(), 0);
    SplitMix64 random(seed, index);
    const auto n = static_cast<int32_t>(rows_.size());
    for (int32_t i = 0; i < n; ++i) ++weights_[random.below(n)];
    return count();
  }

 private:
  PairCounts count() {
    std::fill(by_y_.begin(), by_y_.end(), 0);
    below_.clear();
    PairCounts counts;
    Runs x, y, both;
    int64_t in_x = 0, in_both = 0;  // weight of the runs of equal x, and of equal x and y
    for (size_t i = 0; i < rows_.size(); ++i) {
      const int32_t rank = rows_.y_rank[i];
      const bool new_x = i > 0 && rows_.x_rank[i] != rows_.x_rank[i - 1];
      if (new_x) x.add(std::exchange(in_x, 0));
      if (new_x || (i > 0 && rank != rows_.y_rank[i - 1])) both.add(std::exchange(in_both, 0));
      const int32_t weight = weights_[rows_.row[i]];
      if (weight == 0) continue;
      // Rows of this x came in ascending order of y, so none of them counts as above.
      counts.discordant += weight * (counts.rows - below_.sum_through(rank));
      below_.add(rank, weight);
      by_y_[rank] += weight;
      counts.rows += weight;
      in_x += weight;
      in_both += weight;
    }
    x.add(in_x);
    both.add(in_both);
    for (const int32_t weight : by_y_) y.add(weight);
    set_ties(x, y, both, counts);
    return counts;
  }

  const RankedRows& rows_;
  std::vector<int32_t> weights_;  // of each row of the columns
  std::vector<int32_t> by_y_;     // weight of each rank of y
  FenwickTree below_;             // weight of the rows so far, by rank of y
};

}  // namespace kendall

// Counts of the columns x and y, both [n]; n log n.
//
// Beside rank_rows it need not know which row is which, so y keeps company with x itself.
inline PairCounts count_pairs(std::span<const double> x, std::span<const double> y) {
  check_columns(x, y);
  const size_t n = x.size();
  ranks::Sorter<uint64_t> sorter(n);
  for (size_t i = 0; i < n; ++i) {
    sorter.items()[i] = {ranks::ordered_bits(y[i]), ranks::ordered_bits(x[i])};
  }
  sorter.sort();
  kendall::Runs x_runs, y_runs, both_runs;
  int64_t in_x = 0, in_y = 0, in_both = 0;
  uint64_t last = 0;  // no key: it would be that of a nan
  uint64_t y_rank = 0;
  for (auto& [key, payload] : sorter.items()) {
    if (key != std::exchange(last, key)) {
      y_rank += in_y > 0;
      y_runs.add(std::exchange(in_y, 0));
    }
    ++in_y;
    key = std::exchange(payload, y_rank);
  }
  y_runs.add(in_y);
  sorter.sort();

  // In the order of (x, y), each pair of ranks out of order is a discordant pair of rows.
  const auto y_ranks = std::make_unique_for_overwrite<int32_t[]>(n);
  const auto scratch = std::make_unique_for_overwrite<int32_t[]>(n);
  last = 0;
  y_rank = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto& [key, rank] = sorter.items()[i];
    const bool new_x = key != std::exchange(last, key);
    if (new_x) x_runs.add(std::exchange(in_x, 0));
    if (rank != std::exchange(y_rank, rank) || new_x) both_runs.add(std::exchange(in_both, 0));
    ++in_x;
    ++in_both;
    y_ranks[i] = static_cast<int32_t>(rank);
  }
  x_runs.add(in_x);
  both_runs.add(in_both);
  PairCounts counts;
  counts.rows = static_cast<int64_t>(n);
  const int top_bit = static_cast<int>(std::bit_width(static_cast<uint64_t>(y_runs.distinct))) - 1;
  counts.discordant = kendall::count_inversions({y_ranks.get(), n}, top_bit, {scratch.get(), n});
  kendall::set_ties(x_runs, y_runs, both_runs, counts);
  return counts;
}

// Counts of resamples of the rows of x and y, each n rows drawn with replacement, to `out`.
//
// Resample i depends on n, seed and i alone: not on the number of threads, nor on how many
// resamples there are, and other columns of the same length are drawn alike.
inline void bootstrap_pairs(std::span<const double> x, std::span<const double> y, uint64_t seed,
                            int threads, std::span<PairCounts> out) {
  const RankedRows rows = rank_rows(x, y);
  if (rows.size() == 0) throw std::invalid_argument("x: wanted at least one row");
  const size_t num_threads =
      std::min<size_t>(std::max(threads, 1), std::max<size_t>(out.size(), 1));
  // All memory is allocated here: nothing in a thread throws.
  std::vector<kendall::WeightedCounter> counters(num_threads, kendall::WeightedCounter(rows));
  std::atomic<size_t> next{0};
  const auto work = [&](kendall::WeightedCounter& counter) {
    for (size_t i = next++; i < out.size(); i = next++) out[i] = counter.resample(seed, i);
  };
  std::vector<std::jthread> team;  // joined when it goes, also if starting a thread fails
  team.reserve(num_threads - 1);
  for (size_t i = 1; i < num_threads; ++i) team.emplace_back(work, std::ref(counters[i]));
  work(counters[0]);
}

}  // namespace nasfast
