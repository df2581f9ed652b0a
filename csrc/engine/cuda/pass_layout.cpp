// SPDX-License-Identifier: MIT
#include "engine/cuda/pass_layout.h"

#include <algorithm>

#include "engine/cuda/shared_memory.h"

namespace nasfast::cuda {

namespace {

using namespace kernels::cuda;

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

int32_t columns_for(int32_t channels) { return channels <= 16 ? 16 : channels <= 32 ? 32 : 64; }

int32_t columns_of(const Schedule& schedule, const Pass& pass) {
  int32_t most = 1;
  for (const Consumer& consumer : pass.consumers) {
    if (!convolves(consumer.use)) continue;
    most = std::max(most, schedule.tensors[static_cast<size_t>(consumer.out)].channels);
  }
  return columns_for(most);
}

void lay_out(const Schedule& schedule, const Pass& pass, Precision precision, PassRow& row) {
  row.halo = halo_of(pass, row.padding);
  fit(row, depth_of(row.channels), [&] { return layout_of(schedule, pass, precision, row); });
}

}  // namespace nasfast::cuda
