// SPDX-License-Identifier: MIT
// Kernels of windows without weights, there and back, run by the emulator: ties and numbers that
// are none, which no network shows (behind a batch norm everything would be NaN).
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "kernel_rows.h"
#include "kernels/cuda/gradient_launches.h"

namespace {

using namespace nasfast::kernels::cuda;
using kernel_rows::Random;

constexpr int32_t kChannels = 3, kPitch = pitch_of(kChannels), kDepth = depth_of(kChannels);
constexpr Sides kSides = {2, 5, 7};
constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN();

struct Value {
  Sides sides;
  std::vector<float> numbers;

  explicit Value(const Sides& of)
      : sides(of), numbers(static_cast<size_t>(of.images * of.height * of.width * kPitch)) {}
  float& at(const Pixel& p, int32_t channel) {
    return numbers[static_cast<size_t>(index_of(sides, p) * kPitch + channel)];
  }
  template <typename Visit>
  void for_each(const Visit& visit) const {
    for (int32_t i = 0; i < sides.images * sides.height * sides.width; ++i) {
      const Pixel p = {i / sides.width / sides.height, i / sides.width % sides.height,
                       i % sides.width};
      for (int32_t c = 0; c < kChannels; ++c) visit(p, c);
    }
  }
};

Value random_value(const Sides& sides, uint64_t seed) {
  Value value(sides);
  Random random(seed);
  value.for_each(
      [&](const Pixel& p, int32_t c) { value.at(p, c) = static_cast<float>(random.uniform()); });
  return value;
}

// Of few different numbers, and the first pixel, the last one and some others are none.
Value tied_value() {
  Value value(kSides);
  Random random(3);
  value.for_each([&](const Pixel& p, int32_t c) {
    value.at(p, c) = static_cast<float>(random.below(4)) - 2.0f;
    if (c > 0 && random.below(12) == 0) value.at(p, c) = kNoNumber;
  });
  value.at({0, 0, 0}, 1) = value.at({1, kSides.height - 1, kSides.width - 1}, 1) = kNoNumber;
  return value;
}

struct Window {
  Pixel first, last;
};

// Windows of stride 1 around a pixel, and of stride 2.
Window around(const Pixel& p, int32_t kernel) {
  const int32_t pad = kernel / 2;
  return {{p.image, p.y - pad, p.x - pad}, {p.image, p.y + pad, p.x + pad}};
}
Window halving(const Pixel& p, int32_t padding) {
  const Pixel first = {p.image, 2 * p.y - padding, 2 * p.x - padding};
  return {first, {p.image, first.y + 1, first.x + 1}};
}
Sides halved_by(int32_t padding) {
  return {kSides.images, (kSides.height + 1 + padding) / 2, (kSides.width + 1 + padding) / 2};
}

std::vector<Pixel> pixels_of(const Window& window) {
  std::vector<Pixel> pixels;
  for (int32_t y = window.first.y; y <= window.last.y; ++y) {
    for (int32_t x = window.first.x; x <= window.last.x; ++x) {
      const Pixel p = {window.first.image, y, x};
      if (has(kSides, p)) pixels.push_back(p);
    }
  }
  return pixels;
}

// Where the maximum is: the first NaN, otherwise the first of the largest.
Pixel most_of(Value& value, const Window& window, int32_t channel) {
  const auto pixels = pixels_of(window);
  Pixel best = pixels[0];
  for (const Pixel& p : pixels) {
    const float most = value.at(best, channel), number = value.at(p, channel);
    if (!std::isnan(most) && (std::isnan(number) || number > most)) best = p;
  }
  return best;
}

double mean_of(Value& value, const Window& window, int32_t channel) {
  const auto pixels = pixels_of(window);
  double sum = 0;
  for (const Pixel& p : pixels) sum += value.at(p, channel);
  return sum / static_cast<double>(pixels.size());
}

bool is_near(double actual, double expected) {
  if (std::isnan(expected)) return std::isnan(actual);
  return std::abs(actual - expected) <= 1e-5;
}

void expect(const char* what, Value& actual, Value& expected) {
  int32_t wrong = 0;
  actual.for_each([&](const Pixel& p, int32_t c) {
    wrong += !is_near(double{actual.at(p, c)}, double{expected.at(p, c)});
  });
  if (wrong > 0) check::fail(what, 0, std::to_string(wrong) + " numbers are wrong");
}

struct Setting {
  int32_t most_rows, kernel, padding;

  Tile tile() const { return tile_for(kSides.height, kSides.width, most_rows); }
};

constexpr int32_t kRowBytes = shared_pitch(Precision::kFp32, kDepth);

TermRow term_of(const Value& value) {
  TermRow term{};
  term.data = value.numbers.data();
  term.pitch = kPitch;
  term.count = kChannels;
  return term;
}

void check_forward(const Setting& s) {
  Value value = tied_value();
  const TermRow term = term_of(value);
  Value most(kSides), mean(kSides), half(halved_by(s.padding));
  const std::vector<ConsumerRow> consumers = {
      {Task::kMaxPool, s.kernel, 1, kChannels, most.numbers.data(), nullptr, nullptr},
      {Task::kAvgPool, s.kernel, 1, kChannels, mean.numbers.data(), nullptr, nullptr},
      {Task::kMaxHalve, 2, 1, kChannels, half.numbers.data(), nullptr, nullptr}};
  PassRow pass{};
  pass.num_terms = 1;
  pass.num_consumers = static_cast<int32_t>(consumers.size());
  pass.channels = kChannels;
  pass.halo = s.kernel / 2;
  pass.padding = s.padding;
  pass.k_chunk = kDepth;
  pass.sides = kSides;
  pass.tile = s.tile();
  pass.num_tiles = num_tiles(pass.tile, kSides);
  const int32_t terms = pass.tile.padded_rows(pass.halo) * kRowBytes;
  pass.layout = {-1, 0, -1, terms, -1, -1, terms + 2 * kDepth * 4};
  CHECK_EQ(launch_passes(Precision::kFp32, 16,
                         {&pass, &term, consumers.data(), 1, pass.num_tiles, pass.layout.bytes},
                         nullptr),
           cudaSuccess);
  Value wants_most(kSides), wants_mean(kSides), wants_half(half.sides);
  most.for_each([&](const Pixel& p, int32_t c) {
    wants_most.at(p, c) = value.at(most_of(value, around(p, s.kernel), c), c);
    wants_mean.at(p, c) = static_cast<float>(mean_of(value, around(p, s.kernel), c));
  });
  half.for_each([&](const Pixel& p, int32_t c) {
    wants_half.at(p, c) = value.at(most_of(value, halving(p, s.padding), c), c);
  });
  expect("maxima", most, wants_most);
  expect("means", mean, wants_mean);
  expect("halved by maxima", half, wants_half);
}

void check_back(const Setting& s) {
  Value value = tied_value();
  const TermRow term = term_of(value);
  // Gradients of the maxima, the means, and the halved value.
  Value of_most = random_value(kSides, 1), of_mean = random_value(kSides, 2),
        of_half = random_value(halved_by(s.padding), 3), gradient(kSides);
  std::vector<ReaderRow> readers;
  std::vector<ResultRow> results;
  for (const Value* of : {&of_most, &of_mean, &of_half}) {
    readers.push_back({of->numbers.data(), nullptr, nullptr, kPitch, kDepth, 0, kChannels});
    ResultRow result{};
    result.first_reader = static_cast<int32_t>(results.size());
    result.num_readers = 1;
    result.channels = kChannels;
    results.push_back(result);
  }
  const std::vector<ShareRow> shares = {{Share::kMaxPool, s.kernel, 0, nullptr},
                                        {Share::kAvgPool, s.kernel, 1, nullptr},
                                        {Share::kMaxHalve, 2, 2, nullptr}};
  GradientRow row{};
  row.num_terms = 1;
  row.num_shares = static_cast<int32_t>(shares.size());
  row.channels = kChannels;
  row.raw_halo = s.kernel - 1;
  row.padding = s.padding;
  row.k_chunk = kDepth;
  row.sides = kSides;
  row.tile = s.tile();
  row.num_tiles = num_tiles(row.tile, kSides);
  row.gradient = gradient.numbers.data();
  std::vector<float> of_tiles(static_cast<size_t>(row.num_tiles * 2 * kDepth));
  row.sums = of_tiles.data();
  const int32_t total = row.tile.padded_rows(row.raw_halo) * kRowBytes;
  const int32_t terms = total + row.tile.rows() * (kDepth + 4) * 4;
  const int32_t sums = terms + 2 * kDepth * 4;
  row.layout = {0, -1, total, terms, -1, -1, sums, sums + 2 * kThreads * 4};
  CHECK_EQ(launch_gradients(Precision::kFp32, 16,
                            {&row, &term, shares.data(), results.data(), readers.data(), 1,
                             row.num_tiles, row.layout.bytes},
                            nullptr),
           cudaSuccess);
  Value wanted(kSides);
  of_most.for_each([&](const Pixel& p, int32_t c) {
    const Window window = around(p, s.kernel);
    wanted.at(most_of(value, window, c), c) += of_most.at(p, c);
    const auto pixels = pixels_of(window);
    for (const Pixel& q : pixels) {
      wanted.at(q, c) += of_mean.at(p, c) / static_cast<float>(pixels.size());
    }
  });
  of_half.for_each([&](const Pixel& p, int32_t c) {
    wanted.at(most_of(value, halving(p, s.padding), c), c) += of_half.at(p, c);
  });
  expect("gradient", gradient, wanted);
}

}  // namespace

int main() {
  for (const int32_t most_rows : {16, 128}) {
    for (const int32_t kernel : {3, 5}) {
      for (const int32_t padding : {0, 1}) {
        check_forward({most_rows, kernel, padding});
        check_back({most_rows, kernel, padding});
      }
    }
  }
  return check::result();
}
