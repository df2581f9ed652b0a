// SPDX-License-Identifier: MIT
// Numbers in double precision that write down how they came about, and the derivatives of a result
// with respect to all of them: the chain rule, one operation at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace tape {

// An operation: its operands and the derivatives with respect to them.
struct Entry {
  int32_t operand[2];
  double derivative[2];
};
inline std::vector<Entry> entries;

struct Number {
  double value = 0;
  int32_t entry = -1;  // -1: a constant

  Number() = default;
  Number(double v) : value(v) {}  // NOLINT: numbers compute with constants

  static Number variable(double v) { return recorded(v, Number(), 0, Number(), 0); }
  static Number of(double v, Number a, double by_a, Number b, double by_b) {
    return a.entry < 0 && b.entry < 0 ? Number(v) : recorded(v, a, by_a, b, by_b);
  }

 private:
  static Number recorded(double v, Number a, double by_a, Number b, double by_b) {
    Number result(v);
    result.entry = static_cast<int32_t>(entries.size());
    entries.push_back({{a.entry, b.entry}, {by_a, by_b}});
    return result;
  }
};

inline Number operator+(Number a, Number b) { return Number::of(a.value + b.value, a, 1, b, 1); }
inline Number operator-(Number a, Number b) { return Number::of(a.value - b.value, a, 1, b, -1); }
inline Number operator*(Number a, Number b) {
  return Number::of(a.value * b.value, a, b.value, b, a.value);
}
inline Number operator/(Number a, Number b) {
  return Number::of(a.value / b.value, a, 1 / b.value, b, -a.value / (b.value * b.value));
}
inline Number& operator+=(Number& a, Number b) { return a = a + b; }
inline Number& operator/=(Number& a, Number b) { return a = a / b; }
inline Number sqrt(Number a) {
  const double root = std::sqrt(a.value);
  return Number::of(root, a, 0.5 / root, Number(), 0);
}
inline bool operator<(Number a, Number b) { return a.value < b.value; }
inline bool operator<=(Number a, Number b) { return a.value <= b.value; }

// Derivatives of the sum of results times seeds, by entry.
inline std::vector<double> derivatives(const std::vector<Number>& results,
                                       const std::vector<double>& seeds) {
  std::vector<double> by(entries.size(), 0.0);
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].entry >= 0) by[static_cast<size_t>(results[i].entry)] += seeds[i];
  }
  for (size_t k = entries.size(); k-- > 0;) {
    for (const int side : {0, 1}) {
      const int32_t operand = entries[k].operand[side];
      if (operand >= 0) by[static_cast<size_t>(operand)] += by[k] * entries[k].derivative[side];
    }
  }
  return by;
}

}  // namespace tape
