// SPDX-License-Identifier: MIT
// From statistics, recorded ones or the weight set's to the scale and shift of a batch norm.
#include <algorithm>
#include <cmath>

#include "engine/executor.h"

namespace nasfast {

using kernels::cpu::Moments;

void Executor::finish_norm(int32_t index, int32_t halvings, const Moments* moments) {
  const Norm& norm = schedule_->norms[static_cast<size_t>(index)];
  const BatchNormMode mode = context_.modes[static_cast<size_t>(norm.part)];
  const int32_t minibatches = batch_->num_minibatches();
  const auto measure = [&](int32_t first_block, int32_t end_block) {
    const auto [height, width] = context_.geometry[halvings];
    context_.kernels.merge({moments + first_block, batch_->images.data() + first_block,
                            end_block - first_block, norm.channels, int64_t{height} * width,
                            mean_.data(), variance_.data()});
  };
  if (mode == kBatch) {
    for (int32_t m = 0; m < minibatches; ++m) {
      measure(batch_->first_block[static_cast<size_t>(m)],
              batch_->first_block[static_cast<size_t>(m) + 1]);
      set_affine(norm, index, m, mean_.data(), variance_.data());
    }
    if (limits_.keeps_all && recorded_ != nullptr) {
      const auto at = static_cast<size_t>(index);
      recorded_->mean[at].assign(mean_.begin(), mean_.begin() + norm.channels);
      recorded_->variance[at].assign(variance_.begin(), variance_.begin() + norm.channels);
    }
    return;
  }
  if (mode == kRecalibrate) {
    auto& mean = recorded_->mean[static_cast<size_t>(index)];
    auto& variance = recorded_->variance[static_cast<size_t>(index)];
    if (recording_) {
      measure(0, batch_->num_blocks());
      mean.assign(mean_.begin(), mean_.begin() + norm.channels);
      variance.assign(variance_.begin(), variance_.begin() + norm.channels);
    }
    for (int32_t m = 0; m < minibatches; ++m) {
      set_affine(norm, index, m, mean.data(), variance.data());
    }
    return;
  }
  const Unit& unit = context_.units[static_cast<size_t>(norm.unit)];
  for (int32_t c = 0; c < norm.channels; ++c) {
    // Kernels leave a convolution's bias out: statistics of the images cancel it.
    const double bias = unit.bias >= 0 ? double{context_.arena[unit.bias + c]} : 0.0;
    mean_[static_cast<size_t>(c)] = double{context_.arena[unit.mean + c]} - bias;
    variance_[static_cast<size_t>(c)] = double{context_.arena[unit.variance + c]};
  }
  for (int32_t m = 0; m < minibatches; ++m) {
    set_affine(norm, index, m, mean_.data(), variance_.data());
  }
}

void Executor::set_affine(const Norm& norm, int32_t index, int32_t minibatch, const double* mean,
                          const double* variance) {
  const Unit& unit = context_.units[static_cast<size_t>(norm.unit)];
  float* scale = affine(index, minibatch);
  float* shift = scale + channel_stride_;
  std::fill_n(scale, 2 * channel_stride_, 0.0f);
  for (int32_t c = 0; c < norm.channels; ++c) {
    const double gamma = unit.gamma >= 0 ? double{context_.arena[unit.gamma + c]} : 1.0;
    const double beta = unit.beta >= 0 ? double{context_.arena[unit.beta + c]} : 0.0;
    const double factor = gamma / std::sqrt(variance[c] + kBatchNormEpsilon);
    scale[c] = static_cast<float>(factor);
    shift[c] = static_cast<float>(beta - mean[c] * factor);
  }
}

}  // namespace nasfast
