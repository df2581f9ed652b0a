// SPDX-License-Identifier: MIT
// Counts of pairs against counting every pair, on random columns with and without ties.
#include "host/kendall.h"

#include <cmath>
#include <limits>
#include <random>
#include <tuple>

#include "check.h"

namespace {

using nasfast::PairCounts;
using Column = std::vector<double>;

std::vector<int64_t> fields(const PairCounts& c) {
  return {c.rows,      c.concordant, c.discordant, c.tied_x,      c.tied_y,
          c.tied_both, c.distinct_x, c.distinct_y, c.rows_tied_x, c.rows_tied_y};
}

// Rows of the column that share their value, and distinct values.
std::pair<int64_t, int64_t> tied_and_distinct(Column values) {
  std::sort(values.begin(), values.end());
  int64_t tied = 0, distinct = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const bool as_before = i > 0 && values[i] == values[i - 1];
    const bool as_after = i + 1 < values.size() && values[i] == values[i + 1];
    tied += as_before || as_after;
    distinct += !as_before;
  }
  return {tied, distinct};
}

PairCounts count_every_pair(const Column& x, const Column& y) {
  PairCounts counts;
  counts.rows = static_cast<int64_t>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const int sign_x = (x[i] > x[j]) - (x[i] < x[j]);
      const int sign_y = (y[i] > y[j]) - (y[i] < y[j]);
      counts.concordant += sign_x * sign_y > 0;
      counts.discordant += sign_x * sign_y < 0;
      counts.tied_x += sign_x == 0;
      counts.tied_y += sign_y == 0;
      counts.tied_both += sign_x == 0 && sign_y == 0;
    }
  }
  std::tie(counts.rows_tied_x, counts.distinct_x) = tied_and_distinct(x);
  std::tie(counts.rows_tied_y, counts.distinct_y) = tied_and_distinct(y);
  return counts;
}

Column random_column(std::mt19937_64& random, size_t n, int kinds, double scale) {
  Column column(n);
  for (double& value : column) {
    const auto kind = static_cast<int64_t>(random() % static_cast<uint64_t>(2 * kinds + 1)) - kinds;
    value = static_cast<double>(kind) * scale;
  }
  return column;
}

void test_counts() {
  std::mt19937_64 random(0);
  // Around the numbers at which the sorts and the counting change their way.
  for (const size_t n : {0, 1, 2, 3, 31, 32, 33, 34, 200, 1023, 1024, 1500}) {
    for (const int kinds : {0, 1, 5, 1'000'000}) {
      for (const double scale : {1.0, 1e-310, 1e300}) {
        const Column x = random_column(random, n, kinds, scale);
        Column y = random_column(random, n, kinds, 1.0);
        for (size_t i = 0; i < n; i += 2) y[i] = x[i];
        CHECK(fields(nasfast::count_pairs(x, y)) == fields(count_every_pair(x, y)));
      }
    }
  }
}

void test_values_at_the_ends() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Column x = {kInfinity, -kInfinity, 0.0, -0.0, 5e-324, -5e-324, 1.0};
  const Column y = {6, 0, 2, 3, 4, 1, 5};  // ascending with x; 0.0 and -0.0 are equal
  const PairCounts counts = nasfast::count_pairs(x, y);
  CHECK_EQ(counts.tied_x, 1);
  CHECK_EQ(counts.discordant, 0);
  CHECK_EQ(counts.concordant, 20);
}

void test_keys_that_share_their_leading_bits() {
  constexpr size_t kRows = 2000;
  Column x(kRows), y(kRows);
  for (size_t i = 0; i < kRows; ++i) {
    x[i] = 1.0 + std::ldexp(static_cast<double>(i * 7 % kRows), -52);
    y[i] = static_cast<double>(i % 300);
  }
  x[5] = -1e300;
  CHECK(fields(nasfast::count_pairs(x, y)) == fields(count_every_pair(x, y)));
}

void test_resamples() {
  constexpr uint64_t kSeed = 0xfeedfacecafebeef;
  std::mt19937_64 random(1);
  for (const size_t n : {1, 2, 50, 1100}) {
    const Column x = random_column(random, n, 20, 1.0), y = random_column(random, n, 20, 1.0);
    std::vector<PairCounts> one(7), three(7);
    nasfast::bootstrap_pairs(x, y, kSeed, 1, one);
    nasfast::bootstrap_pairs(x, y, kSeed, 3, three);
    for (size_t i = 0; i < one.size(); ++i) {
      CHECK(fields(one[i]) == fields(three[i]));
      nasfast::kendall::SplitMix64 stream(kSeed, i);
      Column drawn_x, drawn_y;
      for (size_t j = 0; j < n; ++j) {
        const auto row = static_cast<size_t>(stream.below(static_cast<int32_t>(n)));
        drawn_x.push_back(x[row]);
        drawn_y.push_back(y[row]);
      }
      CHECK(fields(one[i]) == fields(nasfast::count_pairs(drawn_x, drawn_y)));
    }
  }
}

void test_bad_columns() {
  const Column two = {1, 2}, nan = {1, std::nan("")};
  std::vector<PairCounts> out(2);
  CHECK_THROWS(nasfast::count_pairs(two, Column{1}), std::invalid_argument);
  CHECK_THROWS(nasfast::count_pairs(nan, two), std::invalid_argument);
  CHECK_THROWS(nasfast::count_pairs(two, nan), std::invalid_argument);
  CHECK_THROWS((nasfast::bootstrap_pairs(Column{}, Column{}, 0, 1, out), 0), std::invalid_argument);
  nasfast::bootstrap_pairs(two, two, 0, -5, {});  // no resamples, and no fewer than one thread
}

}  // namespace

int main() {
  test_counts();
  test_values_at_the_ends();
  test_keys_that_share_their_leading_bits();
  test_resamples();
  test_bad_columns();
  return check::result();
}
