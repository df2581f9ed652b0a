// SPDX-License-Identifier: MIT
#include "engine/executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace nasfast {

using kernels::cpu::kBlockImages;
using kernels::cpu::Moments;
using kernels::cpu::padded_channels;
using kernels::cpu::Storage;
using kernels::cpu::Term;

namespace {

// Rows of a pass that are produced before its consumers run: enough to amortise the calls, few
// enough to stay in the second-level cache together with the weights.
constexpr int64_t kBandBytes = 128 << 10;

int32_t band_rows(int64_t row_bytes, int32_t height) {
  return static_cast<int32_t>(std::clamp<int64_t>(kBandBytes / row_bytes, 1, height));
}

// A consumer may lag behind the rows that are there by its padding, and one more where it works on
// pairs of rows; it needs as many rows above as its padding.
int32_t ring_rows(int64_t row_bytes, int32_t height, int32_t kernel) {
  return std::min(height, band_rows(row_bytes, height) + std::max(kernel, 3));
}

}  // namespace

void Limits::include(const Schedule& schedule) {
  buffers = std::max(buffers, schedule.num_buffers);
  norms = std::max(norms, static_cast<int32_t>(schedule.norms.size()));
  for (const StoredTensor& tensor : schedule.tensors) channels = std::max(channels, tensor.channels);
  for (const Pass& pass : schedule.passes) {
    channels = std::max(channels, pass.channels);
    terms = std::max(terms, static_cast<int32_t>(pass.terms.size()));
    consumers = std::max(consumers, static_cast<int32_t>(pass.consumers.size()));
    for (const Consumer& consumer : pass.consumers) kernel = std::max(kernel, consumer.kernel);
  }
}

// Rows in memory; a ring where fewer are kept than there are.
struct Executor::Rows {
  std::byte* base = nullptr;
  int64_t row_bytes = 0;
  int32_t count = 1;

  std::byte* operator[](int32_t y) const { return base + (y % count) * row_bytes; }
};

// One pass over one block.
struct Executor::BlockPass {
  int32_t thread, block;
  int32_t height, width;
  Rows operand, raw;
  std::byte* halved;
  std::byte* pairs;  // scratch of kernels that work on pairs of rows
  double* sums;
};

// What a thread needs for a pass, sized once.
struct Executor::ThreadState {
  std::vector<Term> terms;
  std::vector<Rows> sources;
  std::vector<int32_t> next;  // row of each consumer's result that comes next
};

Executor::Executor(const Context& context, const Limits& limits, int32_t threads)
    : context_(context), limits_(limits) {
  const Storage operand = context.kernels.operand, value = context.value;
  channel_stride_ = (padded_channels(limits.channels) + 15) / 16 * 16;
  block_stride_ = operand_row_ = 0;
  int64_t operand_ring = 0, value_ring = 0;
  const auto include = [&](int32_t halvings, int32_t channels) {
    const int32_t height = context.geometry[halvings].height;
    const int64_t operand_row = context.geometry.row_bytes(operand, halvings, channels);
    const int64_t value_row = context.geometry.row_bytes(value, halvings, channels);
    const int64_t rows = ring_rows(operand_row, height, limits.kernel);
    operand_ring = std::max(operand_ring, rows * operand_row);
    value_ring = std::max(value_ring, rows * value_row);
    operand_row_ = std::max(operand_row_, operand_row);
    block_stride_ = std::max(block_stride_, value_row * height);
  };
  for (const Position& p : context.table.positions()) {
    if (p.kind != kStem) include(p.halvings, p.in_channels);
    if (p.kind == kReduction) include(p.halvings + 1, p.out_channels);
  }
  const int64_t line_floats = channel_stride_ * kBlockImages;
  const int64_t sums = limits.consumers * line_floats * 2 * int64_t{sizeof(float)};
  scratch_stride_ = operand_ring + value_ring + operand_row_ + sums +
                    line_floats * int64_t{sizeof(double)};
  if (const auto* pairs = context.kernels.pairs) {
    scratch_stride_ += Memory::aligned(pairs->scratch_bytes(limits.channels, limits.channels));
  }
  operand_ring_ = operand_ring;
  value_ring_ = value_ring;
  buffers_ = Memory(int64_t{limits.buffers} * limits.blocks * block_stride_);
  affine_ = Memory(int64_t{limits.norms} * limits.minibatches * 2 * channel_stride_ *
                   int64_t{sizeof(float)});
  constants_ = Memory(2 * channel_stride_ * int64_t{sizeof(float)});
  std::fill_n(constants_.at<float>(0), channel_stride_, 1.0f);
  std::fill_n(constants_.at<float>(0) + channel_stride_, channel_stride_, 0.0f);
  const int64_t per_block = line_floats * int64_t{2 * sizeof(double) + sizeof(float)};
  const int64_t num_moments = int64_t{limits.consumers} * limits.blocks;
  statistics_ = Memory(num_moments * per_block);
  scratch_ = Memory(threads * scratch_stride_);
  moments_.resize(static_cast<size_t>(num_moments));
  for (int64_t i = 0; i < num_moments; ++i) {
    Moments& m = moments_[static_cast<size_t>(i)];
    m.total = statistics_.at<double>(i * per_block);
    m.total_square = m.total + line_floats;
    m.pilot = reinterpret_cast<float*>(m.total_square + line_floats);
    m.sum = m.square = nullptr;
  }
  mean_.resize(static_cast<size_t>(limits.channels));
  variance_.resize(static_cast<size_t>(limits.channels));
  shift_.resize(static_cast<size_t>(limits.minibatches * channel_stride_));
  for (int32_t i = 0; i < threads; ++i) {
    thread_states_.push_back(std::make_unique<ThreadState>());
    thread_states_.back()->terms.resize(static_cast<size_t>(limits.terms));
    thread_states_.back()->sources.resize(static_cast<size_t>(limits.terms));
    thread_states_.back()->next.resize(static_cast<size_t>(limits.consumers));
  }
}

Executor::~Executor() = default;

int64_t Executor::bytes() const {
  return buffers_.size() + affine_.size() + statistics_.size() + scratch_.size();
}

std::byte* Executor::block_of(const StoredTensor& tensor, int32_t block) const {
  if (tensor.external >= 0) return shared_->block(tensor.external, block);
  return buffers_.data() + (int64_t{tensor.buffer} * limits_.blocks + block) * block_stride_;
}

// Null for a tensor that is a value already.
const float* Executor::scale_of(const StoredTensor& tensor, int32_t minibatch) const {
  if (tensor.norm < 0) return nullptr;
  if (tensor.external >= 0 && shared_->scales != nullptr) {
    return shared_->scale(tensor.external, minibatch);
  }
  return affine_.at<float>(0) +
         (int64_t{tensor.norm} * limits_.minibatches + minibatch) * 2 * channel_stride_;
}

void Executor::run(const Schedule& schedule, const Batch& batch, const SharedValues& shared,
                   const std::byte* images, Recorded* recorded, bool recording, Team* team,
                   float* logits) {
  schedule_ = &schedule;
  batch_ = &batch;
  shared_ = &shared;
  images_ = images;
  recorded_ = recorded;
  recording_ = recording;
  team_ = team;
  logits_ = logits;
  if (recording) {
    recorded->mean.resize(schedule.norms.size());
    recorded->variance.resize(schedule.norms.size());
  }
  for (const Pass& pass : schedule.passes) run_pass(pass);
}

bool Executor::needs_statistics(int32_t norm) const {
  if (norm < 0) return false;
  const Part part = schedule_->norms[static_cast<size_t>(norm)].part;
  const BatchNormMode mode = context_.modes[static_cast<size_t>(part)];
  return mode == kBatch || (mode == kRecalibrate && recording_);
}

void Executor::run_pass(const Pass& pass) {
  // A batch norm that needs no statistics of this pass is known before it.
  for (const Consumer& consumer : pass.consumers) {
    if (consumer.norm >= 0 && !needs_statistics(consumer.norm)) {
      finish_norm(consumer.norm, 0, nullptr);
    }
  }
  for (int32_t m = 0; m < batch_->num_minibatches(); ++m) {
    float* total = shift_.data() + m * channel_stride_;
    std::fill_n(total, channel_stride_, 0.0f);
    for (const int32_t term : pass.terms) {
      const float* scale = scale_of(schedule_->tensors[static_cast<size_t>(term)], m);
      if (scale == nullptr) continue;
      const float* shift = scale + channel_stride_;
      for (int32_t c = 0; c < padded_channels(pass.channels); ++c) total[c] += shift[c];
    }
  }
  if (team_ != nullptr && team_->size() > 1) {
    team_->run(batch_->num_blocks(), [&](int32_t thread, int64_t block) {
      run_block(pass, thread, static_cast<int32_t>(block));
    });
  } else {
    for (int32_t block = 0; block < batch_->num_blocks(); ++block) run_block(pass, 0, block);
  }
  for (size_t i = 0; i < pass.consumers.size(); ++i) {
    const Consumer& consumer = pass.consumers[i];
    const bool measured = consumer.use == Use::kConv || consumer.use == Use::kMeasure;
    if (measured && needs_statistics(consumer.norm)) {
      const int32_t halvings = pass.halvings + (consumer.stride == 2);
      finish_norm(consumer.norm, halvings, moments_of(static_cast<int32_t>(i)));
    }
  }
}

void Executor::run_block(const Pass& pass, int32_t thread, int32_t block) {
  const Storage operand = context_.kernels.operand, value = context_.value;
  const auto [height, width] = context_.geometry[pass.halvings];
  const int32_t minibatch = batch_->minibatch[static_cast<size_t>(block)];
  std::byte* scratch = scratch_.data() + thread * scratch_stride_;
  const int64_t operand_row = context_.geometry.row_bytes(operand, pass.halvings, pass.channels);
  const int64_t value_row = context_.geometry.row_bytes(value, pass.halvings, pass.channels);
  const int32_t band = band_rows(operand_row, height);
  const int32_t ring = ring_rows(operand_row, height, limits_.kernel);
  const int64_t line_floats = channel_stride_ * kBlockImages;

  BlockPass state{};
  state.thread = thread;
  state.block = block;
  state.height = height;
  state.width = width;
  state.operand = {scratch, operand_row, ring};
  state.raw = {scratch + operand_ring_, value_row, ring};
  state.halved = scratch + operand_ring_ + value_ring_;
  auto* sums = reinterpret_cast<float*>(state.halved + operand_row_);
  state.sums = reinterpret_cast<double*>(sums + limits_.consumers * 2 * line_floats);
  state.pairs = reinterpret_cast<std::byte*>(state.sums + line_floats);
  if (pass.reads_images) {
    const int64_t bytes = operand_row * height;
    state.operand = {const_cast<std::byte*>(images_) + block * bytes, operand_row, height};
  }
  auto& [terms, sources, next] = *thread_states_[static_cast<size_t>(thread)];
  for (size_t t = 0; t < pass.terms.size(); ++t) {
    const StoredTensor& tensor = schedule_->tensors[static_cast<size_t>(pass.terms[t])];
    sources[t] = {block_of(tensor, block), value_row, height};
    const float* scale = scale_of(tensor, minibatch);
    terms[t].scale = scale != nullptr ? scale : constants_.at<float>(0);
  }
  if (pass.kept >= 0) {
    const StoredTensor& kept = schedule_->tensors[static_cast<size_t>(pass.kept)];
    state.raw = {block_of(kept, block), value_row, height};
  } else if (pass.in_place) {
    state.raw = sources[0];
  }
  const bool writes_raw = pass.kept >= 0 || (pass.needs_raw() && !pass.in_place);
  const bool writes_operand = pass.needs_operand();
  for (size_t i = 0; i < pass.consumers.size(); ++i) {
    if (pass.consumers[i].use == Use::kClassify) {
      std::fill_n(state.sums, line_floats, 0.0);
    } else if (needs_statistics(pass.consumers[i].norm)) {
      Moments& m = moments_of(static_cast<int32_t>(i))[block];
      m.sum = sums + static_cast<int64_t>(i) * 2 * line_floats;
      m.square = m.sum + line_floats;
      std::fill_n(m.sum, 2 * line_floats, 0.0f);
      std::fill_n(m.total, 2 * line_floats, 0.0);
    }
  }
  std::fill_n(next.begin(), pass.consumers.size(), 0);
  for (int32_t begin = 0; begin < height; begin += band) {
    const int32_t end = std::min(height, begin + band);
    for (int32_t y = begin; y < end && !pass.reads_images && (writes_raw || writes_operand); ++y) {
      for (size_t t = 0; t < pass.terms.size(); ++t) terms[t].row = sources[t][y];
      context_.kernels.combine({terms.data(), shift_.data() + minibatch * channel_stride_,
                                static_cast<int32_t>(pass.terms.size()), width, pass.channels,
                                writes_raw ? state.raw[y] : nullptr,
                                writes_operand ? state.operand[y] : nullptr});
    }
    for (size_t i = 0; i < pass.consumers.size(); ++i) {
      consume(pass, pass.consumers[i], state, static_cast<int32_t>(i), end);
    }
  }
  for (const Consumer& consumer : pass.consumers) {
    if (consumer.use == Use::kClassify) classify(pass, consumer, block, state.sums);
  }
}

// Computes the rows of one consumer's result for which the pass has made enough rows, up to `end`.
void Executor::consume(const Pass& pass, const Consumer& consumer, BlockPass& state, int32_t index,
                       int32_t end) {
  if (consumer.use == Use::kConv) return convolve_rows(pass, consumer, state, index, end);
  const auto& kernels = context_.kernels;
  const bool halves = consumer.use == Use::kShortcut;
  const int32_t stride = halves ? 2 : 1;
  const int32_t below = halves ? 1 : consumer.kernel / 2;  // rows that a window reaches down
  const int32_t above = halves ? 0 : consumer.kernel / 2;
  const int32_t out_height = (state.height + stride - 1) / stride;
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
        kernels.convolve({&halved, context_.packed[static_cast<size_t>(consumer.unit)], out[row],
                          nullptr, out_width, out_width, pass.channels, tensor.channels, 1, 1,
                          false, nullptr, nullptr});
        break;
      }
      case Use::kMeasure:
        if (moments == nullptr) break;  // recalibrated statistics are known
        kernels.measure(
            {rows[0], state.width, pass.channels, nullptr, nullptr, moments, nullptr, row == 0});
        break;
      case Use::kClassify: {
        const int32_t minibatch = batch_->minibatch[static_cast<size_t>(state.block)];
        const float* scale = affine(consumer.norm, minibatch);
        kernels.accumulate({rows[0], state.width, pass.channels, scale, scale + channel_stride_,
                            nullptr, state.sums, false});
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
  const auto* pairs =
      kernels.pairs_for(pass.channels, tensor.channels, consumer.kernel, consumer.stride);
  const int32_t at_once = pairs != nullptr ? 2 : 1;
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
    const kernels::cpu::ConvRow conv = {
        rows, context_.packed[static_cast<size_t>(consumer.unit)], out[row], moments, state.width,
        out_width, pass.channels, tensor.channels, consumer.kernel, consumer.stride, row == 0,
        last > row ? out[last] : nullptr, state.pairs};
    if (pairs != nullptr) {
      pairs->convolve(conv);
    } else {
      kernels.convolve(conv);
    }
  }
  if (moments != nullptr) kernels.flush(*moments, tensor.channels);
}

// The rows of a consumer's result, if it has one.
Executor::Rows Executor::rows_of(const Consumer& consumer, int32_t block) const {
  if (consumer.out < 0) return {};
  const StoredTensor& tensor = schedule_->tensors[static_cast<size_t>(consumer.out)];
  return {block_of(tensor, block),
          context_.geometry.row_bytes(context_.value, tensor.halvings, tensor.channels),
          context_.geometry[tensor.halvings].height};
}

// Addresses of neighbouring rows; null outside the image.
void Executor::window_rows(const Rows& source, int32_t first, int32_t count, int32_t height,
                           const void** rows) {
  for (int32_t k = 0; k < count; ++k) {
    const int32_t y = first + k;
    rows[k] = y >= 0 && y < height ? source[y] : nullptr;
  }
}

void Executor::classify(const Pass& pass, const Consumer& consumer, int32_t block,
                        const double* sums) {
  const Unit& unit = context_.table.units()[static_cast<size_t>(consumer.unit)];
  const int32_t classes = context_.table.positions().back().out_channels;
  const auto [height, width] = context_.geometry[pass.halvings];
  const double pixels = static_cast<double>(height) * width;
  const float* weight = context_.arena + unit.weight;
  const float* bias = context_.arena + unit.bias;
  for (int32_t i = 0; i < batch_->images[static_cast<size_t>(block)]; ++i) {
    float* out = logits_ + (batch_->first_image[static_cast<size_t>(block)] + i) * classes;
    for (int32_t k = 0; k < classes; ++k) {
      double sum = 0;
      for (int32_t c = 0; c < pass.channels; ++c) {
        sum += double{weight[int64_t{k} * pass.channels + c]} *
               sums[int64_t{c} * kBlockImages + i];
      }
      out[k] = static_cast<float>(sum / pixels + double{bias[k]});
    }
  }
}

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
  const Unit& unit = context_.table.units()[static_cast<size_t>(norm.unit)];
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
  const Unit& unit = context_.table.units()[static_cast<size_t>(norm.unit)];
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
