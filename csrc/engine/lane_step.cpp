// SPDX-License-Identifier: MIT
#include "engine/lane_step.h"

#include <algorithm>

#include "engine/loss.h"

namespace nasfast {

using kernels::cpu::Kernels;
using kernels::cpu::Precision;
using kernels::cpu::Storage;

TrainingNetwork::TrainingNetwork(const ProgramTable& table, int32_t network)
    : views(table.units().size()),
      schedule(schedule_training(table, network, views)),
      reverse(reverse_of(schedule)),
      trained(trained_spans(table, schedule, reverse)) {
  for (const Norm& norm : schedule.norms) {
    const Unit& unit = table.units()[static_cast<size_t>(norm.unit)];
    if (unit.mean < 0) continue;
    tracked.push_back({unit.mean, norm.channels});
    tracked.push_back({unit.variance, norm.channels});
  }
}

LaneStep::LaneStep(const ProgramTable& table, const Kernels& kernels, const Geometry& geometry,
                   Precision precision, std::span<const TrainingNetwork* const> networks,
                   int32_t blocks, int32_t threads)
    : table_(table), kernels_(kernels) {
  const Storage value = precision == Precision::kBf16 ? Storage::kPair : Storage::kFloat;
  context_.reset(new Context{table.positions(),
                             table.units(),
                             kernels,
                             value,
                             geometry,
                             nullptr,
                             {},
                             {kBatch, kBatch, kBatch}});
  Limits limits;
  limits.blocks = blocks;
  limits.minibatches = 1;
  for (const TrainingNetwork* network : networks) {
    limits.include(network->schedule);
    limits.include_kept(network->schedule, geometry, value);
  }
  executor_ = std::make_unique<Executor>(*context_, limits, threads);
  backward_ = std::make_unique<Backward>(*context_, limits, threads);
  for (const TrainingNetwork* network : networks) {
    backward_->include(network->schedule, network->reverse);
  }
  backward_->reserve();
}

void LaneStep::forward(const TrainingNetwork& network, const float* arena, const Batch& batch,
                       const std::byte* images, const float* mixing, Team* team) {
  network_ = &network;
  batch_ = &batch;
  images_ = images;
  mixing_ = mixing;
  if (packed_for_ != &network) {
    using Way = PackedWeights::Way;
    forward_weights_ = std::make_unique<PackedWeights>(table_.units(), network.views, kernels_,
                                                       context_->geometry, Way::kForward);
    backward_weights_ = std::make_unique<PackedWeights>(table_.units(), network.views, kernels_,
                                                        context_->geometry, Way::kInputGradient);
    forward_weights_->include(network.schedule);
    backward_weights_->include(network.schedule);
    packed_for_ = &network;
  }
  forward_weights_->pack(arena);
  context_->arena = arena;
  context_->packed = forward_weights_->pointers();
  const auto count = static_cast<size_t>(batch.first_image.back() + batch.images.back());
  const auto classes = static_cast<size_t>(table_.positions().back().out_channels);
  logits_.resize(count * classes);
  const SharedValues nothing_shared;
  executor_->run(network.schedule, batch, nothing_shared, images, &statistics_, false, team,
                 logits_.data(), mixing);
}

LaneStep::Result LaneStep::score(const int64_t* labels) {
  const int32_t classes = table_.positions().back().out_channels;
  const auto count = static_cast<int64_t>(logits_.size()) / classes;
  logit_gradient_.resize(logits_.size());
  Result result;
  for (int64_t i = 0; i < count; ++i) {
    const float* row = logits_.data() + i * classes;
    const CrossEntropy entropy = cross_entropy(row, classes, labels[i]);
    result.loss += entropy.loss;
    result.correct += entropy.correct;
    for (int32_t k = 0; k < classes; ++k) {
      logit_gradient_[static_cast<size_t>(i * classes + k)] = static_cast<float>(
          (entropy.share(row[k]) - (k == labels[i])) / static_cast<double>(count));
    }
  }
  result.loss /= static_cast<double>(count);
  return result;
}

void LaneStep::backward(float* gradient, float* mixing_gradient, Team* team) {
  backward_weights_->pack(context_->arena);
  backward_->run(
      {network_->schedule, network_->reverse, *batch_, *executor_, statistics_, images_,
       logit_gradient_.data(), backward_weights_->pointers(), mixing_, gradient, mixing_gradient},
      team);
}

void LaneStep::update_statistics(float* arena) const {
  const double images = static_cast<double>(batch_->first_image.back() + batch_->images.back());
  const Schedule& schedule = network_->schedule;
  const auto update = [&](int32_t index, int32_t halvings) {
    const Norm& norm = schedule.norms[static_cast<size_t>(index)];
    const Unit& unit = table_.units()[static_cast<size_t>(norm.unit)];
    if (unit.mean < 0) return;
    const auto [height, width] = context_->geometry[halvings];
    const double count = images * height * width, momentum = unit.momentum / 1e6;
    for (int32_t c = 0; c < norm.channels; ++c) {
      const auto at = static_cast<size_t>(c);
      // Kernels leave a convolution's bias out.
      const double bias = unit.bias >= 0 ? double{arena[unit.bias + c]} : 0.0;
      const double mean = statistics_.mean[static_cast<size_t>(index)][at] + bias;
      const double variance =
          statistics_.variance[static_cast<size_t>(index)][at] * count / (count - 1);
      float& old_mean = arena[unit.mean + c];
      float& old_variance = arena[unit.variance + c];
      old_mean = static_cast<float>(old_mean + momentum * (mean - old_mean));
      old_variance = static_cast<float>(old_variance + momentum * (variance - old_variance));
    }
  };
  for (const Pass& pass : schedule.passes) {
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.norm < 0 || consumer.use == Use::kClassify) continue;
      update(consumer.norm, pass.halvings + (consumer.stride == 2));
    }
  }
}

}  // namespace nasfast
