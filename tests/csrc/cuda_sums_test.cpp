// SPDX-License-Identifier: MIT
// Kernels that add up parts of values, run by the emulator: terms and readers of some channels
// alone, means that a float cannot hold, mixing weights that several terms have.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "kernel_rows.h"
#include "kernels/cuda/gradient_launches.h"

namespace {

using namespace nasfast::kernels::cuda;
using kernel_rows::Random;

template <typename T>
std::vector<T> random_numbers(int32_t count, uint64_t seed) {
  Random random(seed);
  std::vector<T> numbers;
  for (int32_t k = 0; k < count; ++k) numbers.push_back(static_cast<T>(random.uniform()));
  return numbers;
}

bool is_near(double actual, double expected, double tolerance = 1e-6) {
  return std::abs(actual - expected) <= tolerance * std::max(1.0, std::abs(expected));
}

// A term at an odd place, and one of a value's first channels, behind which lie numbers that are
// none.
void check_terms() {
  constexpr int32_t kChannels = 11, kPitch = pitch_of(kChannels), kPixels = 12;
  const auto wide = random_numbers<float>(kPixels * 8, 1), scale = random_numbers<float>(5, 2),
             shift = random_numbers<float>(5, 3);
  auto cut = random_numbers<float>(kPixels * 16, 4);
  for (size_t k = 0; k < cut.size(); ++k) {
    if (k % 16 >= 9) cut[k] = std::numeric_limits<float>::quiet_NaN();
  }
  const float weight = 0.5f;
  std::vector<TermRow> terms(2);
  terms[0] = {wide.data(), scale.data(), shift.data(), &weight, nullptr, 8, 3, 5, 1};
  terms[1] = {cut.data(), nullptr, nullptr, nullptr, nullptr, 16, 0, 9, 0};
  std::vector<float> kept(kPixels * kPitch);
  PassRow pass{};
  pass.num_terms = 2;
  pass.channels = kChannels;
  pass.k_chunk = 16;
  pass.sides = {1, 3, 4};
  pass.tile = tile_for(3, 4, kTileRows);
  pass.num_tiles = num_tiles(pass.tile, pass.sides);
  pass.layout = {-1, -1, -1, 0, -1, -1, 2 * 2 * depth_of(kChannels) * 4};
  pass.kept = kept.data();
  CHECK_EQ(
      launch_passes(Precision::kFp32, 16,
                    {&pass, terms.data(), nullptr, 1, pass.num_tiles, pass.layout.bytes}, nullptr),
      cudaSuccess);
  for (size_t at = 0; at < kept.size(); ++at) {
    const size_t pixel = at / kPitch, c = at % kPitch;
    double expected = c < 9 ? cut[pixel * 16 + c] : 0.0f;
    if (c >= 3 && c < 8) {
      const double z = wide[pixel * 8 + c - 3] * scale[c - 3] + shift[c - 3];
      expected += weight * std::max(z, 0.0);
    }
    CHECK(is_near(kept[at], expected));
  }
}

// Two terms with the same weight, of more channels than a warp has lanes: one with a batch norm
// whose mean times the sum cancels what was summed about that mean, as a float.
void check_mixing() {
  constexpr int32_t kChannels = 40, kDepth = depth_of(kChannels);
  auto scale = random_numbers<float>(kChannels, 1), shift = random_numbers<float>(kChannels, 2);
  auto sums = random_numbers<double>(2 * kDepth, 3), mean = random_numbers<double>(kChannels, 4);
  const auto others = random_numbers<double>(2 * kDepth, 5);
  sums[7] = 1e5;
  mean[7] = 1000 + 1.0 / 3;
  scale[7] = 2;
  shift[7] = 0;
  sums[kDepth + 7] = -static_cast<double>(static_cast<float>(mean[7])) * sums[7];
  float gradient = 0.25f;
  const std::vector<MixingRow> rows = {
      {sums.data(), scale.data(), shift.data(), mean.data(), &gradient, kChannels, kDepth},
      {others.data(), nullptr, nullptr, nullptr, &gradient, kChannels - 3, kDepth}};
  CHECK_EQ(launch_mixing(rows.data(), 2, nullptr), cudaSuccess);
  double expected = 0.25;
  for (size_t c = 0; c < kChannels; ++c) {
    const double about = static_cast<float>(mean[c]);
    expected += scale[c] * (sums[kDepth + c] + about * sums[c]) + shift[c] * sums[c];
    if (c < kChannels - 3) expected += others[kDepth + c];
  }
  CHECK(is_near(gradient, expected));
}

// A result that two passes read: one at an odd place with a mixing weight, one of its first
// channels alone, beside others.
struct Example {
  static constexpr int32_t kChannels = 12, kInputs = 3, kPixels = 20, kRead = 5;
  static constexpr double kWeight = 0.5;

  std::vector<float> value = random_numbers<float>(kPixels * 16, 1);
  std::vector<float> wide = random_numbers<float>(kPixels * 24, 2);    // gradient of 20 channels
  std::vector<float> narrow = random_numbers<float>(kPixels * 16, 3);  // of 16 channels
  std::vector<double> of_wide = random_numbers<double>(2 * 32, 4),
                      of_narrow = random_numbers<double>(2 * 16, 5);
  std::vector<double> statistics = random_numbers<double>(3 * 16, 6);  // mean, 1 / deviation, ...
  std::vector<float> input = random_numbers<float>(kPixels * 8, 7);

  Example() {
    for (size_t c = 0; c < 16; ++c) statistics[16 + c] += 2;
    statistics[2] = 1000 + 1.0 / 3;
    of_wide[2] = of_narrow[2] = 1e4;
  }
  double sum(size_t c, size_t which) const {
    return kWeight * of_wide[which * 32 + c] + (c < kRead ? of_narrow[which * 16 + c] : 0);
  }
  // About the mean itself.
  double dot(size_t c) const {
    const double mean = statistics[c];
    return sum(c, 1) + (static_cast<float>(mean) - mean) * sum(c, 0);
  }
  double gradient(size_t pixel, size_t c) const {
    const double mean = statistics[c], inverse = statistics[16 + c];
    const double reaching =
        kWeight * wide[pixel * 24 + 3 + c] + double{c < kRead ? narrow[pixel * 16 + 8 + c] : 0.0f};
    const double whitened = (value[pixel * 16 + c] - mean) * inverse;
    return inverse * (reaching - sum(c, 0) / kPixels - whitened * inverse * dot(c) / kPixels);
  }
};

void check_readers() {
  Example own;
  const float weight = Example::kWeight;
  const std::vector<ReaderRow> readers = {
      {own.wide.data(), own.of_wide.data(), &weight, 24, 32, 3, Example::kChannels},
      {own.narrow.data(), own.of_narrow.data(), nullptr, 16, 16, 8, Example::kRead}};
  std::vector<float> gamma(Example::kChannels), beta(gamma);
  ResultRow result{};
  result.num_readers = 2;
  result.value = own.value.data();
  result.statistics = own.statistics.data();
  result.gamma_gradient = gamma.data();
  result.beta_gradient = beta.data();
  result.channels = Example::kChannels;
  result.count = Example::kPixels;
  TermRow term{};
  term.data = own.input.data();
  term.pitch = 8;
  term.count = Example::kInputs;
  std::vector<float> partial(16 * 16);
  WeightGradientRow row{};
  row.num_terms = 1;
  row.channels = Example::kInputs;
  row.is_linear = 1;
  row.kernel = row.stride = 1;
  row.sides = {1, 4, 5};
  row.tile = tile_for(4, 5, kTileRows);
  row.parts = row.num_tiles = num_tiles(row.tile, row.sides);
  row.out_channels = Example::kChannels;
  row.partial = partial.data();
  CHECK_EQ(row.parts, 1);
  const WeightGradientSize size = weight_gradient_size(Precision::kFp32, row);
  CHECK_EQ(launch_weight_gradients(
               Precision::kFp32, {&row, &term, &result, readers.data(), 1, size.blocks, size.bytes},
               nullptr),
           cudaSuccess);
  for (size_t c = 0; c < Example::kChannels; ++c) {
    CHECK(is_near(gamma[c], own.statistics[16 + c] * own.dot(c)));
    CHECK(is_near(beta[c], own.sum(c, 0)));
    for (size_t in = 0; in < Example::kInputs; ++in) {
      double expected = 0, size_of = 0;
      for (size_t pixel = 0; pixel < Example::kPixels; ++pixel) {
        const double product = own.gradient(pixel, c) * own.input[pixel * 8 + in];
        expected += product;
        size_of += std::abs(product);
      }
      CHECK(std::abs(partial[c * 16 + in] - expected) <= 1e-5 * size_of);
    }
  }
}

}  // namespace

int main() {
  check_terms();
  check_mixing();
  check_readers();
  return check::result();
}
