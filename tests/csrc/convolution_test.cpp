// SPDX-License-Identifier: MIT
// Convolution and its statistics, on every instruction set, against their definitions.
#include <algorithm>
#include <string>

#include "kernel_rows.h"

namespace {

using namespace kernel_rows;
using nasfast::kernels::cpu::PairKernels;

struct Shape {
  int32_t kernel, stride, in, out, width, height;

  std::string name() const {
    return "conv" + std::to_string(kernel) + "/" + std::to_string(stride) + " " +
           std::to_string(in) + "->" + std::to_string(out) + " " + std::to_string(width) + "x" +
           std::to_string(height);
  }
};

// The definition, and the sum of the magnitudes of each result's terms.
struct Expected {
  Block out, magnitudes;

  Expected(const Shape& s, Block& in, const std::vector<double>& weight)
      : out((s.height + s.stride - 1) / s.stride, (s.width + s.stride - 1) / s.stride, s.out),
        magnitudes(out) {
    for (int32_t y = 0; y < out.height; ++y) {
      for (int32_t x = 0; x < out.width; ++x) {
        for (int32_t o = 0; o < s.out; ++o) add_window(s, in, weight, y, x, o);
      }
    }
  }

 private:
  void add_window(const Shape& s, Block& in, const std::vector<double>& weight, int32_t y,
                  int32_t x, int32_t o) {
    const int32_t pad = s.kernel / 2;
    double *sum = out.at(y, x, o), *magnitude = magnitudes.at(y, x, o);
    for (int32_t c = 0; c < s.in; ++c) {
      for (int32_t tap = 0; tap < s.kernel * s.kernel; ++tap) {
        const int32_t from_y = y * s.stride + tap / s.kernel - pad;
        const int32_t from_x = x * s.stride + tap % s.kernel - pad;
        if (from_y < 0 || from_y >= in.height || from_x < 0 || from_x >= in.width) continue;
        const double w = weight[static_cast<size_t>((o * s.in + c) * s.kernel * s.kernel + tap)];
        const double* from = in.at(from_y, from_x, c);
        for (int32_t i = 0; i < kBlockImages; ++i) {
          sum[i] += w * from[i];
          magnitude[i] += std::abs(w * from[i]);
        }
      }
    }
  }
};

// `pairs`: the kernels that give two rows at a time, or null.
Exact<std::byte> pack(const Setting& s, const Shape& shape, const std::vector<double>& weight,
                      const PairKernels* pairs) {
  Exact<float> numbers(static_cast<int64_t>(weight.size()));
  for (size_t i = 0; i < weight.size(); ++i) {
    numbers[static_cast<int64_t>(i)] = static_cast<float>(weight[i]);
  }
  const auto [kernel, stride, in, out, width, height] = shape;
  Exact<std::byte> packed(pairs != nullptr ? pairs->packed_bytes(in, out)
                                           : s.kernels.packed_bytes(in, out, kernel));
  if (pairs != nullptr) {
    pairs->pack_weight(numbers.get(), in, out, packed.get());
  } else {
    s.kernels.pack_weight(numbers.get(), in, out, kernel, packed.get());
  }
  return packed;
}

// Runs all rows of a block, moving the sums of every two of them.
std::vector<Row> convolve(const Setting& s, const Shape& shape, Block& in,
                          const std::vector<double>& weight, const BlockMoments* moments,
                          const PairKernels* pairs = nullptr) {
  const Exact<std::byte> packed = pack(s, shape, weight, pairs);
  const auto rows = rows_of(in, s.kernels.operand);
  const int32_t width = (shape.width + shape.stride - 1) / shape.stride;
  const int32_t height = (shape.height + shape.stride - 1) / shape.stride;
  const Exact<std::byte> scratch(pairs != nullptr ? pairs->scratch_bytes(shape.in, shape.out) : 0,
                                 std::byte{0xff});
  Moments pointers{};
  if (moments != nullptr) pointers = moments->get();
  std::vector<Row> out;
  for (int32_t y = 0; y < height; ++y) out.emplace_back(s.value(), width, shape.out, true);
  const int32_t at_once = pairs != nullptr ? 2 : 1;
  for (int32_t y = 0; y < height; y += at_once) {
    const auto taps = window(rows, y * shape.stride - shape.kernel / 2, shape.kernel + at_once - 1);
    const bool has_below = at_once == 2 && y + 1 < height;
    (pairs != nullptr ? pairs->convolve : s.kernels.convolve)(
        {taps.data(), packed.get(), out[static_cast<size_t>(y)].data(),
         moments != nullptr ? &pointers : nullptr, shape.width, width, shape.in, shape.out,
         shape.kernel, shape.stride, y == 0,
         has_below ? out[static_cast<size_t>(y) + 1].data() : nullptr, scratch.get()});
    const bool is_last = y + at_once >= height;
    if (moments != nullptr && (y % 2 == at_once % 2 || is_last)) {
      s.kernels.flush(pointers, shape.out);
    }
  }
  return out;
}

// The numbers of rows, whose statistics are those of what was stored.
Block block_of(const std::vector<Row>& rows, const Block& like) {
  Block block = like;
  for (int32_t y = 0; y < block.height; ++y) {
    for (int32_t x = 0; x < block.width; ++x) {
      for (int32_t c = 0; c < block.channels; ++c) {
        for (int32_t i = 0; i < kBlockImages; ++i) {
          block.at(y, x, c)[i] = rows[static_cast<size_t>(y)].get(x, c, i);
        }
      }
    }
  }
  return block;
}

// Mean and variance over the first `images` of each block, the definition.
void check_merged(const Setting& s, const std::string& what, std::vector<Block>& blocks,
                  const std::vector<BlockMoments>& moments, const std::vector<int32_t>& images,
                  double tolerance) {
  const int32_t channels = blocks[0].channels;
  const int64_t pixels = int64_t{blocks[0].height} * blocks[0].width;
  Exact<double> mean(channels, kNan), variance(channels, kNan);
  std::vector<Moments> pointers;
  for (const BlockMoments& m : moments) pointers.push_back(m.get());
  s.kernels.merge({pointers.data(), images.data(), static_cast<int32_t>(images.size()), channels,
                   pixels, mean.get(), variance.get()});
  for (int32_t c = 0; c < channels; ++c) {
    std::vector<double> all;
    for (size_t b = 0; b < blocks.size(); ++b) {
      for (int64_t p = 0; p < pixels; ++p) {
        const double* at = blocks[b].at(0, static_cast<int32_t>(p), c);
        all.insert(all.end(), at, at + images[b]);
      }
    }
    double sum = 0, square = 0, most = 0;
    for (const double x : all) sum += x, most = std::max(most, std::abs(x));
    const double expected = sum / static_cast<double>(all.size());
    for (const double x : all) square += (x - expected) * (x - expected);
    square /= static_cast<double>(all.size());
    const double room = 3e-6 * most;  // rounding of the numbers themselves
    const bool is_right = is_near(mean[c], expected, room) &&
                          is_near(variance[c], square, tolerance * square + room * room);
    if (is_right || check::failures > 20) continue;
    check::fail(what.c_str(), c,
                s.name() + ": got " + check::show(mean[c]) + ", " + check::show(variance[c]) +
                    ", want " + check::show(expected) + ", " + check::show(square));
  }
}

void check_shape(const Setting& s, const Shape& shape, Random& random,
                 const PairKernels* pairs = nullptr) {
  Block in = random_block(s.precision, shape.height, shape.width, shape.in, random);
  std::vector<double> weight(static_cast<size_t>(shape.in * shape.out * shape.kernel) *
                             static_cast<size_t>(shape.kernel));
  for (double& w : weight) w = stored(s.precision, random.uniform());
  Expected expected(shape, in, weight);
  std::vector<BlockMoments> moments;
  moments.emplace_back(shape.out);
  const auto out = convolve(s, shape, in, weight, &moments[0], pairs);
  const auto again = convolve(s, shape, in, weight, nullptr, pairs);
  const std::string name = shape.name();
  for (int32_t y = 0; y < expected.out.height; ++y) {
    const Row &row = out[static_cast<size_t>(y)], &other = again[static_cast<size_t>(y)];
    CHECK(row.is_padded());
    for (int32_t x = 0; x < expected.out.width; ++x) {
      for (int32_t c = 0; c < shape.out; ++c) {
        for (int32_t i = 0; i < kBlockImages; ++i) {
          s.expect(name.c_str(), row.get(x, c, i), expected.out.at(y, x, c)[i],
                   expected.magnitudes.at(y, x, c)[i]);
          CHECK(row.get(x, c, i) == other.get(x, c, i));
        }
      }
    }
  }
  std::vector<Block> blocks = {block_of(out, expected.out)};
  const auto images = static_cast<int32_t>(1 + random.below(kBlockImages));
  // Sums of a few channels over a few images: the rounding of the terms is what is left.
  check_merged(s, name, blocks, moments, {images}, 1e-3);
}

void check_shapes(const Setting& s) {
  Random random(1);
  const std::vector<int32_t> channels = {1, 2, 3, 4, 5, 8, 16, 17}, widths = {1, 2, 3, 4, 5, 7, 8};
  const std::vector<int32_t> heights = {1, 2, 7};
  size_t turn = 0;
  for (const int32_t kernel : {1, 3, 5}) {
    for (const int32_t stride : {1, 2}) {
      // Every pair of channels with some size, and every size with some pairs.
      for (const int32_t in : channels) {
        for (const int32_t out : channels) {
          ++turn;
          check_shape(s, {kernel, stride, in, out, widths[turn % 7], heights[turn % 3]}, random);
        }
      }
      for (const int32_t width : widths) {
        for (const int32_t height : heights) {
          check_shape(s, {kernel, stride, 1, 1, width, height}, random);
          check_shape(s, {kernel, stride, 3, 5, width, height}, random);
          check_shape(s, {kernel, stride, 8, 4, width, height}, random);
        }
      }
    }
  }
}

// The kernels that give two rows at a time, for the shapes they apply to.
void check_pairs(const Setting& s) {
  Random random(5);
  for (const int32_t in : {8, 9, 17}) {
    for (const int32_t out : {8, 10}) {
      const PairKernels* pairs = s.kernels.pairs_for(in, out, 3, 1, 32);
      if (pairs == nullptr) continue;
      for (const int32_t height : {1, 2, 5}) {
        for (const int32_t width : {1, 2, 3, 6, 7, 8, 9, 17}) {
          check_shape(s, {3, 1, in, out, width, height}, random, pairs);
        }
      }
    }
  }
}

// Blocks of different fills; the images that a block lacks hold NaN. Mean 1000, deviation 0.01.
void check_blocks(const Setting& s, bool is_far) {
  Random random(2);
  const Shape shape = {1, 1, 2, 5, 7, 6};
  const std::vector<int32_t> images = {16, 16, 1, 11};
  std::vector<double> weight(10, 1.0);
  std::vector<Block> blocks;
  std::vector<BlockMoments> moments;
  for (const int32_t count : images) {
    Block in = random_block(s.precision, shape.height, shape.width, 2, random);
    for (size_t k = 0; k < in.numbers.size(); ++k) {
      const bool is_mean = is_far && k / kBlockImages % 2 == 0;
      if (is_far) in.numbers[k] = is_mean ? 1000 : stored(s.precision, random.uniform() * 0.02);
      if (static_cast<int32_t>(k % kBlockImages) >= count) in.numbers[k] = kNan;
    }
    moments.emplace_back(shape.out);
    const auto out = convolve(s, shape, in, weight, &moments.back());
    blocks.push_back(block_of(out, Block(shape.height, shape.width, shape.out)));
  }
  check_merged(s, is_far ? "far from zero" : "blocks", blocks, moments, images, 1e-3);
}

// One image of one pixel: the mean is its value and the variance 0, exactly.
void check_single(const Setting& s) {
  Random random(3);
  Block in = random_block(s.precision, 1, 1, 3, random);
  for (size_t k = 0; k < in.numbers.size(); ++k) {
    if (k % kBlockImages != 0) in.numbers[k] = kNan;
  }
  std::vector<double> weight(9, 0.0);
  for (size_t c = 0; c < 3; ++c) weight[c * 4] = 1;
  BlockMoments moments(3);
  convolve(s, {1, 1, 3, 3, 1, 1}, in, weight, &moments);
  const Moments pointers = moments.get();
  const int32_t one = 1;
  Exact<double> mean(3, kNan), variance(3, kNan);
  s.kernels.merge({&pointers, &one, 1, 3, 1, mean.get(), variance.get()});
  for (int32_t c = 0; c < 3; ++c) {
    CHECK_EQ(mean[c], in.at(0, 0, c)[0]);
    CHECK_EQ(variance[c], 0.0);
  }
}

// Statistics of values in memory.
void check_measure(const Setting& s, int32_t channels, int32_t width, int32_t height) {
  Random random(4);
  std::vector<Block> blocks;
  std::vector<BlockMoments> moments;
  const std::vector<int32_t> images = {16, 3};
  for (size_t b = 0; b < images.size(); ++b) {
    Block block = random_block(s.precision, height, width, channels, random);
    const auto rows = rows_of(block, s.value());
    moments.emplace_back(channels);
    const Moments pointers = moments.back().get();
    for (const Row& row : rows) {
      s.kernels.measure(
          {row.data(), width, channels, nullptr, nullptr, &pointers, nullptr, &row == rows.data()});
    }
    s.kernels.flush(pointers, channels);
    blocks.push_back(std::move(block));
  }
  check_merged(s, "measure", blocks, moments, images, 1e-4);
}

}  // namespace

int main() {
  for_every_setting([](const Setting& s) {
    check_shapes(s);
    check_pairs(s);
    check_blocks(s, false);
    check_blocks(s, true);
    check_single(s);
    for (const int32_t channels : {1, 2, 3, 4, 5, 17}) {
      check_measure(s, channels, 1, 1);
      check_measure(s, channels, 5, 3);
    }
  });
  return check::result();
}
