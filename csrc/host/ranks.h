// SPDX-License-Identifier: MIT
// Rows of two columns in the order of (x, y), found by radix sorts: what counting pairs starts
// from.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nasfast {

// One entry for each row, in ascending order of x and, where x is equal, of y.
struct RankedRows {
  std::vector<int32_t> row;     // index in the columns
  std::vector<int32_t> x_rank;  // dense: equal values share a rank, ranks have no gaps
  std::vector<int32_t> y_rank;  // dense
  int32_t x_ranks = 0;          // how many there are
  int32_t y_ranks = 0;

  size_t size() const { return row.size(); }
};

namespace ranks {

// An integer in the order of the values; -0.0 and 0.0 share one. Not for nan.
inline uint64_t ordered_bits(double value) {
  constexpr uint64_t kSign = uint64_t{1} << 63;
  const auto bits = std::bit_cast<uint64_t>(value + 0.0);
  return bits & kSign ? ~bits : bits | kSign;
}

inline void refuse_nan(const char* name, std::span<const double> values) {
  bool any_nan = false;
  for (const double value : values) any_nan |= std::isnan(value);
  if (any_nan) throw std::invalid_argument(std::string(name) + ": wanted numbers, got nan");
}

// A key and what goes with it, so that nothing has to be looked up after a sort.
template <typename Payload>
struct Item {
  uint64_t key;
  Payload payload;

  bool operator<(const Item& other) const { return key < other.key; }
};

// Items and room to sort them in, all allocated once and touched only where they are used.
template <typename Payload>
class Sorter {
 public:
  explicit Sorter(size_t size)
      : size_(size),
        items_(std::make_unique_for_overwrite<Item<Payload>[]>(size)),
        scratch_(std::make_unique_for_overwrite<Item<Payload>[]>(size)) {}

  std::span<Item<Payload>> items() { return {items_.get(), size_}; }

  // Ascending order of the keys; equal keys keep their order.
  //
  // The 33 bits from the first in which any two keys differ tell most of them apart: those get the
  // radix sort. Each run that shares them is sorted by comparison, so no input costs more than
  // n log n.
  void sort() {
    constexpr size_t kFewItems = 1024;  // clearing the counters costs more than comparing so few
    if (size_ < kFewItems) {
      std::stable_sort(items_.get(), items_.get() + size_);
      return;
    }
    uint64_t low = items_[0].key, high = low;
    for (const auto& item : items()) {
      low = std::min(low, item.key);
      high = std::max(high, item.key);
    }
    const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - 33);
    radix_sort(low, shift);
    if (shift > 0) sort_runs(low, shift);
  }

 private:
  // Stable sort by the 33 bits of (key - low) from `shift` on.
  void radix_sort(uint64_t low, int shift) {
    constexpr int kBits = 11, kPasses = 3;
    constexpr uint64_t kMask = (1 << kBits) - 1;
    std::array<std::array<uint32_t, kMask + 1>, kPasses> starts{};
    for (const auto& item : items()) {
      const uint64_t bits = (item.key - low) >> shift;
      for (int pass = 0; pass < kPasses; ++pass) ++starts[pass][bits >> pass * kBits & kMask];
    }
    for (int pass = 0; pass < kPasses; ++pass) {
      auto& start = starts[pass];
      if (std::ranges::count(start, 0u) == kMask) continue;  // one digit, the same for all
      std::exclusive_scan(start.begin(), start.end(), start.begin(), 0u);
      const int digit = shift + pass * kBits;
      for (const auto& item : items()) scratch_[start[(item.key - low) >> digit & kMask]++] = item;
      std::swap(items_, scratch_);
    }
  }

  void sort_runs(uint64_t low, int shift) {
    auto* const all = items_.get();
    for (size_t begin = 0, end = 0; begin < size_; begin = end) {
      const uint64_t prefix = (all[begin].key - low) >> shift;
      bool in_order = true;
      for (++end; end < size_ && (all[end].key - low) >> shift == prefix; ++end) {
        in_order &= !(all[end] < all[end - 1]);
      }
      if (!in_order) std::stable_sort(all + begin, all + end);
    }
  }

  size_t size_;
  std::unique_ptr<Item<Payload>[]> items_, scratch_;
};

}  // namespace ranks

inline void check_columns(std::span<const double> x, std::span<const double> y) {
  if (x.size() != y.size()) throw std::invalid_argument("x, y: wanted equal lengths");
  if (x.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw std::invalid_argument("x: wanted less than 2^31 rows");
  }
  ranks::refuse_nan("x", x);
  ranks::refuse_nan("y", y);
}

// Ranks of the columns x and y, both [n]; infinite values have their place, nan is refused.
inline RankedRows rank_rows(std::span<const double> x, std::span<const double> y) {
  struct RowAndRank {
    int32_t row, y_rank;
  };
  check_columns(x, y);
  const size_t n = x.size();
  ranks::Sorter<RowAndRank> sorter(n);
  for (size_t i = 0; i < n; ++i) {
    sorter.items()[i] = {ranks::ordered_bits(y[i]), {static_cast<int32_t>(i), 0}};
  }
  // By y first: the stable sort by x then leaves equal x in the order of y.
  sorter.sort();
  RankedRows ranked;
  uint64_t last = 0;  // no key: it would be that of a nan
  for (auto& [key, payload] : sorter.items()) {
    ranked.y_ranks += key != last;
    last = key;
    payload.y_rank = ranked.y_ranks - 1;
    key = ranks::ordered_bits(x[payload.row]);
  }
  sorter.sort();
  ranked.row.resize(n);
  ranked.x_rank.resize(n);
  ranked.y_rank.resize(n);
  last = 0;
  for (size_t i = 0; i < n; ++i) {
    const auto& [key, payload] = sorter.items()[i];
    ranked.x_ranks += key != last;
    last = key;
    ranked.row[i] = payload.row;
    ranked.x_rank[i] = ranked.x_ranks - 1;
    ranked.y_rank[i] = payload.y_rank;
  }
  return ranked;
}

}  // namespace nasfast
