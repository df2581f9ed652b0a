// SPDX-License-Identifier: MIT
// The kernels of a reverse pass but those of weights, on every instruction set, against their
// definitions.
#include <algorithm>
#include <string>

#include "kernel_sums.h"
#include "kernels/cpu/gradients.h"

namespace {

using namespace kernel_rows;
using nasfast::kernels::cpu::GradientTerm;
using nasfast::kernels::cpu::HeadGradientRow;
using nasfast::kernels::cpu::PoolGradientRow;
using nasfast::kernels::cpu::WeightedRow;

void check_finish(const Setting& s, int32_t num_masked, int32_t num_plain, int32_t num_terms,
                  int32_t channels, int32_t width, Random& random) {
  std::vector<Block> masked, plain, values;
  std::vector<std::vector<Row>> rows;  // keeps what is pointed to
  std::vector<const void*> masked_rows;
  std::vector<WeightedRow> plain_rows;
  std::vector<Exact<float>> centres, dots;
  std::vector<GradientTerm> terms;
  const auto add_row = [&](std::vector<Block>& blocks) {
    blocks.push_back(random_block(s.precision, 1, width, channels, random));
    rows.push_back(rows_of(blocks.back(), s.value()));
    return rows.back()[0].data();
  };
  for (int32_t k = 0; k < num_masked; ++k) masked_rows.push_back(add_row(masked));
  for (int32_t k = 0; k < num_plain; ++k) {
    const void* row = add_row(plain);
    plain_rows.push_back({row, k == 0 ? 1.0f : static_cast<float>(random.uniform())});
  }
  for (int32_t k = 0; k < num_terms; ++k) {
    const void* row = add_row(values);
    centres.push_back(per_channel(channels, random, 0));
    dots.push_back(sums_of(channels));
    terms.push_back({row, centres.back().get(), dots.back().get()});
  }
  Block operand = random_operand(s.precision, width, channels, random);
  const auto operand_rows = rows_of(operand, s.kernels.operand);
  const Row out(s.value(), width, channels, true);
  const Exact<float> sum = sums_of(channels);
  s.kernels.gradients->finish(
      {masked_rows.data(), num_masked > 0 ? operand_rows[0].data() : nullptr, plain_rows.data(),
       terms.data(), num_masked, num_plain, num_terms, width, channels, out.data(), sum.get()});
  const std::string what = "finish " + std::to_string(num_masked) + " masked, " +
                           std::to_string(num_plain) + " plain, " + std::to_string(num_terms) +
                           " terms";
  Block expected(1, width, channels);
  double most = 0;
  for_each(width, channels, [&](int32_t x, int32_t c, int32_t i) {
    double total = 0, magnitude = 0;
    const auto add = [&](double term) { total += term, magnitude += std::abs(term); };
    for (Block& block : masked) {
      if (operand.at(0, x, c)[i] > 0) add(block.at(0, x, c)[i]);
    }
    for (size_t k = 0; k < plain.size(); ++k) {
      add(double{plain_rows[k].weight} * plain[k].at(0, x, c)[i]);
    }
    expected.at(0, x, c)[i] = total;
    most = std::max(most, magnitude);
  });
  expect_row(s, what, out, expected, 0, most);
  // Sums are of the gradient as it is stored.
  expect_sums(s, what + ", sum", sum, width, channels,
              [&](int32_t x, int32_t c, int32_t i) { return sized(out.get(x, c, i)); });
  for (size_t t = 0; t < terms.size(); ++t) {
    expect_sums(s, what + ", dot", dots[t], width, channels, [&](int32_t x, int32_t c, int32_t i) {
      const double gradient = out.get(x, c, i), value = values[t].at(0, x, c)[i];
      const double centre = centres[t][c];
      return Sized{gradient * (value - centre),
                   std::abs(gradient) * (std::abs(value) + std::abs(centre))};
    });
  }
}

void check_finishes(const Setting& s) {
  Random random(1);
  const std::vector<int32_t> widths = {1, 2, 3, 4, 5, 7, 8, 9};
  size_t turn = 0;
  for (const int32_t masked : {0, 1, 2, 3}) {
    for (const int32_t plain : {0, 1, 3}) {
      for (const int32_t terms : {0, 1, 2, 4}) {
        for (const int32_t channels : {1, 2, 3, 4, 5, 8, 17}) {
          check_finish(s, masked, plain, terms, channels, widths[turn++ % widths.size()], random);
        }
      }
    }
  }
}

// Calls visit(y, x) for the pixels of a window inside an image, in the order of rows.
template <typename Visit>
void for_window(const Block& image, int32_t y, int32_t x, int32_t kernel, const Visit& visit) {
  const int32_t pad = kernel / 2;
  for (int32_t v = std::max(0, y - pad); v <= std::min(image.height - 1, y + pad); ++v) {
    for (int32_t u = std::max(0, x - pad); u <= std::min(image.width - 1, x + pad); ++u) {
      visit(v, u);
    }
  }
}

// Gradient of a whole image by the definition: every window gives its own to its pixels.
Block pool_gradient(Block& gradient, Block& values, int32_t kernel, bool is_max) {
  Block out(gradient.height, gradient.width, gradient.channels);
  for (int32_t y = 0; y < out.height; ++y) {
    for_each(out.width, out.channels, [&](int32_t x, int32_t c, int32_t i) {
      const double own = gradient.at(y, x, c)[i];
      int32_t count = 0;
      double* first = nullptr;
      double most = -std::numeric_limits<double>::infinity();
      for_window(out, y, x, kernel, [&](int32_t v, int32_t u) {
        ++count;
        if (values.at(v, u, c)[i] <= most) return;
        most = values.at(v, u, c)[i];
        first = &out.at(v, u, c)[i];
      });
      if (is_max) {
        *first += own;
        return;
      }
      for_window(out, y, x, kernel,
                 [&](int32_t v, int32_t u) { out.at(v, u, c)[i] += own / count; });
    });
  }
  return out;
}

void check_pool(const Setting& s, int32_t kernel, bool is_max, int32_t channels, int32_t width,
                int32_t height, Random& random) {
  Block gradient = random_block(s.precision, height, width, channels, random);
  Block values(height, width, channels);
  for (double& x : values.numbers) x = static_cast<double>(random.below(4)) - 2;  // many ties
  Block expected = pool_gradient(gradient, values, kernel, is_max);
  const auto gradient_rows = rows_of(gradient, s.value()), value_rows = rows_of(values, s.value());
  const int32_t pad = kernel / 2;
  const std::string what = (is_max ? "max_pool" : "avg_pool") + std::to_string(kernel);
  for (int32_t y = 0; y < height; ++y) {
    const auto rows = window(gradient_rows, y - pad, kernel);
    const auto around = window(value_rows, y - 2 * pad, 2 * kernel - 1);
    std::vector<int32_t> num_rows;
    for (int32_t centre = y - pad; centre <= y + pad; ++centre) {
      num_rows.push_back(std::min(height, centre + pad + 1) - std::max(0, centre - pad));
    }
    const Row out(s.value(), width, channels, true);
    const PoolGradientRow row = {rows.data(),
                                 is_max ? nullptr : num_rows.data(),
                                 is_max ? around.data() : nullptr,
                                 out.data(),
                                 width,
                                 channels,
                                 kernel};
    (is_max ? s.kernels.gradients->max_pool : s.kernels.gradients->avg_pool)(row);
    expect_row(s, what, out, expected, y, (channels + 1) * (is_max ? kernel * kernel : 1));
  }
}

void check_pools(const Setting& s) {
  Random random(2);
  for (const int32_t kernel : {1, 3, 5}) {
    for (const int32_t width : {1, 2, 3, 4, 5, 8}) {
      for (const int32_t height : {1, 2, 3, 7}) {
        for (const int32_t channels : {1, 2, 3, 5}) {
          check_pool(s, kernel, false, channels, width, height, random);
          check_pool(s, kernel, true, channels, width, height, random);
        }
      }
    }
  }
}

void check_halves(const Setting& s) {
  Random random(3);
  for (const int32_t channels : {1, 2, 3, 4, 5, 17}) {
    for (const int32_t width : {1, 2, 3, 4, 5, 8}) {
      for (const int32_t num_rows : {1, 2}) {
        Block gradient = random_block(s.precision, 1, (width + 1) / 2, channels, random);
        const auto rows = rows_of(gradient, s.value());
        const Row out(s.value(), width, channels, true);
        s.kernels.gradients->halve({rows[0].data(), out.data(), width, channels, num_rows});
        Block expected(1, width, channels);
        for_each(width, channels, [&](int32_t x, int32_t c, int32_t i) {
          const int32_t columns = (x | 1) < width ? 2 : 1;
          expected.at(0, x, c)[i] = gradient.at(0, x / 2, c)[i] / (columns * num_rows);
        });
        expect_row(s, "halve", out, expected, 0, channels + 1);
      }
    }
  }
}

void check_head(const Setting& s, int32_t channels, int32_t width, bool is_linear, Random& random) {
  Block values = random_block(s.precision, 1, width, channels, random);
  const auto rows = rows_of(values, s.value());
  Exact<float> own(padded_channels(channels) * kBlockImages);
  for_each(1, channels, [&](int32_t, int32_t c, int32_t i) {
    own[c * kBlockImages + i] = static_cast<float>(random.uniform());
  });
  const auto numbers = [&] { return per_channel(channels, random, 0); };
  const Exact<float> scale = numbers(), shift = numbers(), centre = numbers(), of_g = numbers(),
                     of_value = numbers(), constant = numbers();
  // A constant channel without a shift: the ReLU's gradient at 0 is 0.
  if (channels > 1) scale[1] = shift[1] = 0;
  const Exact<float> sum = sums_of(channels), dot = sums_of(channels);
  const Row out(s.value(), width, channels, true);
  HeadGradientRow row{};
  row.row = rows[0].data();
  row.width = width;
  row.channels = channels;
  row.scale = scale.get(), row.shift = shift.get(), row.centre = centre.get();
  row.own = own.get();
  row.is_linear = is_linear;
  row.sum = sum.get(), row.dot = dot.get();
  s.kernels.gradients->head_sums(row);
  row.of_g = of_g.get(), row.of_value = of_value.get(), row.constant = constant.get();
  row.out = out.data();
  s.kernels.gradients->head(row);
  const auto gradient = [&](int32_t x, int32_t c, int32_t i) {
    const double z = values.at(0, x, c)[i] * scale[c] + shift[c];
    return is_linear || z > 0 ? double{own[c * kBlockImages + i]} : 0.0;
  };
  const std::string what = is_linear ? "linear head" : "head";
  expect_sums(s, what + ", sum", sum, width, channels,
              [&](int32_t x, int32_t c, int32_t i) { return sized(gradient(x, c, i)); });
  expect_sums(s, what + ", dot", dot, width, channels, [&](int32_t x, int32_t c, int32_t i) {
    const double g = gradient(x, c, i), value = values.at(0, x, c)[i];
    return Sized{g * (value - centre[c]), std::abs(g) * (std::abs(value) + std::abs(centre[c]))};
  });
  Block expected(1, width, channels);
  for_each(width, channels, [&](int32_t x, int32_t c, int32_t i) {
    expected.at(0, x, c)[i] =
        gradient(x, c, i) * of_g[c] + values.at(0, x, c)[i] * of_value[c] + double{constant[c]};
  });
  expect_row(s, what, out, expected, 0, channels + 3);
}

void check_flush(const Setting& s, int32_t channels) {
  Random random(5);
  const int64_t count = padded_channels(channels) * kBlockImages;
  Exact<float> from(count);
  Exact<double> to(count, 0.5);
  for (int64_t k = 0; k < count; ++k) from[k] = static_cast<float>(random.uniform());
  std::vector<float> before(from.get(), from.get() + count);
  s.kernels.gradients->flush(from.get(), to.get(), channels);
  for (int64_t k = 0; k < count; ++k) {
    CHECK_EQ(from[k], 0.0f);
    CHECK_EQ(to[k], 0.5 + double{before[static_cast<size_t>(k)]});
  }
}

}  // namespace

int main() {
  for_every_setting([](const Setting& s) {
    Random random(4);
    check_finishes(s);
    check_pools(s);
    check_halves(s);
    for (const int32_t channels : {1, 2, 3, 4, 5, 8, 17}) {
      for (const int32_t width : {1, 2, 5, 17}) {
        for (const bool is_linear : {false, true}) {
          check_head(s, channels, width, is_linear, random);
        }
      }
      check_flush(s, channels);
    }
  });
  return check::result();
}
