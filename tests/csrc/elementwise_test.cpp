// SPDX-License-Identifier: MIT
// The kernels without a convolution, on every instruction set, against their definitions.
#include <algorithm>
#include <string>

#include "kernel_rows.h"

namespace {

using namespace kernel_rows;
using nasfast::kernels::cpu::Term;

const std::vector<int32_t> kChannels = {1, 2, 3, 4, 5, 8, 16, 17};

// Keeps NaN.
double relu(double x) { return x <= 0 ? 0 : x; }

enum class Into { kRaw, kOperand, kBoth, kInPlace };

void check_combine(const Setting& s, int32_t num_terms, int32_t channels, int32_t width, Into into,
                   bool is_linear, Random& random) {
  const Exact<float> shift = per_channel(channels, random, 0);
  std::vector<Block> blocks;
  std::vector<std::vector<Row>> rows;
  std::vector<Exact<float>> scales;
  std::vector<Term> terms;
  for (int32_t t = 0; t < num_terms; ++t) {
    blocks.push_back(random_block(s.precision, 1, width, channels, random));
    if (t == 0) blocks[0].at(0, width - 1, channels - 1)[3] = kNan;
    rows.push_back(rows_of(blocks.back(), s.value()));
    scales.push_back(per_channel(channels, random, 2));
    terms.push_back({rows.back()[0].data(), scales.back().get()});
  }
  Block raw(1, width, channels), positive(1, width, channels);
  double most = 0;  // sum of the terms' magnitudes
  for_each(width, channels, [&](int32_t x, int32_t c, int32_t i) {
    double sum = shift[c], magnitude = std::abs(sum);
    for (size_t t = 0; t < terms.size(); ++t) {
      sum += blocks[t].at(0, x, c)[i] * scales[t][c];
      if (!std::isnan(sum)) magnitude += std::abs(blocks[t].at(0, x, c)[i] * scales[t][c]);
    }
    raw.at(0, x, c)[i] = sum;
    positive.at(0, x, c)[i] = is_linear ? sum : relu(sum);
    most = std::max(most, magnitude);
  });
  const Row raw_row(s.value(), width, channels, true),
      operand(s.kernels.operand, width, channels, true);
  const Row& result = into == Into::kInPlace ? rows[0][0] : raw_row;
  s.kernels.combine({terms.data(), shift.get(), num_terms, width, channels,
                     into == Into::kOperand ? nullptr : result.data(),
                     into == Into::kRaw ? nullptr : operand.data(), is_linear});
  const std::string what = "combine " + std::to_string(num_terms) + " terms";
  if (into != Into::kOperand) expect_row(s, what + ", raw", result, raw, 0, most);
  if (into != Into::kRaw) expect_row(s, what + ", operand", operand, positive, 0, most);
}

void check_combines(const Setting& s) {
  Random random(1);
  for (const int32_t num_terms : {0, 1, 2, 3, 5}) {
    for (const int32_t channels : kChannels) {
      for (const int32_t width : {1, 2, 5}) {
        for (const Into into : {Into::kRaw, Into::kOperand, Into::kBoth, Into::kInPlace}) {
          if (into == Into::kInPlace && num_terms == 0) continue;
          check_combine(s, num_terms, channels, width, into, false, random);
          if (into != Into::kOperand) continue;  // linear is what makes no raw sum beside it
          check_combine(s, num_terms, channels, width, into, true, random);
        }
      }
    }
  }
}

// Mean or maximum of the window around a pixel.
double pooled(Block& in, int32_t kernel, bool is_max, int32_t y, int32_t x, int32_t c, int32_t i) {
  double sum = 0, most = -std::numeric_limits<double>::infinity();
  int32_t count = 0;
  for (int32_t v = std::max(0, y - kernel / 2); v <= std::min(in.height - 1, y + kernel / 2); ++v) {
    for (int32_t u = std::max(0, x - kernel / 2); u <= std::min(in.width - 1, x + kernel / 2);
         ++u) {
      const double number = in.at(v, u, c)[i];
      sum += number;
      most = std::isnan(number) || std::isnan(most) ? kNan : std::max(most, number);
      ++count;
    }
  }
  return is_max ? most : sum / count;
}

void check_pool(const Setting& s, int32_t kernel, bool is_max, int32_t channels, int32_t width,
                int32_t height, Random& random) {
  Block in = random_block(s.precision, height, width, channels, random);
  // NaN at every place of one image in turn, and infinity.
  const auto place = [&](double number) {
    in.at(static_cast<int32_t>(random.below(static_cast<uint32_t>(height))),
          static_cast<int32_t>(random.below(static_cast<uint32_t>(width))),
          static_cast<int32_t>(random.below(static_cast<uint32_t>(channels))))[random.below(16)] =
        number;
  };
  place(kNan);
  place(-std::numeric_limits<double>::infinity());
  const auto rows = rows_of(in, s.value());
  Block expected(height, width, channels);
  const std::string what = (is_max ? "max_pool" : "avg_pool") + std::to_string(kernel);
  for (int32_t y = 0; y < height; ++y) {
    const auto taps = window(rows, y - kernel / 2, kernel);
    const Row out(s.value(), width, channels, true);
    (is_max ? s.kernels.max_pool
            : s.kernels.avg_pool)({taps.data(), out.data(), width, channels, kernel});
    for_each(width, channels, [&](int32_t x, int32_t c, int32_t i) {
      expected.at(y, x, c)[i] = pooled(in, kernel, is_max, y, x, c, i);
    });
    expect_row(s, what, out, expected, y, channels + 1);
  }
}

void check_pools(const Setting& s) {
  Random random(2);
  for (const int32_t kernel : {1, 3, 5}) {
    for (const int32_t width : {1, 2, 3, 4, 5, 8}) {
      for (const int32_t height : {1, 2, 7}) {
        for (const int32_t channels : {1, 2, 3, 5}) {
          check_pool(s, kernel, false, channels, width, height, random);
          check_pool(s, kernel, true, channels, width, height, random);
        }
      }
    }
  }
}

void check_halve(const Setting& s, int32_t channels, int32_t width, int32_t height,
                 Random& random) {
  Block in = random_block(s.precision, height, width, channels, random);
  in.at(0, 0, channels - 1)[15] = kNan;
  const auto rows = rows_of(in, s.value());
  Block expected((height + 1) / 2, (width + 1) / 2, channels);
  for (int32_t y = 0; y < expected.height; ++y) {
    const auto pair = window(rows, 2 * y, 2);
    const Row out(s.kernels.operand, expected.width, channels, true);
    s.kernels.halve({{pair[0], pair[1]}, out.data(), width, channels});
    for_each(expected.width, channels, [&](int32_t x, int32_t c, int32_t i) {
      double sum = 0;
      int32_t count = 0;
      for (int32_t v = 2 * y; v < std::min(height, 2 * y + 2); ++v) {
        for (int32_t u = 2 * x; u < std::min(width, 2 * x + 2); ++u, ++count) {
          sum += in.at(v, u, c)[i];
        }
      }
      expected.at(y, x, c)[i] = sum / count;
    });
    expect_row(s, "halve", out, expected, y, channels + 1);
  }
}

void check_accumulate(const Setting& s, int32_t channels, int32_t width, bool is_linear,
                      Random& random) {
  Block in = random_block(s.precision, 2, width, channels, random);
  in.at(1, width - 1, channels - 1)[7] = kNan;
  const Exact<float> scale = per_channel(channels, random, 2);
  const Exact<float> shift = per_channel(channels, random, 0);
  Exact<double> sums(padded_channels(channels) * kBlockImages, 0.5);
  for (const Row& row : rows_of(in, s.value())) {
    s.kernels.accumulate({row.data(), width, channels, scale.get(), shift.get(), nullptr,
                          sums.get(), false, is_linear});
  }
  for_each(1, channels, [&](int32_t, int32_t c, int32_t i) {
    double sum = 0.5, magnitude = 0.5;
    for (int32_t k = 0; k < 2 * width; ++k) {
      const double x = in.at(0, k, c)[i];
      const double z = x * scale[c] + shift[c];
      sum += is_linear ? z : relu(z);
      magnitude += std::isnan(x) ? 0 : std::abs(x * scale[c]) + std::abs(shift[c]);
    }
    const double room = s.tolerance.sum * magnitude;
    if (!is_near(sums[c * kBlockImages + i], sum, room)) CHECK_EQ(sums[c * kBlockImages + i], sum);
  });
}

void check_load_images(const Setting& s, int32_t count, int32_t channels, int32_t width,
                       int32_t height, Random& random) {
  const int64_t pixels = int64_t{width} * height;
  Exact<float> images(count * channels * pixels);
  for (int64_t i = 0; i < images.size(); ++i) images[i] = static_cast<float>(random.uniform());
  const Row out(s.kernels.operand, pixels, channels, true);
  s.kernels.load_images(images.get(), count, channels, height, width, out.data());
  CHECK(out.is_padded());
  for_each(static_cast<int32_t>(pixels), channels, [&](int32_t pixel, int32_t c, int32_t i) {
    const double number =
        i < count ? stored(s.precision, images[(i * channels + c) * pixels + pixel]) : 0;
    CHECK_EQ(out.get(pixel, c, i), number);
  });
}

// Rounding to bfloat16: ties to even, overflow to infinity, and every kind of number.
void check_rounding(const Setting& s) {
  const std::vector<float> numbers = {
      1.0f, -1.0f, 1.00390625f, 1.01171875f, -1.00390625f,  3.3e38f,       3.4e38f,       -3.4e38f,
      0.0f, 1e-3f, 65535.0f,    -1e30f,      0x1.fe0001p0f, 0x1.010001p0f, 0x1.00ffffp0f, 1e-30f};
  Exact<float> images(kBlockImages);
  std::copy(numbers.begin(), numbers.end(), images.get());
  const Row out(s.kernels.operand, 1, 1, true);
  s.kernels.load_images(images.get(), kBlockImages, 1, 1, 1, out.data());
  Exact<float> shift(padded_channels(1));
  for (int32_t i = 0; i < kBlockImages; ++i) {
    const double wanted = stored(s.precision, numbers[static_cast<size_t>(i)]);
    CHECK_EQ(out.get(0, 0, i), wanted);
    shift[0] = numbers[static_cast<size_t>(i)];
    const Row raw(s.value(), 1, 1, true), operand(s.kernels.operand, 1, 1, true);
    s.kernels.combine({nullptr, shift.get(), 0, 1, 1, raw.data(), operand.data()});
    CHECK_EQ(raw.get(0, 0, i), wanted);
    CHECK_EQ(operand.get(0, 0, i), relu(wanted));
  }
}

}  // namespace

int main() {
  for_every_setting([](const Setting& s) {
    Random random(3);
    check_combines(s);
    check_pools(s);
    check_rounding(s);
    for (const int32_t channels : kChannels) {
      for (const int32_t width : {1, 2, 3, 4, 5, 7, 8}) {
        for (const int32_t height : {1, 2, 7}) {
          check_halve(s, channels, width, height, random);
          check_load_images(s, 1 + width * 2, channels, width, height, random);
        }
        check_load_images(s, 16, channels, width, 2, random);
        for (const bool is_linear : {false, true}) {
          check_accumulate(s, channels, width, is_linear, random);
        }
      }
    }
  });
  return check::result();
}
