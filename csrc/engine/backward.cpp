// SPDX-License-Identifier: MIT
#include "engine/backward.h"

#include <algorithm>

#include "engine/backward_state.h"

namespace nasfast {

using kernels::cpu::kBlockImages;
using kernels::cpu::padded_channels;
using kernels::cpu::Storage;

namespace {

// As on the way forward: enough rows to amortise calls, few enough for the second-level cache.
constexpr int64_t kBandBytes = 128 << 10;
// Steps of a packed band: two of its groups fit into the first-level cache.
constexpr int64_t kPackedSteps = 64;

}  // namespace

Backward::Backward(const Context& context, const Limits& limits, int32_t threads)
    : context_(context),
      limits_(limits),
      threads_(threads),
      channel_stride_((padded_channels(limits.channels) + 15) / 16 * 16),
      line_floats_(channel_stride_ * kBlockImages) {}

BackwardLayout Backward::layout_of(const Schedule& schedule, const Reverse& reverse,
                                   size_t index) const {
  const Pass& pass = schedule.passes[index];
  const auto& kernels = context_.kernels;
  const auto& gradients = *kernels.gradients;
  const auto& geometry = context_.geometry;
  const auto [height, width] = geometry[pass.halvings];
  const int64_t operand_row = geometry.row_bytes(kernels.operand, pass.halvings, pass.channels);
  const int64_t value_row = geometry.row_bytes(context_.value, pass.halvings, pass.channels);
  BackwardLayout layout;
  layout.band = static_cast<int32_t>(std::clamp<int64_t>(kBandBytes / operand_row, 1, height));
  // Even: kernels that make two rows at once, and halved images.
  if (layout.band < height) layout.band = std::min(height, std::max(2, layout.band / 2 * 2));
  const auto packed_rows = [&](int32_t columns) {
    const int64_t steps = (columns + gradients.step_pixels - 1) / gradients.step_pixels;
    return static_cast<int32_t>(std::clamp<int64_t>(kPackedSteps / steps, 1, layout.band));
  };
  layout.packed_rows = packed_rows(width);
  int64_t end = 0;
  const auto take = [&end](int64_t bytes) {
    const int64_t begin = end;
    end += Memory::aligned(bytes);
    return begin;
  };
  int32_t pad = 0;
  bool needs_raw = false, has_maxima = false;
  for (const Consumer& consumer : pass.consumers) {
    layout.consumers.emplace_back().is_live = reverse.is_live(consumer);
    if (!layout.consumers.back().is_live) continue;
    pad = std::max(pad, consumer.kernel / 2);
    has_maxima |= consumer.use == Use::kMaxPool;
    needs_raw |= reads_raw(consumer.use);
    if (consumer.use == Use::kConv && consumer.stride == 1) {
      layout.input_kernel = std::max(layout.input_kernel, consumer.kernel);
    }
  }
  layout.lead = has_maxima ? 2 * pad : pad;
  layout.rows = std::min(height, layout.band + 2 * layout.lead + 2);
  if (!pass.reads_images && pass.needs_operand()) layout.operand = take(layout.rows * operand_row);
  if (needs_raw && pass.kept < 0 && !pass.in_place) layout.raw = take(layout.rows * value_row);
  int64_t packed_input = 0;
  if (layout.input_kernel > 0) {
    packed_input = gradients.packed_input_bytes(layout.packed_rows + layout.input_kernel - 1, width,
                                                width, pass.channels, layout.input_kernel);
  }
  for (size_t i = 0; i < pass.consumers.size(); ++i) {
    const Consumer& consumer = pass.consumers[i];
    auto& own = layout.consumers[i];
    if (!own.is_live) continue;
    if (consumer.use == Use::kClassify) {
      own.own = take(value_row);
      continue;
    }
    const StoredTensor& out = schedule.tensors[static_cast<size_t>(consumer.out)];
    const auto [out_height, out_width] = geometry[out.halvings];
    const bool of_pool = is_pool(consumer.use);
    const bool is_shortcut = consumer.use == Use::kShortcut;
    own.rows = std::min(out_height, layout.band + 2 * (consumer.kernel / 2) + 2);
    own.gradient = take(own.rows * geometry.row_bytes(of_pool ? context_.value : kernels.operand,
                                                      out.halvings, out.channels));
    if (of_pool) {
      own.own = take(value_row);
      continue;
    }
    own.packed_rows = packed_rows(out_width);
    own.packed = take(gradients.packed_gradient_bytes(own.packed_rows, out_width, out.channels));
    own.sums = layout.num_sums;
    own.num_sums = int64_t{padded_channels(out.channels)} * padded_channels(pass.channels) *
                   consumer.kernel * consumer.kernel;
    layout.num_sums += own.num_sums;
    if (is_shortcut) {
      const int32_t halved_rows = layout.band / 2 + 1;
      layout.halved =
          take(halved_rows * geometry.row_bytes(kernels.operand, out.halvings, pass.channels));
      own.own = take(halved_rows * geometry.row_bytes(context_.value, out.halvings, pass.channels) +
                     value_row);
      packed_input = std::max(
          packed_input,
          gradients.packed_input_bytes(own.packed_rows, out_width, out_width, pass.channels, 1));
      continue;
    }
    own.own = take(layout.band * value_row);
    if (consumer.stride == 2) {
      packed_input = std::max(packed_input, gradients.packed_input_bytes(
                                                (own.packed_rows - 1) * 2 + consumer.kernel, width,
                                                out_width, pass.channels, consumer.kernel));
    }
  }
  layout.packed_input = take(packed_input);
  layout.sums = take(num_lines(pass) * line_floats_ * int64_t{sizeof(float)});
  // The head needs two, whatever it sums.
  take(line_floats_ * int64_t{sizeof(float)});
  if (kernels.pairs != nullptr) {
    layout.pairs = take(kernels.pairs->scratch_bytes(limits_.channels, limits_.channels));
  }
  layout.bytes = end;
  return layout;
}

void Backward::include(const Schedule& schedule, const Reverse& reverse) {
  num_gradients_ = std::max(num_gradients_, reverse.num_buffers);
  for (const auto& readers : reverse.readers) readers_ = std::max(readers_, readers.size());
  for (size_t p = 0; p < schedule.passes.size(); ++p) {
    const Pass& pass = schedule.passes[p];
    const BackwardLayout layout = layout_of(schedule, reverse, p);
    scratch_bytes_ = std::max(scratch_bytes_, layout.bytes);
    block_sums_ = std::max(block_sums_, layout.num_sums);
    if (!pass.reads_images) {
      gradient_block_ =
          std::max(gradient_block_,
                   context_.geometry.block_bytes(context_.value, pass.halvings, pass.channels));
    }
  }
}

void Backward::reserve() {
  const int64_t blocks = limits_.blocks;
  gradients_ = Memory(num_gradients_ * blocks * gradient_block_);
  scratch_ = Memory(threads_ * scratch_bytes_);
  sums_ = Memory(blocks * block_sums_ * int64_t{sizeof(float)});
  totals_ = Memory(blocks * most_lines() * line_floats_ * int64_t{sizeof(double)});
  head_own_ = Memory(blocks * line_floats_ * int64_t{sizeof(float)});
  features_ = Memory(blocks * line_floats_ * int64_t{sizeof(double)});
  centres_.resize(static_cast<size_t>(limits_.terms * channel_stride_));
  coefficients_.resize(static_cast<size_t>(limits_.consumers) * (readers_ + 2) *
                       static_cast<size_t>(channel_stride_));
  head_.resize(static_cast<size_t>(4 * channel_stride_));
}

void Backward::run(const Inputs& inputs, Team* team) {
  in_ = &inputs;
  team_ = team;
  const size_t count = inputs.schedule.passes.size();
  pass_sums_.assign(count, {});
  pass_dots_.assign(count, {});
  term_sums_.assign(count, {});
  for (size_t p = count; p-- > 0;) run_pass(p);
}

void Backward::for_blocks(BlockTask task) {
  const int32_t count = in_->batch.num_blocks();
  if (team_ != nullptr && team_->size() > 1) {
    team_->run(count, [&](int32_t thread, int64_t block) {
      (this->*task)(thread, static_cast<int32_t>(block));
    });
  } else {
    for (int32_t block = 0; block < count; ++block) (this->*task)(0, block);
  }
}

void Backward::run_pass(size_t index) {
  index_ = index;
  pass_ = &in_->schedule.passes[index];
  layout_ = layout_of(in_->schedule, in_->reverse, index);
  const bool has_live = std::any_of(layout_.consumers.begin(), layout_.consumers.end(),
                                    [](const auto& consumer) { return consumer.is_live; });
  if (!has_live && in_->reverse.gradient[index] < 0) return;
  in_->forward.prepare_terms(*pass_);
  set_centres();
  for (const Consumer& consumer : pass_->consumers) {
    if (consumer.use == Use::kClassify) run_head(consumer);
  }
  set_coefficients();
  for_blocks(&Backward::run_block);
  if (in_->reverse.gradient[index] >= 0) sum_terms(index);
  for (size_t i = 0; i < pass_->consumers.size(); ++i) {
    if (layout_.consumers[i].num_sums > 0) {
      write_weight(pass_->consumers[i], layout_.consumers[i]);
    }
  }
}

}  // namespace nasfast
