// SPDX-License-Identifier: MIT
// The way back through the head: classifier, mean over the image, ReLU, batch norm.
#include <algorithm>
#include <cmath>

#include "engine/backward.h"
#include "engine/backward_state.h"

namespace nasfast {

using kernels::cpu::HeadGradientRow;
using kernels::cpu::kBlockImages;

// Arguments that all rows of a block have in common.
HeadGradientRow Backward::head_arguments(int32_t block) const {
  const auto consumer = std::find_if(pass_->consumers.begin(), pass_->consumers.end(),
                                     [](const Consumer& c) { return c.use == Use::kClassify; });
  HeadGradientRow row{};
  row.is_linear = consumer->is_linear;
  const float* scale =
      consumer->norm >= 0 ? in_->forward.affine(consumer->norm, 0) : in_->forward.identity();
  row.width = context_.geometry[pass_->halvings].width;
  row.channels = pass_->channels;
  row.scale = scale;
  row.shift = scale + channel_stride_;
  row.own = head_own_.at<float>(0) + block * line_floats_;
  row.centre = head_.data();
  row.of_g = head_.data() + channel_stride_;
  row.of_value = head_.data() + 2 * channel_stride_;
  row.constant = head_.data() + 3 * channel_stride_;
  return row;
}

// Sums of a block that the batch norm and the classifier need. The pass reads a value in place.
void Backward::head_block(int32_t thread, int32_t block) {
  const BlockState state = begin_block(thread, block);
  HeadGradientRow row = head_arguments(block);
  row.sum = reinterpret_cast<float*>(state.scratch + layout_.sums);
  row.dot = row.sum + line_floats_;
  std::fill_n(row.sum, 2 * line_floats_, 0.0f);
  std::fill_n(totals(block, 0), 2 * line_floats_, 0.0);
  double* features = features_.at<double>(0) + block * line_floats_;
  std::fill_n(features, line_floats_, 0.0);
  for (int32_t y = 0; y < state.height; ++y) {
    row.row = state.raw[y];
    context_.kernels.gradients->head_sums(row);
    context_.kernels.accumulate({row.row, row.width, row.channels, row.scale, row.shift, nullptr,
                                 features, false, row.is_linear});
    context_.kernels.gradients->flush(row.sum, totals(block, 0), row.channels);
    context_.kernels.gradients->flush(row.dot, totals(block, 1), row.channels);
  }
}

void Backward::run_head(const Consumer& consumer) {
  const Unit& unit = context_.units[static_cast<size_t>(consumer.unit)];
  const int32_t classes = context_.positions.back().out_channels;
  const int32_t channels = pass_->channels;
  const auto [height, width] = context_.geometry[pass_->halvings];
  const double pixels = static_cast<double>(height) * width;
  const Batch& batch = in_->batch;
  const float* weight = context_.arena + unit.weight;
  const auto logit_gradient = [&](int32_t block, int32_t image) {
    return in_->logit_gradient + (batch.first_image[static_cast<size_t>(block)] + image) * classes;
  };
  for (int32_t b = 0; b < batch.num_blocks(); ++b) {
    float* own = head_own_.at<float>(0) + b * line_floats_;
    std::fill_n(own, line_floats_, 0.0f);
    for (int32_t i = 0; i < batch.images[static_cast<size_t>(b)]; ++i) {
      const float* of_logits = logit_gradient(b, i);
      for (int32_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int32_t k = 0; k < classes; ++k) {
          sum += double{of_logits[k]} * double{weight[int64_t{k} * channels + c]};
        }
        own[int64_t{c} * kBlockImages + i] = static_cast<float>(sum / pixels);
      }
    }
  }
  std::fill(head_.begin(), head_.end(), 0.0f);
  std::vector<double> sum(static_cast<size_t>(channels)), dot(sum);
  if (consumer.norm >= 0) {
    const auto& mean = in_->statistics.mean[static_cast<size_t>(consumer.norm)];
    for (size_t c = 0; c < mean.size(); ++c) head_[c] = static_cast<float>(mean[c]);
    for_blocks(&Backward::head_block);
    add_totals(0, channels, sum);
    add_totals(1, channels, dot);
    finish_norm(consumer.norm, pass_->halvings, sum.data(), dot.data(),
                head_.data() + channel_stride_, head_.data() + 2 * channel_stride_,
                head_.data() + 3 * channel_stride_);
  } else {
    for_blocks(&Backward::head_block);
    std::fill_n(head_.data() + channel_stride_, channel_stride_, 1.0f);
  }
  float* weight_gradient = in_->gradient + unit.weight;
  float* bias_gradient = in_->gradient + unit.bias;
  for (int32_t k = 0; k < classes; ++k) {
    std::fill(sum.begin(), sum.end(), 0.0);
    double bias = 0;
    for (int32_t b = 0; b < batch.num_blocks(); ++b) {
      const double* features = features_.at<double>(0) + b * line_floats_;
      for (int32_t i = 0; i < batch.images[static_cast<size_t>(b)]; ++i) {
        const double of_logit = logit_gradient(b, i)[k];
        bias += of_logit;
        for (int32_t c = 0; c < channels; ++c) {
          sum[static_cast<size_t>(c)] += of_logit * features[int64_t{c} * kBlockImages + i];
        }
      }
    }
    bias_gradient[k] = static_cast<float>(bias);
    for (int32_t c = 0; c < channels; ++c) {
      weight_gradient[int64_t{k} * channels + c] =
          static_cast<float>(sum[static_cast<size_t>(c)] / pixels);
    }
  }
}

}  // namespace nasfast
