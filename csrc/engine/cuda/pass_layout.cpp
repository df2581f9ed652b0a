// SPDX-License-Identifier: MIT
#include "engine/cuda/pass_layout.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace nasfast::cuda {

namespace {

using namespace kernels::cuda;

// Two blocks then share a multiprocessor of 227 KiB, and all cards since sm_80 have as much.
constexpr int32_t kWantedBytes = 96 * 1024;
constexpr int32_t kMostBytes = 160 * 1024;

constexpr bool convolves(Use use) { return use == Use::kConv || use == Use::kShortcut; }

int32_t halo_of(const Pass& pass, int32_t padding) {
  int32_t halo = 0;
  for (const Consumer& consumer : pass.consumers) {
    if (consumer.use == Use::kMaxHalve) halo = std::max(halo, padding);
    if (consumer.use == Use::kConv || consumer.use == Use::kAvgPool ||
        consumer.use == Use::kMaxPool) {
      halo = std::max(halo, consumer.kernel / 2);
    }
  }
  return halo;
}

class Placer {
 public:
  int32_t place(bool is_wanted, int64_t bytes) {
    if (!is_wanted) return -1;
    const int64_t begin = end_;
    end_ += (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
    return static_cast<int32_t>(std::min<int64_t>(begin, kTooMany));
  }
  int32_t end() const { return static_cast<int32_t>(std::min<int64_t>(end_, kTooMany)); }

 private:
  static constexpr int64_t kTooMany = 1 << 30;
  int64_t end_ = 0;
};

PassLayout layout_of(const Schedule& schedule, const Pass& pass, Precision precision,
                     const PassRow& row) {
  const int32_t depth = depth_of(row.channels), columns = columns_of(schedule, pass);
  const int64_t pitch = shared_pitch(precision, depth);
  int32_t taps = 0;
  for (const Consumer& consumer : pass.consumers) {
    if (convolves(consumer.use)) taps = std::max(taps, consumer.kernel * consumer.kernel);
  }
  const int64_t rows = row.tile.padded_rows(row.halo);
  const bool measures = pass.feeds(Use::kConv);
  Placer placer;
  PassLayout layout;
  layout.operand = placer.place(pass.needs_operand(), rows * pitch);
  layout.raw = placer.place(pass.needs_raw(), rows * pitch);
  layout.halved = placer.place(pass.feeds(Use::kShortcut), row.tile.rows() / 4 * pitch);
  layout.terms = placer.place(true, int64_t{row.num_terms} * 2 * depth * 4);
  layout.weights = placer.place(
      taps > 0, int64_t{taps} * columns * shared_pitch(precision, std::min(row.k_chunk, depth)));
  layout.sums = placer.place(measures, int64_t{kThreads / 32 + 1} * columns * 4);
  layout.bytes = placer.end();
  return layout;
}

}  // namespace

int32_t columns_of(const Schedule& schedule, const Pass& pass) {
  int32_t most = 1;
  for (const Consumer& consumer : pass.consumers) {
    if (!convolves(consumer.use)) continue;
    most = std::max(most, schedule.tensors[static_cast<size_t>(consumer.out)].channels);
  }
  return most <= 16 ? 16 : most <= 32 ? 32 : 64;
}

void lay_out(const Schedule& schedule, const Pass& pass, Precision precision, PassRow& row) {
  row.halo = halo_of(pass, row.padding);
  const int32_t depth = depth_of(row.channels);
  for (const int32_t limit : {kWantedBytes, kMostBytes}) {
    for (int32_t most_rows = kTileRows; most_rows >= 16; most_rows /= 2) {
      row.tile = tile_for(row.sides.height, row.sides.width, most_rows);
      for (const int32_t k_chunk : {depth, 64, 32, 16}) {
        if (k_chunk > depth) continue;
        row.k_chunk = k_chunk;
        row.layout = layout_of(schedule, pass, precision, row);
        if (row.layout.bytes <= limit) {
          row.num_tiles = num_tiles(row.tile, row.sides);
          return;
        }
      }
    }
  }
  throw std::invalid_argument("a value of " + std::to_string(row.channels) +
                              " channels: more than fit the shared memory of a device");
}

}  // namespace nasfast::cuda
