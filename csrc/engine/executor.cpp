// SPDX-License-Identifier: MIT
#include "engine/executor.h"

#include <algorithm>

#include "engine/executor_state.h"

namespace nasfast {

using kernels::cpu::CombineRangedRow;
using kernels::cpu::kBlockImages;
using kernels::cpu::Moments;
using kernels::cpu::padded_channels;
using kernels::cpu::RangedTerm;
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

void widen(std::vector<int32_t>& of_halvings, int32_t halvings, int32_t channels) {
  const auto at = static_cast<size_t>(halvings);
  if (of_halvings.size() <= at) of_halvings.resize(at + 1, 0);
  of_halvings[at] = std::max(of_halvings[at], channels);
}

}  // namespace

void Limits::include(const Schedule& schedule) {
  buffers = std::max(buffers, schedule.num_buffers);
  wide_buffers = std::max(wide_buffers, schedule.num_wide_buffers);
  norms = std::max(norms, static_cast<int32_t>(schedule.norms.size()));
  for (const StoredTensor& tensor : schedule.tensors) {
    channels = std::max(channels, tensor.channels);
    if (tensor.external >= 0) continue;
    widen(tensor.is_wide ? stored_wide : stored, tensor.halvings, tensor.channels);
  }
  for (const Pass& pass : schedule.passes) {
    if (!pass.reads_images) widen(summed, pass.halvings, pass.channels);
    channels = std::max(channels, pass.channels);
    terms = std::max(terms, static_cast<int32_t>(pass.terms.size()));
    consumers = std::max(consumers, static_cast<int32_t>(pass.consumers.size()));
    for (const Consumer& consumer : pass.consumers) kernel = std::max(kernel, consumer.kernel);
  }
}

void Limits::include_kept(const Schedule& schedule, const Geometry& geometry, Storage value) {
  keeps_all = true;
  int64_t bytes = 0;
  for (const StoredTensor& tensor : schedule.tensors) {
    if (tensor.external >= 0) continue;
    bytes += geometry.block_bytes(value, tensor.halvings, tensor.channels);
  }
  kept_bytes = std::max(kept_bytes, bytes);
}

Executor::Executor(const Context& context, const Limits& limits, int32_t threads)
    : context_(context), limits_(limits) {
  const Storage operand = context.kernels.operand, value = context.value;
  channel_stride_ = (padded_channels(limits.channels) + 15) / 16 * 16;
  operand_row_ = 0;
  int64_t operand_ring = 0, value_ring = 0;
  for (size_t i = 0; i < limits.summed.size(); ++i) {
    const auto halvings = static_cast<int32_t>(i);
    const int32_t channels = limits.summed[i], height = context.geometry[halvings].height;
    if (channels == 0) continue;
    const int64_t operand_row = context.geometry.row_bytes(operand, halvings, channels);
    const int64_t value_row = context.geometry.row_bytes(value, halvings, channels);
    const int64_t rows = ring_rows(operand_row, height, limits.kernel);
    operand_ring = std::max(operand_ring, rows * operand_row);
    value_ring = std::max(value_ring, rows * value_row);
    operand_row_ = std::max(operand_row_, operand_row);
  }
  const auto largest_block = [&](const std::vector<int32_t>& channels) {
    int64_t bytes = 0;
    for (size_t i = 0; i < channels.size(); ++i) {
      bytes = std::max(
          bytes, context.geometry.block_bytes(context.value, static_cast<int32_t>(i), channels[i]));
    }
    return bytes;
  };
  block_stride_ = largest_block(limits.stored);
  wide_stride_ = largest_block(limits.stored_wide);
  const int64_t line_floats = channel_stride_ * kBlockImages;
  const int64_t sums = limits.consumers * line_floats * 2 * int64_t{sizeof(float)};
  scratch_stride_ =
      operand_ring + value_ring + operand_row_ + sums + line_floats * int64_t{sizeof(double)};
  if (const auto* pairs = context.kernels.pairs) {
    scratch_stride_ += Memory::aligned(pairs->scratch_bytes(limits.channels, limits.channels));
  }
  operand_ring_ = operand_ring;
  value_ring_ = value_ring;
  const int64_t of_block =
      limits.keeps_all ? limits.kept_bytes
                       : limits.buffers * block_stride_ + limits.wide_buffers * wide_stride_;
  buffers_ = Memory(limits.kept == nullptr ? of_block * limits.blocks : 0);
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
  weighted_.resize(static_cast<size_t>(limits.terms) * shift_.size());
  for (int32_t i = 0; i < threads; ++i) {
    thread_states_.push_back(std::make_unique<ThreadState>());
    PassTerms& terms = thread_states_.back()->terms;
    terms.sources.resize(static_cast<size_t>(limits.terms));
    terms.plain.resize(static_cast<size_t>(limits.terms));
    terms.ranged.resize(static_cast<size_t>(limits.terms));
    thread_states_.back()->next.resize(static_cast<size_t>(limits.consumers));
  }
}

Executor::~Executor() = default;

int64_t Executor::bytes() const {
  return buffers_.size() + affine_.size() + statistics_.size() + scratch_.size();
}

std::byte* Executor::block_of(const StoredTensor& tensor, int32_t block) const {
  if (tensor.external >= 0) return shared_->block(tensor.external, block);
  if (limits_.keeps_all) {
    const int64_t bytes =
        context_.geometry.block_bytes(context_.value, tensor.halvings, tensor.channels);
    std::byte* kept = limits_.kept != nullptr ? limits_.kept : buffers_.data();
    return kept + places_[static_cast<size_t>(tensor.buffer)] * limits_.blocks + block * bytes;
  }
  std::byte* first = buffers_.data();
  if (tensor.is_wide) first += int64_t{limits_.buffers} * limits_.blocks * block_stride_;
  const int64_t stride = tensor.is_wide ? wide_stride_ : block_stride_;
  return first + (int64_t{tensor.buffer} * limits_.blocks + block) * stride;
}

// Null for a tensor that is a value already.
const float* Executor::scale_of(const StoredTensor& tensor, int32_t minibatch) const {
  if (tensor.norm < 0) return nullptr;
  if (tensor.external >= 0 && shared_->scales != nullptr) {
    return shared_->scale(tensor.external, minibatch);
  }
  return affine(tensor.norm, minibatch);
}

void Executor::run(const Schedule& schedule, const Batch& batch, const SharedValues& shared,
                   const std::byte* images, Recorded* recorded, bool recording, Team* team,
                   float* logits, const float* mixing) {
  schedule_ = &schedule;
  batch_ = &batch;
  shared_ = &shared;
  images_ = images;
  recorded_ = recorded;
  recording_ = recording;
  team_ = team;
  logits_ = logits;
  mixing_ = mixing;
  if (limits_.keeps_all) place_tensors();
  if (recorded != nullptr && (recording || limits_.keeps_all)) {
    recorded->mean.resize(schedule.norms.size());
    recorded->variance.resize(schedule.norms.size());
  }
  for (const Pass& pass : schedule.passes) run_pass(pass);
}

void Executor::restore(const Schedule& schedule, const Batch& batch, const SharedValues& shared,
                       const Recorded& statistics, const float* mixing) {
  schedule_ = &schedule;
  batch_ = &batch;
  shared_ = &shared;
  mixing_ = mixing;
  place_tensors();
  for (size_t n = 0; n < schedule.norms.size(); ++n) {
    set_affine(schedule.norms[n], static_cast<int32_t>(n), 0, statistics.mean[n].data(),
               statistics.variance[n].data());
  }
}

void Executor::place_tensors() {
  places_.assign(schedule_->tensors.size(), 0);
  int64_t end = 0;
  for (const StoredTensor& tensor : schedule_->tensors) {
    if (tensor.external >= 0) continue;
    places_[static_cast<size_t>(tensor.buffer)] = end;
    end += context_.geometry.block_bytes(context_.value, tensor.halvings, tensor.channels);
  }
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
  prepare_terms(pass);
  if (team_ != nullptr && team_->size() > 1) {
    team_->run(batch_->num_blocks(), [&](int32_t thread, int64_t block) {
      run_block(pass, thread, static_cast<int32_t>(block));
    });
  } else {
    // To and fro: what the pass before wrote last is still in the cache.
    const int32_t count = batch_->num_blocks();
    forward_ = !forward_;
    for (int32_t i = 0; i < count; ++i) run_block(pass, 0, forward_ ? i : count - 1 - i);
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

// Scales of weighted terms, and the shift of all terms together.
void Executor::prepare_terms(const Pass& pass) {
  if (pass.is_ranged) return;  // each term has its own shift
  for (int32_t m = 0; m < batch_->num_minibatches(); ++m) {
    float* total = shift_.data() + m * channel_stride_;
    std::fill_n(total, channel_stride_, 0.0f);
    for (size_t t = 0; t < pass.terms.size(); ++t) {
      const auto [tensor, weight, to, count] = pass.terms[t];
      const float* scale = scale_of(schedule_->tensors[static_cast<size_t>(tensor)], m);
      const float factor = weight >= 0 ? mixing_[weight] : 1.0f;
      if (weight >= 0) {
        float* weighted = weighted_.data() + weighted_offset(t, m);
        const float* own = scale != nullptr ? scale : constants_.at<float>(0);
        for (int64_t c = 0; c < channel_stride_; ++c) weighted[c] = own[c] * factor;
      }
      if (scale == nullptr) continue;
      const float* shift = scale + channel_stride_;
      for (int32_t c = 0; c < padded_channels(pass.channels); ++c) total[c] += shift[c] * factor;
    }
  }
}

const float* Executor::scale_of_term(const Pass& pass, size_t term, int32_t minibatch) const {
  const int32_t tensor = pass.terms[term].tensor;
  if (pass.terms[term].weight >= 0) return weighted_.data() + weighted_offset(term, minibatch);
  const float* scale = scale_of(schedule_->tensors[static_cast<size_t>(tensor)], minibatch);
  return scale != nullptr ? scale : constants_.at<float>(0);
}

RangedTerm Executor::ranged(const PassTerm& term, int32_t minibatch) const {
  const StoredTensor& tensor = schedule_->tensors[static_cast<size_t>(term.tensor)];
  const float* scale = scale_of(tensor, minibatch);
  const float* shift = scale != nullptr ? scale + channel_stride_ : nullptr;
  return {nullptr,    scale != nullptr ? scale : constants_.at<float>(0),
          shift,      tensor.channels,
          0,          term.to,
          term.count, tensor.is_rectified};
}

void Executor::bind_terms(const Pass& pass, int32_t block, int32_t minibatch,
                          PassTerms& terms) const {
  const size_t count = pass.terms.size();
  terms.sources.resize(count);
  terms.plain.resize(pass.is_ranged ? 0 : count);
  terms.ranged.resize(pass.is_ranged ? count : 0);
  for (size_t t = 0; t < count; ++t) {
    const StoredTensor& tensor = schedule_->tensors[static_cast<size_t>(pass.terms[t].tensor)];
    terms.sources[t] = {
        block_of(tensor, block),
        context_.geometry.row_bytes(context_.value, tensor.halvings, tensor.channels),
        context_.geometry[tensor.halvings].height};
    if (pass.is_ranged) {
      terms.ranged[t] = ranged(pass.terms[t], minibatch);
    } else {
      terms.plain[t] = {nullptr, scale_of_term(pass, t, minibatch)};
    }
  }
}

void Executor::combine_row(const Pass& pass, PassTerms& terms, int32_t y, int32_t minibatch,
                           void* raw, void* operand) const {
  const int32_t width = context_.geometry[pass.halvings].width;
  const auto num_terms = static_cast<int32_t>(pass.terms.size());
  if (pass.is_ranged) {
    for (size_t t = 0; t < terms.ranged.size(); ++t) terms.ranged[t].row = terms.sources[t][y];
    CombineRangedRow row{};
    row.terms = terms.ranged.data();
    row.num_terms = num_terms;
    row.width = width;
    row.channels = pass.channels;
    row.raw = raw;
    row.operand = operand;
    return context_.kernels.combine_ranged(row);
  }
  for (size_t t = 0; t < terms.plain.size(); ++t) terms.plain[t].row = terms.sources[t][y];
  context_.kernels.combine({terms.plain.data(), shift_.data() + minibatch * channel_stride_,
                            num_terms, width, pass.channels, raw, operand});
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
  auto& [terms, next] = *thread_states_[static_cast<size_t>(thread)];
  bind_terms(pass, block, minibatch, terms);
  if (pass.kept >= 0) {
    const StoredTensor& kept = schedule_->tensors[static_cast<size_t>(pass.kept)];
    state.raw = {block_of(kept, block), value_row, height};
  } else if (pass.in_place) {
    state.raw = terms.sources[0];
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
      combine_row(pass, terms, y, minibatch, writes_raw ? state.raw[y] : nullptr,
                  writes_operand ? state.operand[y] : nullptr);
    }
    for (size_t i = 0; i < pass.consumers.size(); ++i) {
      consume(pass, pass.consumers[i], state, static_cast<int32_t>(i), end);
    }
  }
  for (const Consumer& consumer : pass.consumers) {
    if (consumer.use == Use::kClassify) classify(pass, consumer, block, state.sums);
  }
}

}  // namespace nasfast
