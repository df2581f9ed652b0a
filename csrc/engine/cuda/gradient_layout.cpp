// SPDX-License-Identifier: MIT
#include "engine/cuda/gradient_layout.h"

#include <algorithm>

#include "engine/cuda/pass_layout.h"
#include "engine/cuda/shared_memory.h"

namespace nasfast::cuda {

namespace {

using namespace kernels::cuda;

// What a pass's live consumers need of shared memory.
struct Needs {
  bool raw = false;
  int32_t halo = 0, raw_halo = 0;
  int32_t taps = 0, result_depth = 0;
};

Needs needs_of(const Schedule& schedule, const Reverse& reverse, const Pass& pass) {
  Needs needs;
  for (const Consumer& consumer : pass.consumers) {
    if (!reverse.is_live(consumer)) continue;
    if (consumer.use != Use::kShortcut && consumer.use != Use::kAvgPool) needs.raw = true;
    if (consumer.use == Use::kMaxPool) {
      needs.raw_halo = std::max(needs.raw_halo, consumer.kernel - 1);
    } else if (consumer.use == Use::kMaxHalve) {
      needs.raw_halo = std::max(needs.raw_halo, 1);
    }
    if (consumer.use != Use::kConv && consumer.use != Use::kShortcut) continue;
    const int32_t channels = schedule.tensors[static_cast<size_t>(consumer.out)].channels;
    needs.halo = std::max(needs.halo, consumer.kernel / 2);
    needs.taps = std::max(needs.taps, consumer.kernel * consumer.kernel);
    needs.result_depth = std::max(needs.result_depth, depth_of(channels));
  }
  return needs;
}

GradientLayout layout_of(const Needs& needs, Precision precision, const GradientRow& row) {
  const int32_t depth = depth_of(row.channels), columns = columns_for(row.channels);
  const int64_t pitch = shared_pitch(precision, depth);
  const int64_t result_pitch = shared_pitch(precision, needs.result_depth);
  const int32_t k_chunk = std::min(row.k_chunk, needs.result_depth);
  Placer placer;
  GradientLayout layout;
  layout.raw = placer.place(needs.raw, row.tile.padded_rows(row.raw_halo) * pitch);
  layout.operand = placer.place(needs.taps > 0, row.tile.padded_rows(row.halo) * result_pitch);
  layout.total = placer.place(true, int64_t{row.tile.rows()} * (depth + 4) * 4);
  layout.terms = placer.place(true, int64_t{row.num_terms} * 2 * depth * 4);
  layout.coefficients = placer.place(needs.taps > 0, int64_t{3} * needs.result_depth * 4);
  layout.weights = placer.place(needs.taps > 0,
                                int64_t{needs.taps} * columns * shared_pitch(precision, k_chunk));
  layout.sums = placer.place(true, int64_t{2} * std::max(kThreads, depth) * 4);
  layout.bytes = placer.end();
  return layout;
}

}  // namespace

void lay_out_gradient(const Schedule& schedule, const Reverse& reverse, const Pass& pass,
                      Precision precision, GradientRow& row) {
  const Needs needs = needs_of(schedule, reverse, pass);
  row.halo = needs.halo;
  row.raw_halo = needs.raw_halo;
  fit(row, std::max(needs.result_depth, 16), [&] { return layout_of(needs, precision, row); });
}

}  // namespace nasfast::cuda
