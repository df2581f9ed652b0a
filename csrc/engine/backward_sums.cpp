// SPDX-License-Identifier: MIT
// The way back through batch norms, and what is summed over blocks.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/backward.h"

namespace nasfast {

using kernels::cpu::kBlockImages;
using kernels::cpu::padded_channels;

// Values are centred before they are multiplied with gradients: a mean far from zero costs no
// digits.
void Backward::set_centres() {
  std::fill(centres_.begin(), centres_.end(), 0.0f);
  for (size_t t = 0; t < pass_->terms.size(); ++t) {
    const StoredTensor& tensor = in_->schedule.tensors[static_cast<size_t>(pass_->terms[t].tensor)];
    if (tensor.norm < 0) continue;
    const auto& mean = in_->statistics.mean[static_cast<size_t>(tensor.norm)];
    float* centre = centres_.data() + static_cast<int64_t>(t) * channel_stride_;
    for (size_t c = 0; c < mean.size(); ++c) centre[c] = static_cast<float>(mean[c]);
  }
}

// Sums over blocks and images of a line of the pass's totals.
void Backward::add_totals(size_t line, int32_t channels, std::vector<double>& out) const {
  out.assign(static_cast<size_t>(channels), 0.0);
  for (int32_t b = 0; b < in_->batch.num_blocks(); ++b) {
    const double* from = totals(b, line);
    for (int32_t c = 0; c < channels; ++c) {
      for (int32_t i = 0; i < in_->batch.images[static_cast<size_t>(b)]; ++i) {
        out[static_cast<size_t>(c)] += from[int64_t{c} * kBlockImages + i];
      }
    }
  }
}

// Keeps the sums of the pass's gradient for the batch norms of its terms; mixing weights are done.
void Backward::sum_terms(size_t pass) {
  add_totals(0, pass_->channels, pass_sums_[pass]);
  pass_dots_[pass].resize(pass_->terms.size());
  if (pass_->is_ranged) term_sums_[pass].resize(pass_->terms.size());
  for (size_t t = 0; t < pass_->terms.size(); ++t) {
    if (!has_dot(pass_->terms[t])) continue;
    auto& dots = pass_dots_[pass][t];
    const StoredTensor& tensor = tensor_of(pass_->terms[t]);
    add_totals(1 + t, tensor.channels, dots);
    if (pass_->is_ranged) add_totals(sum_line(t), tensor.channels, term_sums_[pass][t]);
    const int32_t weight = pass_->terms[t].weight;
    if (weight < 0 || in_->mixing_gradient == nullptr) continue;
    // The value is scale * stored + shift, where it is normalised.
    const float* affine = tensor.norm >= 0 ? in_->forward.affine(tensor.norm, 0) : nullptr;
    double sum = 0;
    for (size_t c = 0; c < dots.size(); ++c) {
      if (affine == nullptr) {
        sum += dots[c];
        continue;
      }
      const double scale = affine[c], shift = affine[channel_stride_ + static_cast<int64_t>(c)];
      const double centre =
          static_cast<float>(in_->statistics.mean[static_cast<size_t>(tensor.norm)][c]);
      sum += scale * dots[c] + (shift + scale * centre) * pass_sums_[pass][c];
    }
    in_->mixing_gradient[weight] += static_cast<float>(sum);
  }
}

// Whether a result is read through a ReLU, or as a part of a pass, or a part of it is.
bool Backward::is_read_in_ranges(const StoredTensor& tensor,
                                 const std::vector<Reader>& readers) const {
  return tensor.is_rectified ||
         std::any_of(readers.begin(), readers.end(), [&](const Reader& reader) {
           const PassTerm& term = term_of(reader);
           return term.to != 0 || term.count != tensor.channels ||
                  pass_of(reader).channels != tensor.channels;
         });
}

void Backward::set_coefficients() {
  std::vector<double> sum, dot;
  for (size_t i = 0; i < pass_->consumers.size(); ++i) {
    const Consumer& consumer = pass_->consumers[i];
    if (!layout_.consumers[i].is_live || consumer.out < 0) continue;
    const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
    const auto& readers = in_->reverse.readers_of(consumer.out);
    float* constant = coefficient(i, readers_ + 1);
    if (out.norm < 0) {
      for (size_t r = 0; r < readers.size(); ++r) {
        std::fill_n(coefficient(i, r), channel_stride_, coefficient_factor(readers[r]));
      }
      std::fill_n(constant, channel_stride_, 0.0f);
      continue;
    }
    sum.assign(static_cast<size_t>(out.channels), 0.0);
    dot.assign(static_cast<size_t>(out.channels), 0.0);
    for (const Reader& reader : readers) {
      const auto pass = static_cast<size_t>(reader.pass), term = static_cast<size_t>(reader.term);
      const auto& sums = pass_of(reader).is_ranged ? term_sums_[pass][term] : pass_sums_[pass];
      const auto& dots = pass_dots_[pass][term];
      const double factor = coefficient_factor(reader);
      for (size_t c = 0; c < sum.size(); ++c) {
        sum[c] += factor * sums[c];
        dot[c] += factor * dots[c];
      }
    }
    float* of_gradient = coefficient(i, 0);
    finish_norm(out.norm, out.halvings, sum.data(), dot.data(), of_gradient,
                coefficient(i, readers_), constant);
    for (size_t r = readers.size(); r-- > 0;) {  // the first one last: the others are made of it
      // By the channels of the reader's gradient.
      const int32_t to = term_of(readers[r]).to;
      for (int64_t c = channel_stride_ - to; c-- > 0;) {
        coefficient(i, r)[c + to] = of_gradient[c] * coefficient_factor(readers[r]);
      }
    }
  }
}

// With z = (y - mean) * factor + beta, and g the gradient of z,
//   dy = factor * (g - mean(g) - (y - mean) / deviation * mean(g * (y - mean) / deviation)),
// which is of_gradient * g + of_value * y + constant. `sum` is that of g, `dot` that of
// g * (y - centre) with the centre of set_centres(). Scale and shift get their gradients.
void Backward::finish_norm(int32_t index, int32_t halvings, const double* sum, const double* dot,
                           float* of_gradient, float* of_value, float* constant) {
  const Norm& norm = in_->schedule.norms[static_cast<size_t>(index)];
  const Unit& unit = context_.units[static_cast<size_t>(norm.unit)];
  const auto [height, width] = context_.geometry[halvings];
  double images = 0;
  for (const int32_t in_block : in_->batch.images) images += in_block;
  const double count = images * height * width;
  const auto& means = in_->statistics.mean[static_cast<size_t>(index)];
  const auto& variances = in_->statistics.variance[static_cast<size_t>(index)];
  std::fill_n(of_gradient, channel_stride_, 0.0f);
  std::fill_n(of_value, channel_stride_, 0.0f);
  std::fill_n(constant, channel_stride_, 0.0f);
  for (int32_t c = 0; c < norm.channels; ++c) {
    const double mean = means[static_cast<size_t>(c)];
    const double inverse = 1.0 / std::sqrt(variances[static_cast<size_t>(c)] + kBatchNormEpsilon);
    const double gamma = unit.gamma >= 0 ? double{context_.arena[unit.gamma + c]} : 1.0;
    const double factor = gamma * inverse;
    const double centre = static_cast<float>(mean);
    const double product = inverse * (dot[c] + (centre - mean) * sum[c]);
    of_gradient[c] = static_cast<float>(factor);
    of_value[c] = static_cast<float>(-factor * inverse * product / count);
    constant[c] = static_cast<float>(factor * (inverse * mean * product - sum[c]) / count);
    if (unit.gamma >= 0) in_->gradient[unit.gamma + c] = static_cast<float>(product);
    if (unit.beta >= 0) in_->gradient[unit.beta + c] = static_cast<float>(sum[c]);
  }
}

// Merges the blocks' sums in their order and writes them as [out, in, kernel, kernel].
void Backward::write_weight(const Consumer& consumer, const BackwardLayout::OfConsumer& layout) {
  const Unit& unit = context_.units[static_cast<size_t>(consumer.unit)];
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  float* total = block_sums(0) + layout.sums;
  for (int32_t b = 1; b < in_->batch.num_blocks(); ++b) {
    const float* more = block_sums(b) + layout.sums;
    for (int64_t k = 0; k < layout.num_sums; ++k) total[k] += more[k];
  }
  const int64_t taps = int64_t{consumer.kernel} * consumer.kernel;
  const int64_t in = pass_->channels;
  float* gradient = in_->gradient + unit.weight;
  // What is always zero among the inputs leaves the gradient of its weights zero.
  std::vector<int64_t> input(static_cast<size_t>(in));
  std::iota(input.begin(), input.end(), int64_t{0});
  if (!pass_->inputs.empty()) {
    std::fill_n(gradient, int64_t{unit.in_channels} * out.channels * taps, 0.0f);
    size_t next = 0;
    for (const Range& range : pass_->inputs) {
      for (int32_t c = 0; c < range.count; ++c) input[next++] = range.begin + c;
    }
  }
  for (int64_t o = 0; o < out.channels; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const float* from =
          total +
          ((o / 4 * (padded_channels(pass_->channels) / 4) + i / 4) * taps * 4 + o % 4) * 4 + i % 4;
      float* to = gradient + (o * unit.in_channels + input[static_cast<size_t>(i)]) * taps;
      for (int64_t tap = 0; tap < taps; ++tap) to[tap] = from[tap * 16];
    }
  }
  // Statistics of the minibatch cancel a bias in front of them.
  if (unit.bias >= 0) std::fill_n(in_->gradient + unit.bias, out.channels, 0.0f);
}

}  // namespace nasfast
