// SPDX-License-Identifier: MIT
// Minibatches cut into blocks of images, and what they measure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "program/program_table.h"

namespace nasfast {

// Minibatches that go through the network at the same time; usually one. Blocks never cross the
// border between two.
struct Batch {
  std::vector<int64_t> first_image;  // [num_blocks]
  std::vector<int32_t> images;       // [num_blocks] in each block, at most kBlockImages
  std::vector<int32_t> minibatch;    // [num_blocks] of each block
  std::vector<int32_t> first_block;  // [num_minibatches + 1]

  explicit Batch(std::span<const int64_t> sizes) {
    int64_t image = 0;
    first_block.push_back(0);
    for (const int64_t size : sizes) {
      for (int64_t begin = 0; begin < size; begin += kernels::cpu::kBlockImages) {
        first_image.push_back(image + begin);
        images.push_back(
            static_cast<int32_t>(std::min<int64_t>(kernels::cpu::kBlockImages, size - begin)));
        minibatch.push_back(static_cast<int32_t>(first_block.size()) - 1);
      }
      image += size;
      first_block.push_back(num_blocks());
    }
  }

  int32_t num_blocks() const { return static_cast<int32_t>(images.size()); }
  int32_t num_minibatches() const { return static_cast<int32_t>(first_block.size()) - 1; }
};

// Sizes of values at every halving of the image.
struct Geometry {
  struct Size {
    int32_t height, width;
  };

  Geometry(int32_t height, int32_t width, int32_t max_halvings, int32_t image_padding)
      : padding(image_padding) {
    for (int32_t i = 0; i <= max_halvings; ++i) {
      sizes.push_back({height, width});
      height = halved(height, padding);
      width = halved(width, padding);
    }
  }
  const Size& operator[](int32_t halvings) const { return sizes[static_cast<size_t>(halvings)]; }
  int64_t row_bytes(kernels::cpu::Storage storage, int32_t halvings, int32_t channels) const {
    return int64_t{(*this)[halvings].width} * kernels::cpu::lines(storage, channels) *
           kernels::cpu::kLineBytes;
  }
  int64_t block_bytes(kernels::cpu::Storage storage, int32_t halvings, int32_t channels) const {
    return row_bytes(storage, halvings, channels) * (*this)[halvings].height;
  }

  const int32_t padding;  // before an image is halved
  std::vector<Size> sizes;
};

}  // namespace nasfast
