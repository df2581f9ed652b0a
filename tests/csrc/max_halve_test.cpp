// SPDX-License-Identifier: MIT
// Maximum of 2x2 pixels and its gradient, on every instruction set, against their definitions.
#include <string>

#include "kernel_rows.h"
#include "kernels/cpu/gradients.h"

namespace {

using namespace kernel_rows;

// Few different numbers, so that most windows have ties, and some NaN and infinities.
Block tied_block(int32_t height, int32_t width, int32_t channels, Random& random) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kNumbers[] = {-1, 0, -0.0, 1, 1, 2, 2, kNan, -kInfinity, -kInfinity};
  Block block(height, width, channels);
  for (double& x : block.numbers) x = kNumbers[random.below(10)];
  return block;
}

// A window's maximum by PyTorch's rule: the first in the order of rows, or the last NaN.
struct Winner {
  int32_t y = -1, x = -1;
  double value = 0;
};
Winner winner_of(Block& in, int32_t y, int32_t x, int32_t c, int32_t i) {
  Winner best;
  for (int32_t v = y; v < y + 2; ++v) {
    for (int32_t u = x; u < x + 2; ++u) {
      if (v < 0 || v >= in.height || u < 0 || u >= in.width) continue;
      const double number = in.at(v, u, c)[i];
      if (best.y < 0 || number > best.value || std::isnan(number)) best = {v, u, number};
    }
  }
  return best;
}

struct Shape {
  int32_t channels, width, height, pad;
  int32_t halved(int32_t size) const { return pad != 0 ? size / 2 + 1 : (size + 1) / 2; }
  std::string name() const {
    return std::to_string(channels) + " x " + std::to_string(height) + " x " +
           std::to_string(width) + ", pad " + std::to_string(pad);
  }
};

void check_max_halve(const Setting& s, const Shape& shape, Block in, Random& random) {
  const auto [channels, width, height, pad] = shape;
  const int32_t out_width = shape.halved(width), out_height = shape.halved(height);
  const auto rows = rows_of(in, s.value());
  Block expected(out_height, out_width, channels), expected_gradient(height, width, channels);
  Block gradient = random_block(s.precision, out_height, out_width, channels, random);
  const auto gradient_rows = rows_of(gradient, s.value());
  for (int32_t y = 0; y < out_height; ++y) {
    for_each(out_width, channels, [&](int32_t x, int32_t c, int32_t i) {
      const Winner best = winner_of(in, 2 * y - pad, 2 * x - pad, c, i);
      expected.at(y, x, c)[i] = best.value;
      expected_gradient.at(best.y, best.x, c)[i] = gradient.at(y, x, c)[i];
    });
  }
  for (int32_t y = 0; y < out_height; ++y) {
    const auto pair = window(rows, 2 * y - pad, 2);
    const Row out(s.value(), out_width, channels, true);
    s.kernels.max_halve({{pair[0], pair[1]}, out.data(), width, out_width, channels, pad});
    expect_row(s, "max_halve " + shape.name(), out, expected, y, 0);
  }
  for (int32_t y = 0; y < height; ++y) {
    const int32_t of = (y + pad) / 2;
    const auto pair = window(rows, 2 * of - pad, 2);
    const Row out(s.value(), width, channels, true);
    s.kernels.gradients->max_halve({{pair[0], pair[1]},
                                    (y + pad) % 2,
                                    gradient_rows[static_cast<size_t>(of)].data(),
                                    out.data(),
                                    width,
                                    channels,
                                    pad});
    expect_row(s, "max_halve gradient " + shape.name(), out, expected_gradient, y, 0);
  }
}

}  // namespace

int main() {
  for_every_setting([](const Setting& s) {
    Random random(1);
    for (const int32_t channels : {1, 2, 3, 5, 16, 43}) {
      for (const int32_t width : {1, 2, 3, 9, 17}) {
        for (const int32_t height : {1, 2, 5, 6}) {
          for (const int32_t pad : {0, 1}) {
            const Shape shape = {channels, width, height, pad};
            check_max_halve(s, shape, tied_block(height, width, channels, random), random);
            check_max_halve(s, shape, random_block(s.precision, height, width, channels, random),
                            random);
          }
        }
      }
    }
  });
  return check::result();
}
