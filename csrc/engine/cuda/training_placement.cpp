// SPDX-License-Identifier: MIT
#include "engine/cuda/training_placement.h"

#include <algorithm>

namespace nasfast::cuda {

using namespace kernels::cuda;

TrainingPlacement::TrainingPlacement(const ProgramTable& table, std::span<const int32_t> lanes,
                                     Weights weights, const Options& options, int32_t most_images)
    : Placement(table, options, most_images) {
  for (const int32_t lane : lanes) {
    const int32_t network = table.lanes()[static_cast<size_t>(lane)].network;
    Network& own = lanes_.emplace_back();
    own.schedule = schedule_training(table, network, views_);
    own.gradients = static_cast<int64_t>(lanes_.size() - 1) * table.settings().arena_size;
    own.weights = weights == Weights::kOwn ? own.gradients : 0;
  }
  for (Network& lane : lanes_) {
    place_tensors(lane);
    place_packed(lane);
    BackwardPlaces& to = backward_.emplace_back();
    to.reverse = reverse_of(lane.schedule);
    place_backward(lane, table.positions().back().out_channels, to);
  }
}

void TrainingPlacement::place_tensors(Network& lane) {
  for (const StoredTensor& tensor : lane.schedule.tensors) {
    lane.tensors.push_back(tensor.external < 0 ? take_value(tensor.halvings, tensor.channels) : -1);
  }
  for (const Norm& norm : lane.schedule.norms) {
    lane.affine.push_back(take(int64_t{2} * depth_of(norm.channels) * 4));
    lane.statistics.push_back(take(int64_t{3} * depth_of(norm.channels) * 8));
  }
}

void TrainingPlacement::place_backward(const Network& lane, int32_t classes, BackwardPlaces& to,
                                       int32_t outside) {
  const Schedule& schedule = lane.schedule;
  std::vector<int64_t> buffers(static_cast<size_t>(to.reverse.num_buffers), 0);
  for (size_t p = 0; p < schedule.passes.size(); ++p) {
    if (to.reverse.gradient[p] < 0) continue;
    int64_t& size = buffers[static_cast<size_t>(to.reverse.gradient[p])];
    const Pass& pass = schedule.passes[p];
    size = std::max(size, value_bytes(pass.halvings, pass.channels));
  }
  for (size_t b = 0; b < buffers.size(); ++b) {
    buffers[b] = take(static_cast<int32_t>(b) == outside ? 0 : buffers[b]);
  }
  to.packed.assign(views_.all().size(), -1);
  for (size_t p = 0; p < schedule.passes.size(); ++p) {
    const Pass& pass = schedule.passes[p];
    const int32_t buffer = to.reverse.gradient[p], depth = depth_of(pass.channels);
    to.gradients.push_back(buffer >= 0 ? buffers[static_cast<size_t>(buffer)] : -1);
    to.totals.push_back(take(static_cast<int64_t>(pass.terms.size()) * 2 * depth * 8));
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.use == Use::kClassify) {
        const int64_t images = most_images_;
        to.features = take(images * depth * 4);
        to.head_gradient = take(images * depth * 4);
        to.logits = take(images * classes * 4);
        to.head_totals = take(int64_t{2} * depth * 8);
      }
      const bool convolves = consumer.use == Use::kConv || consumer.use == Use::kShortcut;
      if (!convolves || buffer < 0 || !to.reverse.is_live(consumer)) continue;
      to.packed[static_cast<size_t>(consumer.view)] =
          take(packed_bytes(unit(consumer.unit), pass.channels));
    }
  }
}

}  // namespace nasfast::cuda
