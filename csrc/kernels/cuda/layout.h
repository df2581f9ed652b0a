// SPDX-License-Identifier: MIT
// Where numbers lie on a device, and how an image is cut into tiles: what kernels and host agree
// on.
//
// A value is [image][y][x][channel], its channels padded to whole vectors of 8 numbers with zeros,
// float32 or, in precision bf16, bfloat16. Convolutions read 16 channels at a time, so what they
// read from shared memory and from packed weights is padded to that.
//
// In precision tf32 all that differs from fp32 is how products of convolutions are made: operands
// are rounded to tf32 (float32 with 10 bits behind the point) on their way into shared memory and
// packed weights, and multiplied on tensor cores. Kernels that make no products are those of fp32.
//
// A block of threads computes one tile of one value: a power of two of pixels in a box of images,
// rows and columns. Tiles depend on the sides of an image alone, so what a lane computes does not
// depend on what runs beside it.
#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace nasfast::kernels::cuda {

enum class Precision : int32_t { kFp32, kBf16, kTf32 };

constexpr int32_t kVectorBytes = 16;
constexpr int32_t kThreads = 128;  // of a block
constexpr int32_t kRowsOfWarp = 32;
constexpr int32_t kTileRows = kThreads / 32 * kRowsOfWarp;  // most pixels of a tile

NASFAST_HOST_DEVICE constexpr int32_t round_up(int32_t count, int32_t unit) {
  return (count + unit - 1) / unit * unit;
}
NASFAST_HOST_DEVICE constexpr int32_t number_bytes(Precision precision) {
  return precision == Precision::kBf16 ? 2 : 4;
}
// Numbers from one pixel to the next in memory, and channels of an operand.
NASFAST_HOST_DEVICE constexpr int32_t pitch_of(int32_t channels) { return round_up(channels, 8); }
NASFAST_HOST_DEVICE constexpr int32_t depth_of(int32_t channels) { return round_up(channels, 16); }
// Bytes from one row of 16 * n numbers to the next in shared memory: an odd number of vectors, so
// that eight rows lie in different banks.
NASFAST_HOST_DEVICE constexpr int32_t shared_pitch(Precision precision, int32_t numbers) {
  return numbers * number_bytes(precision) + kVectorBytes;
}

struct Sides {
  int32_t images, height, width;
};

// The same images at half the size.
NASFAST_HOST_DEVICE constexpr Sides halved(const Sides& sides) {
  return {sides.images, (sides.height + 1) / 2, (sides.width + 1) / 2};
}

struct Pixel {
  int32_t image, y, x;
};

NASFAST_HOST_DEVICE constexpr Pixel operator+(const Pixel& a, const Pixel& b) {
  return {a.image + b.image, a.y + b.y, a.x + b.x};
}

// A box of 2^n pixels.
struct Tile {
  int32_t log_images, log_height, log_width;

  NASFAST_HOST_DEVICE constexpr int32_t images() const { return 1 << log_images; }
  NASFAST_HOST_DEVICE constexpr int32_t height() const { return 1 << log_height; }
  NASFAST_HOST_DEVICE constexpr int32_t width() const { return 1 << log_width; }
  NASFAST_HOST_DEVICE constexpr int32_t rows() const {
    return 1 << (log_images + log_height + log_width);
  }
  // Pixel of a row of the tile's matrix, counted from the tile's first.
  NASFAST_HOST_DEVICE constexpr Pixel pixel(int32_t row) const {
    return {row >> (log_height + log_width), row >> log_width & (height() - 1),
            row & (width() - 1)};
  }
  // The tile of what a stride of 2 makes of it.
  NASFAST_HOST_DEVICE constexpr Tile halved() const {
    return {log_images, log_height - 1, log_width - 1};
  }
  // Pixels with `halo` more on every side of an image.
  NASFAST_HOST_DEVICE constexpr int32_t padded_width(int32_t halo) const {
    return width() + 2 * halo;
  }
  NASFAST_HOST_DEVICE constexpr int32_t padded_height(int32_t halo) const {
    return height() + 2 * halo;
  }
  NASFAST_HOST_DEVICE constexpr int32_t padded_rows(int32_t halo) const {
    return images() * padded_height(halo) * padded_width(halo);
  }
  // Where a pixel, counted from the tile's first, lies among the padded ones.
  NASFAST_HOST_DEVICE constexpr int32_t padded_row(const Pixel& p, int32_t halo) const {
    return (p.image * padded_height(halo) + p.y + halo) * padded_width(halo) + p.x + halo;
  }
  NASFAST_HOST_DEVICE constexpr Pixel padded_pixel(int32_t row, int32_t halo) const {
    const int32_t across = padded_width(halo), plane = padded_height(halo) * across;
    const int32_t in_plane = row % plane;
    return {row / plane, in_plane / across - halo, in_plane % across - halo};
  }
};

NASFAST_HOST_DEVICE constexpr int32_t tiles_along(int32_t side, int32_t log_tile) {
  return (side + (1 << log_tile) - 1) >> log_tile;
}
NASFAST_HOST_DEVICE constexpr int32_t num_tiles(const Tile& tile, const Sides& sides) {
  return tiles_along(sides.images, tile.log_images) * tiles_along(sides.height, tile.log_height) *
         tiles_along(sides.width, tile.log_width);
}
// First pixel of tile `index`.
NASFAST_HOST_DEVICE constexpr Pixel origin_of(const Tile& tile, const Sides& sides, int32_t index) {
  const int32_t across = tiles_along(sides.width, tile.log_width);
  const int32_t down = tiles_along(sides.height, tile.log_height);
  return {index / (across * down) << tile.log_images, index / across % down << tile.log_height,
          index % across << tile.log_width};
}
NASFAST_HOST_DEVICE constexpr bool has(const Sides& sides, const Pixel& p) {
  return p.image >= 0 && p.image < sides.images && p.y >= 0 && p.y < sides.height && p.x >= 0 &&
         p.x < sides.width;
}
NASFAST_HOST_DEVICE constexpr int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
// Pixels of a tile that the value has.
NASFAST_HOST_DEVICE constexpr int32_t count_of(const Tile& tile, const Sides& sides,
                                               int32_t index) {
  const Pixel origin = origin_of(tile, sides, index);
  return least(tile.images(), sides.images - origin.image) *
         least(tile.height(), sides.height - origin.y) *
         least(tile.width(), sides.width - origin.x);
}
NASFAST_HOST_DEVICE constexpr int64_t index_of(const Sides& sides, const Pixel& p) {
  return (int64_t{p.image} * sides.height + p.y) * sides.width + p.x;
}

// A tile for images of these sides, of at most `most_rows` pixels (a power of two, 16 to
// kTileRows). Its sides are even, as a stride of 2 wants them: at least 2, at most 16.
constexpr Tile tile_for(int32_t height, int32_t width, int32_t most_rows) {
  const auto log_of = [](int32_t side) {
    int32_t log = 1;
    while (log < 4 && 1 << log < side) ++log;
    return log;
  };
  int32_t log_rows = 0;
  while (1 << (log_rows + 1) <= most_rows) ++log_rows;
  Tile tile{0, log_of(height), log_of(width)};
  while (tile.log_height + tile.log_width > log_rows) {
    --(tile.log_height >= tile.log_width ? tile.log_height : tile.log_width);
  }
  tile.log_images = log_rows - tile.log_height - tile.log_width;
  return tile;
}

}  // namespace nasfast::kernels::cuda
