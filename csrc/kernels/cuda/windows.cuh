// SPDX-License-Identifier: MIT
// What a pass computes of its sum without weights: pools, means of 2x2 pixels, moments.
#pragma once

#include "kernels/cuda/finish.cuh"

namespace nasfast::kernels::cuda {

template <Precision P>
static __device__ __forceinline__ void load_pixel(const Operand& raw, const Pixel& in_tile,
                                                  int32_t channel, float (&out)[kVector]) {
  using Type = typename Numbers<P>::Type;
  const std::byte* row = raw.data + raw.tile.padded_row(in_tile, raw.halo) * raw.pitch;
  Numbers<P>::load8(reinterpret_cast<const Type*>(row) + channel, out);
}

// The larger one, and NaN where there is one.
static __device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// Means or maxima over windows around every pixel, of what lies inside the image.
template <Precision P, bool kIsMax>
static __device__ __forceinline__ void pool(const Operand& raw, const Result& result,
                                            int32_t kernel, int32_t channels, void* out) {
  using Type = typename Numbers<P>::Type;
  const int32_t pitch = pitch_of(channels), vectors = pitch / kVector, pad = kernel / 2;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < result.tile.rows() * vectors;
       i += kThreads) {
    const int32_t row = i / vectors, channel = i % vectors * kVector;
    if (!result.has_row(row)) continue;
    const Pixel in_tile = result.tile.pixel(row), p = result.pixel(row);
    float total[kVector];
    int32_t count = 0;
    for (int32_t dy = -pad; dy <= pad; ++dy) {
      for (int32_t dx = -pad; dx <= pad; ++dx) {
        if (!has(result.sides, {p.image, p.y + dy, p.x + dx})) continue;
        float numbers[kVector];
        load_pixel<P>(raw, {in_tile.image, in_tile.y + dy, in_tile.x + dx}, channel, numbers);
#pragma unroll
        for (int32_t k = 0; k < kVector; ++k) {
          if (count == 0) {
            total[k] = numbers[k];
          } else {
            total[k] = kIsMax ? larger(total[k], numbers[k]) : total[k] + numbers[k];
          }
        }
        ++count;
      }
    }
    if (!kIsMax) {
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) total[k] /= static_cast<float>(count);
    }
    Numbers<P>::store8(static_cast<Type*>(out) + index_of(result.sides, p) * pitch + channel,
                       total);
  }
}

// Means of 2x2 pixels, of those that there are, as the operand of a convolution, which waits for
// all threads before it reads them.
template <Precision P>
static __device__ __forceinline__ void average_quarters(const Operand& raw, const Result& halved,
                                                        const Sides& sides, std::byte* out) {
  const int32_t vectors = raw.depth / kVector;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < halved.tile.rows() * vectors;
       i += kThreads) {
    const int32_t row = i / vectors, channel = i % vectors * kVector;
    const Pixel in_tile = halved.tile.pixel(row), p = halved.pixel(row);
    float total[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    int32_t count = 0;
    for (int32_t dy = 0; dy < 2; ++dy) {
      for (int32_t dx = 0; dx < 2; ++dx) {
        if (!has(sides, {p.image, p.y * 2 + dy, p.x * 2 + dx})) continue;
        float numbers[kVector];
        load_pixel<P>(raw, {in_tile.image, in_tile.y * 2 + dy, in_tile.x * 2 + dx}, channel,
                      numbers);
#pragma unroll
        for (int32_t k = 0; k < kVector; ++k) total[k] += numbers[k];
        ++count;
      }
    }
#pragma unroll
    for (int32_t k = 0; k < kVector; ++k) {
      total[k] = count > 0 ? total[k] / static_cast<float>(count) : 0.0f;
    }
    store_operand8<P>(out + row * raw.pitch + channel * number_bytes(P), total);
  }
}

// Maxima over 2x2 windows of stride 2 with `pad` in front of the image, of what lies inside. A
// result belongs to the tile of its window's last pixel in each direction.
template <Precision P>
static __device__ __forceinline__ void max_halve(const Operand& raw, const Result& result,
                                                 int32_t pad, int32_t channels, void* out) {
  using Type = typename Numbers<P>::Type;
  const Sides& sides = result.sides;
  const Tile& tile = result.tile;
  const Sides half = {sides.images, (sides.height + 1 + pad) / 2, (sides.width + 1 + pad) / 2};
  const int32_t pitch = pitch_of(channels), vectors = pitch / kVector;
  // One more in each direction: behind an even side there is half a window.
  const int32_t down = tile.height() / 2 + 1, across = tile.width() / 2 + 1;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < tile.images() * down * across * vectors;
       i += kThreads) {
    const int32_t row = i / vectors, channel = i % vectors * kVector;
    const Pixel to = {result.origin.image + row / (down * across),
                      result.origin.y / 2 + row / across % down,
                      result.origin.x / 2 + row % across};
    if (!has(half, to)) continue;
    const int32_t last_y = least(2 * to.y - pad + 1, sides.height - 1) - result.origin.y;
    const int32_t last_x = least(2 * to.x - pad + 1, sides.width - 1) - result.origin.x;
    if (last_y < 0 || last_y >= tile.height() || last_x < 0 || last_x >= tile.width()) continue;
    float most[kVector];
    bool is_first = true;
    for (int32_t dy = 0; dy < 2; ++dy) {
      for (int32_t dx = 0; dx < 2; ++dx) {
        const Pixel p = {to.image, 2 * to.y - pad + dy, 2 * to.x - pad + dx};
        if (!has(sides, p)) continue;
        float numbers[kVector];
        load_pixel<P>(raw,
                      {p.image - result.origin.image, p.y - result.origin.y, p.x - result.origin.x},
                      channel, numbers);
#pragma unroll
        for (int32_t k = 0; k < kVector; ++k) {
          most[k] = is_first ? numbers[k] : larger(most[k], numbers[k]);
        }
        is_first = false;
      }
    }
    Numbers<P>::store8(static_cast<Type*>(out) + index_of(half, to) * pitch + channel, most);
  }
}

// Moments of the sum itself, a thread for a channel.
template <Precision P>
static __device__ __forceinline__ void measure_sum(const Operand& raw, const Result& result,
                                                   int32_t index, int32_t channels,
                                                   float* moments) {
  using Type = typename Numbers<P>::Type;
  const auto count = static_cast<float>(count_of(result.tile, result.sides, index));
  float* to = moments + int64_t{index} * 2 * depth_of(channels);
  const auto visit = [&](int32_t channel, const auto& add) {
    for (int32_t row = 0; row < result.tile.rows(); ++row) {
      if (!result.has_row(row)) continue;
      const Pixel in_tile = result.tile.pixel(row);
      const std::byte* from = raw.data + raw.tile.padded_row(in_tile, raw.halo) * raw.pitch;
      add(Numbers<P>::load(reinterpret_cast<const Type*>(from) + channel));
    }
  };
  for (int32_t channel = static_cast<int32_t>(threadIdx.x); channel < channels;
       channel += kThreads) {
    float sum = 0.0f, squares = 0.0f;
    visit(channel, [&](float number) { sum += number; });
    const float mean = sum / count;
    visit(channel, [&](float number) { squares += (number - mean) * (number - mean); });
    to[channel] = mean;
    to[depth_of(channels) + channel] = squares;
  }
}

}  // namespace nasfast::kernels::cuda
