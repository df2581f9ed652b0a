// SPDX-License-Identifier: MIT
// What the passes of a schedule feed: convolutions, pools, statistics, classifier.
#include <algorithm>

#include "engine/convolution.h"
#include "engine/executor.h"
#include "engine/executor_state.h"

namespace nasfast {

using kernels::cpu::kBlockImages;
using kernels::cpu::Moments;

// Computes the rows of one consumer's result for which the pass has made enough rows, up to `end`.
void Executor::consume(const Pass& pass, const Consumer& consumer, BlockPass& state, int32_t index,
                       int32_t end) {
  if (consumer.use == Use::kConv) return convolve_rows(pass, consumer, state, index, end);
  const auto& kernels = context_.kernels;
  const bool halves = consumer.use == Use::kShortcut || consumer.use == Use::kMaxHalve;
  const int32_t stride = halves ? 2 : 1;
  const int32_t above = halves ? context_.geometry.padding : consumer.kernel / 2;
  const int32_t below = halves ? 1 - above : above;  // rows that a window reaches down
  const int32_t out_height = halves ? context_.geometry[pass.halvings + 1].height : state.height;
  const bool measures = consumer.use == Use::kMeasure && needs_statistics(consumer.norm);
  Moments* moments = measures ? moments_of(index) + state.block : nullptr;
  const Rows out = rows_of(consumer, state.block);
  int32_t& row =
      thread_states_[static_cast<size_t>(state.thread)]->next[static_cast<size_t>(index)];
  for (; row < out_height; ++row) {
    if (std::min(row * stride + below, state.height - 1) >= end) break;
    const void* rows[kMaxKernel];
    window_rows(state.raw, row * stride - above, above + below + 1, state.height, rows);
    switch (consumer.use) {
      case Use::kConv:
        break;
      case Use::kAvgPool:
        kernels.avg_pool({rows, out[row], state.width, pass.channels, consumer.kernel});
        break;
      case Use::kMaxPool:
        kernels.max_pool({rows, out[row], state.width, pass.channels, consumer.kernel});
        break;
      case Use::kShortcut: {
        const StoredTensor& tensor = schedule_->tensors[static_cast<size_t>(consumer.out)];
        const int32_t out_width = context_.geometry[tensor.halvings].width;
        kernels.halve({{rows[0], rows[1]}, state.halved, state.width, pass.channels});
        const void* halved = state.halved;
        kernels.convolve({&halved, context_.packed[static_cast<size_t>(consumer.view)], out[row],
                          nullptr, out_width, out_width, pass.channels, tensor.channels, 1, 1,
                          false, nullptr, nullptr});
        break;
      }
      case Use::kMaxHalve: {
        const int32_t out_width = context_.geometry[pass.halvings + 1].width;
        kernels.max_halve(
            {{rows[0], rows[1]}, out[row], state.width, out_width, pass.channels, above});
        break;
      }
      case Use::kMeasure:
        if (moments == nullptr) break;  // recalibrated statistics are known
        kernels.measure(
            {rows[0], state.width, pass.channels, nullptr, nullptr, moments, nullptr, row == 0});
        break;
      case Use::kClassify: {
        const int32_t minibatch = batch_->minibatch[static_cast<size_t>(state.block)];
        const float* scale =
            consumer.norm >= 0 ? affine(consumer.norm, minibatch) : constants_.at<float>(0);
        kernels.accumulate({rows[0], state.width, pass.channels, scale, scale + channel_stride_,
                            nullptr, state.sums, false, consumer.is_linear});
        break;
      }
    }
  }
  if (moments != nullptr) kernels.flush(*moments, pass.channels);
}

void Executor::convolve_rows(const Pass& pass, const Consumer& consumer, BlockPass& state,
                             int32_t index, int32_t end) {
  const auto& kernels = context_.kernels;
  const StoredTensor& tensor = schedule_->tensors[static_cast<size_t>(consumer.out)];
  const auto [out_height, out_width] = context_.geometry[tensor.halvings];
  const Convolution convolution(kernels, pass.channels, tensor.channels, consumer.kernel,
                                consumer.stride, state.width);
  const int32_t at_once = convolution.rows_at_once();
  const int32_t pad = consumer.kernel / 2;
  Moments* moments = needs_statistics(consumer.norm) ? moments_of(index) + state.block : nullptr;
  const Rows out = rows_of(consumer, state.block);
  int32_t& row =
      thread_states_[static_cast<size_t>(state.thread)]->next[static_cast<size_t>(index)];
  for (; row < out_height; row += at_once) {
    const int32_t last = std::min(row + at_once, out_height) - 1;  // row of results
    if (std::min(last * consumer.stride + pad, state.height - 1) >= end) break;
    const void* rows[kMaxKernel + 1];
    window_rows(state.operand, row * consumer.stride - pad, consumer.kernel + at_once - 1,
                state.height, rows);
    convolution.run({rows, context_.packed[static_cast<size_t>(consumer.view)], out[row], moments,
                     state.width, out_width, pass.channels, tensor.channels, consumer.kernel,
                     consumer.stride, row == 0, last > row ? out[last] : nullptr, state.pairs});
  }
  if (moments != nullptr) kernels.flush(*moments, tensor.channels);
}

// The rows of a consumer's result, if it has one.
Rows Executor::rows_of(const Consumer& consumer, int32_t block) const {
  if (consumer.out < 0) return {};
  const StoredTensor& tensor = schedule_->tensors[static_cast<size_t>(consumer.out)];
  return {block_of(tensor, block),
          context_.geometry.row_bytes(context_.value, tensor.halvings, tensor.channels),
          context_.geometry[tensor.halvings].height};
}

void Executor::classify(const Pass& pass, const Consumer& consumer, int32_t block,
                        const double* sums) {
  const Unit& unit = context_.units[static_cast<size_t>(consumer.unit)];
  const int32_t classes = context_.positions.back().out_channels;
  const auto [height, width] = context_.geometry[pass.halvings];
  const double pixels = static_cast<double>(height) * width;
  const float* weight = context_.arena + unit.weight;
  const float* bias = context_.arena + unit.bias;
  for (int32_t i = 0; i < batch_->images[static_cast<size_t>(block)]; ++i) {
    float* out = logits_ + (batch_->first_image[static_cast<size_t>(block)] + i) * classes;
    for (int32_t k = 0; k < classes; ++k) {
      double sum = 0;
      for (int32_t c = 0; c < pass.channels; ++c) {
        sum += double{weight[int64_t{k} * pass.channels + c]} * sums[int64_t{c} * kBlockImages + i];
      }
      out[k] = static_cast<float>(sum / pixels + double{bias[k]});
    }
  }
}

}  // namespace nasfast
