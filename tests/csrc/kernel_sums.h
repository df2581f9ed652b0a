// SPDX-License-Identifier: MIT
// What the tests of gradients share: the sums that kernels add to.
#pragma once

#include <algorithm>

#include "kernel_rows.h"

namespace kernel_rows {

constexpr float kBefore = 0.25f;  // in sums that a kernel adds to

inline Exact<float> sums_of(int32_t channels) {
  return Exact<float>(padded_channels(channels) * kBlockImages, kBefore);
}

// Checks sums over a row that a kernel added to: of(x, channel, image).
template <typename Of>
void expect_sums(const Setting& s, const std::string& what, const Exact<float>& sums, int32_t width,
                 int32_t channels, const Of& of) {
  for_each(1, channels, [&](int32_t, int32_t c, int32_t i) {
    double sum = kBefore, magnitude = kBefore;
    for (int32_t x = 0; x < width; ++x) {
      const auto [term, size] = of(x, c, i);
      sum += term;
      magnitude += size;
    }
    const double actual = sums[c * kBlockImages + i];
    if (is_near(actual, sum, s.tolerance.sum * magnitude) || check::failures > 20) return;
    check::fail(what.c_str(), 0,
                s.name() + ": got " + check::show(actual) + ", want " + check::show(sum));
  });
}

struct Sized {
  double term, size;
};
inline Sized sized(double x) { return {x, std::abs(x)}; }

// What went through a ReLU: nothing is negative, and some are zero.
inline Block random_operand(Precision precision, int32_t width, int32_t channels, Random& random) {
  Block block = random_block(precision, 1, width, channels, random);
  for (double& x : block.numbers) x = std::max(x, 0.0);
  return block;
}

}  // namespace kernel_rows
