// SPDX-License-Identifier: MIT
// Gradients of convolution weights, and of inputs at stride 2, on every instruction set, against
// their definitions.
#include <algorithm>
#include <string>

#include "kernel_rows.h"
#include "kernels/cpu/gradients.h"

namespace {

using namespace kernel_rows;

struct Shape {
  int32_t kernel, input_kernel, stride, in, out, width, height, images;

  int32_t out_width() const { return (width + stride - 1) / stride; }
  int32_t out_height() const { return (height + stride - 1) / stride; }
  std::string name() const {
    return "conv" + std::to_string(kernel) + " of " + std::to_string(input_kernel) + "/" +
           std::to_string(stride) + " " + std::to_string(in) + "->" + std::to_string(out) + " " +
           std::to_string(width) + "x" + std::to_string(height) + ", " + std::to_string(images) +
           " images";
  }
};

// Calls visit(out_y, out_x, y, x) for the pixels that a tap takes inside the image.
template <typename Visit>
void for_tap(const Shape& s, int32_t tap, const Visit& visit) {
  for (int32_t out_y = 0; out_y < s.out_height(); ++out_y) {
    const int32_t y = out_y * s.stride + tap / s.kernel - s.kernel / 2;
    if (y < 0 || y >= s.height) continue;
    for (int32_t out_x = 0; out_x < s.out_width(); ++out_x) {
      const int32_t x = out_x * s.stride + tap % s.kernel - s.kernel / 2;
      if (x >= 0 && x < s.width) visit(out_y, out_x, y, x);
    }
  }
}

// What a block lacks to 16 images holds NaN.
Block partial_block(const Setting& s, int32_t height, int32_t width, int32_t channels,
                    int32_t images, Random& random) {
  Block block = random_block(s.precision, height, width, channels, random);
  for (size_t k = 0; k < block.numbers.size(); ++k) {
    if (static_cast<int32_t>(k % kBlockImages) >= images) block.numbers[k] = kNan;
  }
  return block;
}

// Adds the rows of a block, band by band.
Exact<float> weight_sums(const Setting& s, const Shape& shape, Block& in, Block& gradient,
                         float before, Random& random) {
  const auto& kernels = *s.kernels.gradients;
  const auto [kernel, input_kernel, stride, channels, out, width, height, images] = shape;
  const int32_t out_width = shape.out_width();
  const auto in_rows = rows_of(in, s.kernels.operand);
  const auto gradient_rows = rows_of(gradient, s.kernels.operand);
  Exact<float> sums(int64_t{padded_channels(channels)} * padded_channels(out) * kernel * kernel,
                    before);
  for (int32_t y = 0; y < shape.out_height();) {
    const auto left = static_cast<uint32_t>(shape.out_height() - y);
    const auto rows = static_cast<int32_t>(1 + random.below(left));
    const auto own = window(gradient_rows, y, rows);
    const int32_t read = (rows - 1) * stride + input_kernel;
    const auto around = window(in_rows, y * stride - input_kernel / 2, read);
    const Exact<std::byte> packed(kernels.packed_gradient_bytes(rows, out_width, out),
                                  std::byte{0xff});
    const Exact<std::byte> input(
        kernels.packed_input_bytes(read, width, out_width, channels, input_kernel),
        std::byte{0xff});
    kernels.pack_gradient(
        {own.data(), packed.get(), rows, out_width, out, images, 1, 1, out_width});
    kernels.pack_input({around.data(), input.get(), read, width, channels, images, input_kernel,
                        stride, out_width});
    kernels.weight({packed.get(), input.get(), sums.get(), rows, out_width, width, channels, out,
                    kernel, input_kernel, stride});
    y += rows;
  }
  return sums;
}

void check_weight(const Setting& s, const Shape& shape, Random& random) {
  constexpr float kBefore = 0.25f;
  Block in = partial_block(s, shape.height, shape.width, shape.in, shape.images, random);
  Block gradient =
      partial_block(s, shape.out_height(), shape.out_width(), shape.out, shape.images, random);
  const Exact<float> sums = weight_sums(s, shape, in, gradient, kBefore, random);
  const std::string what = shape.name();
  int64_t k = 0;
  const int32_t taps = shape.kernel * shape.kernel;
  // [out / 4][in / 4][taps][4][4]; channels beyond get nothing.
  for (int32_t group = 0; group < padded_channels(shape.out); group += 4) {
    for (int32_t in_group = 0; in_group < padded_channels(shape.in); in_group += 4) {
      for (int32_t tap = 0; tap < taps; ++tap) {
        for (int32_t at = 0; at < 16; ++at, ++k) {
          const int32_t o = group + at / 4, c = in_group + at % 4;
          double sum = kBefore, magnitude = kBefore;
          if (o < shape.out && c < shape.in) {
            for_tap(shape, tap, [&](int32_t out_y, int32_t out_x, int32_t y, int32_t x) {
              const double *g = gradient.at(out_y, out_x, o), *value = in.at(y, x, c);
              for (int32_t i = 0; i < shape.images; ++i) {
                sum += g[i] * value[i];
                magnitude += std::abs(g[i] * value[i]);
              }
            });
          }
          // A float sum, whatever the storage.
          if (is_near(sums[k], sum, s.tolerance.sum * magnitude)) continue;
          if (check::failures > 20) return;
          check::fail(what.c_str(), static_cast<int>(k),
                      s.name() + ": got " + check::show(sums[k]) + ", want " + check::show(sum));
        }
      }
    }
  }
}

void check_weights(const Setting& s) {
  Random random(1);
  const std::vector<int32_t> channels = {1, 2, 3, 4, 5, 8, 9}, heights = {1, 2, 3, 6},
                             images = {16, 1, 15, 7};
  size_t turn = 0;
  for (const int32_t stride : {1, 2}) {
    for (const int32_t input_kernel : {1, 3, 5}) {
      for (int32_t kernel = 1; kernel <= input_kernel; kernel += 2) {
        for (int32_t width = 1; width <= 17; ++width) {
          for (int32_t k = 0; k < 3; ++k, ++turn) {
            check_weight(s,
                         {kernel, input_kernel, stride, channels[turn % 7], channels[turn / 7 % 7],
                          width, heights[turn % 4], images[turn / 4 % 4]},
                         random);
          }
        }
      }
    }
  }
}

// out[y] gets from every gradient that read it: convolution from `out` to `in` channels of the
// shape, of stride 2.
void check_transposed(const Setting& s, const Shape& shape, Random& random) {
  const auto& kernels = *s.kernels.gradients;
  const int32_t kernel = shape.kernel, taps = kernel * kernel;
  Block gradient =
      random_block(s.precision, shape.out_height(), shape.out_width(), shape.out, random);
  // [in, out, taps], as the kernel takes it.
  Exact<float> weight(int64_t{shape.in} * shape.out * taps);
  for (int64_t k = 0; k < weight.size(); ++k) {
    weight[k] = static_cast<float>(stored(s.precision, random.uniform()));
  }
  Block expected(shape.height, shape.width, shape.in), magnitudes = expected;
  for (int32_t tap = 0; tap < taps; ++tap) {
    for_tap(shape, tap, [&](int32_t out_y, int32_t out_x, int32_t y, int32_t x) {
      for (int32_t c = 0; c < shape.in; ++c) {
        for (int32_t o = 0; o < shape.out; ++o) {
          const double w = weight[(int64_t{c} * shape.out + o) * taps + tap];
          for (int32_t i = 0; i < kBlockImages; ++i) {
            const double term = w * gradient.at(out_y, out_x, o)[i];
            expected.at(y, x, c)[i] += term;
            magnitudes.at(y, x, c)[i] += std::abs(term);
          }
        }
      }
    });
  }
  const Exact<std::byte> packed(kernels.packed_bytes(shape.out, shape.in, kernel));
  kernels.pack_weight(weight.get(), shape.out, shape.in, kernel, packed.get());
  const auto rows = rows_of(gradient, s.kernels.operand);
  const std::string what = "transposed " + shape.name();
  for (int32_t y = 0; y < shape.height; ++y) {
    std::vector<const void*> taken;
    for (int32_t dy = 0; dy < kernel; ++dy) {
      const int32_t t = y + kernel / 2 - dy;
      const bool exists = t >= 0 && t % 2 == 0 && t / 2 < shape.out_height();
      taken.push_back(exists ? rows[static_cast<size_t>(t / 2)].data() : nullptr);
    }
    const Row out(s.value(), shape.width, shape.in, true);
    kernels.convolve_transposed({taken.data(), packed.get(), out.data(), nullptr, shape.out_width(),
                                 shape.width, shape.out, shape.in, kernel, 2, false});
    CHECK(out.is_padded());
    for_each(shape.width, shape.in, [&](int32_t x, int32_t c, int32_t i) {
      s.expect(what.c_str(), out.get(x, c, i), expected.at(y, x, c)[i], magnitudes.at(y, x, c)[i]);
    });
  }
}

void check_all_transposed(const Setting& s) {
  Random random(2);
  const std::vector<int32_t> channels = {1, 2, 3, 4, 5, 8, 17};
  size_t turn = 0;
  for (const int32_t kernel : {1, 3, 5}) {
    for (int32_t width = 1; width <= 17; ++width) {
      for (const int32_t height : {1, 2, 3, 6}) {
        const int32_t in = channels[turn % 7], out = channels[turn / 7 % 7];
        check_transposed(s, {kernel, kernel, 2, in, out, width, height, 16}, random);
        ++turn;
      }
    }
  }
}

}  // namespace

int main() {
  for_every_setting([](const Setting& s) {
    check_weights(s);
    check_all_transposed(s);
  });
  return check::result();
}
