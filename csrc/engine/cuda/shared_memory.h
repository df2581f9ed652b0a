// SPDX-License-Identifier: MIT
// How the shared memory of a block is divided; private to the sources.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "engine/cuda/error.h"
#include "kernels/cuda/layout.h"

namespace nasfast::cuda {

// Two blocks then share a multiprocessor of 227 KiB, and all cards since sm_80 have as much.
constexpr int32_t kWantedBytes = 96 * 1024;
constexpr int32_t kMostBytes = 160 * 1024;

// Places one piece after another.
class Placer {
 public:
  int32_t place(bool is_wanted, int64_t bytes) {
    if (!is_wanted) return -1;
    const int64_t begin = end_;
    end_ += (bytes + kernels::cuda::kVectorBytes - 1) / kernels::cuda::kVectorBytes *
            kernels::cuda::kVectorBytes;
    return static_cast<int32_t>(std::min<int64_t>(begin, kTooMany));
  }
  int32_t end() const { return static_cast<int32_t>(std::min<int64_t>(end_, kTooMany)); }

 private:
  static constexpr int64_t kTooMany = 1 << 30;
  int64_t end_ = 0;
};

// Throws std::invalid_argument where the current device gives a block less. Below sm_80's 163 KiB
// are those of graphics: sm_86, sm_89 and sm_120 have 99.
inline void require_shared_memory(int32_t bytes) {
  int device = 0, most = 0;
  check("device", cudaGetDevice(&device));
  check("device", cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (bytes <= most) return;
  throw std::invalid_argument("a network whose blocks want " + std::to_string(bytes) +
                              " bytes of shared memory, on a CUDA device that has " +
                              std::to_string(most));
}

// Chooses the tile and the channels at a time of a row whose layout `layout_of` then fits a block:
// the largest tile first. `depth`: most channels of an operand.
template <typename Row, typename LayoutOf>
void fit(Row& row, int32_t depth, const LayoutOf& layout_of) {
  for (const int32_t limit : {kWantedBytes, kMostBytes}) {
    for (int32_t most_rows = kernels::cuda::kTileRows; most_rows >= 16; most_rows /= 2) {
      row.tile = kernels::cuda::tile_for(row.sides.height, row.sides.width, most_rows);
      for (const int32_t k_chunk : {depth, 64, 32, 16}) {
        if (k_chunk > depth) continue;
        row.k_chunk = k_chunk;
        row.layout = layout_of();
        if (row.layout.bytes <= limit) {
          row.num_tiles = kernels::cuda::num_tiles(row.tile, row.sides);
          return;
        }
      }
    }
  }
  throw std::invalid_argument("a value of " + std::to_string(row.channels) +
                              " channels: more than fit the shared memory of a device");
}

}  // namespace nasfast::cuda
