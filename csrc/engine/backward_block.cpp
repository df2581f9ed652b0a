// SPDX-License-Identifier: MIT
// The way back through one pass over one block of images.
#include <algorithm>

#include "engine/backward.h"
#include "engine/backward_state.h"
#include "engine/convolution.h"

namespace nasfast {

using kernels::cpu::CombineRangedRow;
using kernels::cpu::GradientTerm;
using kernels::cpu::RangedTerm;
using kernels::cpu::Term;

Backward::BlockState Backward::begin_block(int32_t thread, int32_t block) {
  const auto& geometry = context_.geometry;
  const auto [height, width] = geometry[pass_->halvings];
  BlockState state;
  state.block = block;
  state.height = height;
  state.width = width;
  state.value_row = geometry.row_bytes(context_.value, pass_->halvings, pass_->channels);
  state.scratch = scratch_.data() + thread * scratch_bytes_;
  const int64_t operand_row =
      geometry.row_bytes(context_.kernels.operand, pass_->halvings, pass_->channels);
  state.operand = {state.scratch + layout_.operand, operand_row, layout_.rows};
  if (pass_->reads_images) {
    const std::byte* images = in_->images + block * operand_row * height;
    state.operand = {const_cast<std::byte*>(images), operand_row, height};
    state.ready = height;
  }
  in_->forward.bind_terms(*pass_, block, 0, state.terms);
  if (pass_->kept >= 0) {
    const StoredTensor& kept = in_->schedule.tensors[static_cast<size_t>(pass_->kept)];
    state.raw = {in_->forward.block_of(kept, block), state.value_row, height};
  } else if (pass_->in_place) {
    state.raw = state.terms.sources[0];
  } else {
    state.raw = {state.scratch + layout_.raw, state.value_row, layout_.rows};
    state.writes_raw =
        std::any_of(pass_->consumers.begin(), pass_->consumers.end(),
                    [](const Consumer& consumer) { return reads_raw(consumer.use); });
  }
  for (size_t i = 0; i < pass_->consumers.size(); ++i) {
    const Consumer& consumer = pass_->consumers[i];
    auto& own = state.consumers.emplace_back();
    if (!layout_.consumers[i].is_live || consumer.out < 0) continue;
    const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
    const auto storage = is_pool(consumer.use) ? context_.value : context_.kernels.operand;
    const int64_t row = geometry.row_bytes(storage, out.halvings, out.channels);
    own.gradient = {state.scratch + layout_.consumers[i].gradient, row, layout_.consumers[i].rows};
    const auto& readers = in_->reverse.readers_of(consumer.out);
    if (is_pool(consumer.use) && readers.size() == 1 && readers[0].weight < 0 &&
        !is_read_in_ranges(out, readers)) {
      // One pass reads it as it is: so its gradient is that pass's.
      const int32_t out_height = geometry[out.halvings].height;
      own.gradient = {gradient_of(readers[0].pass, block), row, out_height};
      own.ready = out_height;
    }
  }
  return state;
}

void Backward::run_block(int32_t thread, int32_t block) {
  BlockState state = begin_block(thread, block);
  if (layout_.num_sums > 0) std::fill_n(block_sums(block), layout_.num_sums, 0.0f);
  const int64_t numbers = num_lines(*pass_) * line_floats_;
  std::fill_n(totals(block, 0), numbers, 0.0);
  std::fill_n(reinterpret_cast<float*>(state.scratch + layout_.sums), numbers, 0.0f);
  for (int32_t begin = 0; begin < state.height; begin += layout_.band) {
    const int32_t end = std::min(state.height, begin + layout_.band);
    combine_value(state, std::min(state.height, end + layout_.lead));
    for (size_t i = 0; i < pass_->consumers.size(); ++i) {
      if (layout_.consumers[i].is_live) use_gradient(state, i, begin, end);
    }
    weight_gradients(state, begin, end);
    if (in_->reverse.gradient[index_] >= 0) finish_rows(state, begin, end);
  }
}

// Sums the terms once more, as the way forward did.
void Backward::combine_value(BlockState& state, int32_t end) {
  const bool writes_operand = pass_->needs_operand();
  for (int32_t y = state.ready; y < end && (writes_operand || state.writes_raw); ++y) {
    in_->forward.combine_row(*pass_, state.terms, y, 0, state.writes_raw ? state.raw[y] : nullptr,
                             writes_operand ? state.operand[y] : nullptr);
  }
  state.ready = std::max(state.ready, end);
}

// Makes rows of the gradient of a consumer's result, up to `end`: through its batch norm, from the
// gradients of the passes that read it.
void Backward::combine_gradient(BlockState& state, size_t index, int32_t end) {
  const Consumer& consumer = pass_->consumers[index];
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const auto& readers = in_->reverse.readers_of(consumer.out);
  auto& own = state.consumers[index];
  if (own.ready >= end) return;
  if (is_read_in_ranges(out, readers)) return combine_ranged_gradient(state, index, end);
  const auto [out_height, out_width] = context_.geometry[out.halvings];
  const int64_t row = context_.geometry.row_bytes(context_.value, out.halvings, out.channels);
  const bool of_pool = is_pool(consumer.use);
  std::vector<Rows> sources;
  std::vector<Term> terms;
  for (size_t r = 0; r < readers.size(); ++r) {
    sources.push_back({gradient_of(readers[r].pass, state.block), row, out_height});
    terms.push_back({nullptr, coefficient(index, r)});
  }
  if (out.norm >= 0) {
    sources.push_back({in_->forward.block_of(out, state.block), row, out_height});
    terms.push_back({nullptr, coefficient(index, readers_)});
  }
  for (; own.ready < end; ++own.ready) {
    for (size_t t = 0; t < terms.size(); ++t) terms[t].row = sources[t][own.ready];
    void* to = own.gradient[own.ready];
    context_.kernels.combine({terms.data(), coefficient(index, readers_ + 1),
                              static_cast<int32_t>(terms.size()), out_width, out.channels,
                              of_pool ? to : nullptr, of_pool ? nullptr : to, true});
  }
}

// The same where a pass reads the result among other channels, or through a ReLU: the gradients of
// its readers count where the value was positive.
void Backward::combine_ranged_gradient(BlockState& state, size_t index, int32_t end) {
  const Consumer& consumer = pass_->consumers[index];
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const auto& readers = in_->reverse.readers_of(consumer.out);
  auto& own = state.consumers[index];
  const auto [out_height, out_width] = context_.geometry[out.halvings];
  const auto rows_of = [&](std::byte* block, int32_t channels) {
    return Rows{block, context_.geometry.row_bytes(context_.value, out.halvings, channels),
                out_height};
  };
  std::vector<Rows> sources;
  std::vector<RangedTerm> terms;
  for (size_t r = 0; r < readers.size(); ++r) {
    const int32_t channels = pass_of(readers[r]).channels;
    const PassTerm& term = term_of(readers[r]);
    sources.push_back(rows_of(gradient_of(readers[r].pass, state.block), channels));
    terms.push_back(
        {nullptr, coefficient(index, r), nullptr, channels, term.to, 0, term.count, false});
  }
  const Rows values = rows_of(in_->forward.block_of(out, state.block), out.channels);
  if (out.norm >= 0) {
    sources.push_back(values);
    terms.push_back(
        {nullptr, coefficient(index, readers_), nullptr, out.channels, 0, 0, out.channels, false});
  }
  CombineRangedRow row{};
  row.num_terms = static_cast<int32_t>(terms.size());
  row.width = out_width;
  row.channels = out.channels;
  row.shift = coefficient(index, readers_ + 1);
  row.is_linear = true;
  if (out.is_rectified) {
    const float* scale = in_->forward.affine(out.norm, 0);
    row.num_masked = static_cast<int32_t>(readers.size());
    row.mask = {nullptr, scale, scale + channel_stride_, out.channels, 0, 0, out.channels, false};
  }
  for (; own.ready < end; ++own.ready) {
    for (size_t t = 0; t < terms.size(); ++t) terms[t].row = sources[t][own.ready];
    row.terms = terms.data();
    row.mask.row = values[own.ready];
    (is_pool(consumer.use) ? row.raw : row.operand) = own.gradient[own.ready];
    context_.kernels.combine_ranged(row);
  }
}

// What a consumer's gradient gives for rows of the pass's: it is kept until those are finished.
void Backward::use_gradient(BlockState& state, size_t index, int32_t begin, int32_t end) {
  const Consumer& consumer = pass_->consumers[index];
  if (consumer.out < 0) return;
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const int32_t out_height = context_.geometry[out.halvings].height;
  const int32_t pad = consumer.kernel / 2;
  const bool is_wanted = in_->reverse.gradient[index_] >= 0;
  switch (consumer.use) {
    case Use::kConv:
      if (consumer.stride == 2) {
        combine_gradient(state, index, std::min(out_height, (end - 1 + pad) / 2 + 1));
        if (is_wanted) convolve_back_halved(state, index, begin, end);
        weight_gradients_halved(state, index, begin, end);
      } else {
        combine_gradient(state, index, std::min(out_height, end + pad));
        if (is_wanted) convolve_back(state, index, begin, end);
      }
      break;
    case Use::kAvgPool:
    case Use::kMaxPool:
      combine_gradient(state, index, std::min(out_height, end + pad));
      break;
    case Use::kMaxHalve:
      combine_gradient(state, index, (end - 1 + context_.geometry.padding) / 2 + 1);
      break;
    case Use::kShortcut:
      combine_gradient(state, index, (end + 1) / 2);
      run_shortcut(state, index, begin, end);
      break;
    case Use::kMeasure:
    case Use::kClassify:
      break;
  }
}

void Backward::convolve_back(BlockState& state, size_t index, int32_t begin, int32_t end) {
  const Consumer& consumer = pass_->consumers[index];
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const Convolution convolution(context_.kernels, out.channels, pass_->channels, consumer.kernel, 1,
                                state.width);
  const int32_t at_once = convolution.rows_at_once();
  const Rows own = {state.scratch + layout_.consumers[index].own, state.value_row, layout_.band};
  state.pointers.resize(static_cast<size_t>(consumer.kernel) + 1);
  for (int32_t y = begin; y < end; y += at_once) {
    window_rows(state.consumers[index].gradient, y - consumer.kernel / 2,
                consumer.kernel + at_once - 1, state.height, state.pointers.data());
    const bool has_below = at_once == 2 && y + 1 < end;
    convolution.run({state.pointers.data(), in_->packed[static_cast<size_t>(consumer.view)],
                     own[y - begin], nullptr, state.width, state.width, out.channels,
                     pass_->channels, consumer.kernel, 1, false,
                     has_below ? own[y + 1 - begin] : nullptr, state.scratch + layout_.pairs});
  }
}

void Backward::convolve_back_halved(BlockState& state, size_t index, int32_t begin, int32_t end) {
  const Consumer& consumer = pass_->consumers[index];
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const auto [out_height, out_width] = context_.geometry[out.halvings];
  const Rows own = {state.scratch + layout_.consumers[index].own, state.value_row, layout_.band};
  state.pointers.resize(static_cast<size_t>(consumer.kernel));
  for (int32_t y = begin; y < end; ++y) {
    for (int32_t dy = 0; dy < consumer.kernel; ++dy) {
      // Tap dy of the window of row t / 2 reads row y.
      const int32_t t = y + consumer.kernel / 2 - dy;
      const bool exists = t >= 0 && t % 2 == 0 && t / 2 < out_height;
      state.pointers[static_cast<size_t>(dy)] =
          exists ? state.consumers[index].gradient[t / 2] : nullptr;
    }
    context_.kernels.gradients->convolve_transposed(
        {state.pointers.data(), in_->packed[static_cast<size_t>(consumer.view)], own[y - begin],
         nullptr, out_width, state.width, out.channels, pass_->channels, consumer.kernel, 2,
         false});
  }
}

void Backward::pool_back(BlockState& state, size_t index, int32_t y, void* out) {
  const Consumer& consumer = pass_->consumers[index];
  const int32_t kernel = consumer.kernel, pad = kernel / 2;
  const Rows& gradient = state.consumers[index].gradient;
  std::vector<int32_t> num_rows(static_cast<size_t>(kernel));
  state.pointers.resize(static_cast<size_t>(3 * kernel - 1));
  const void** rows = state.pointers.data();
  window_rows(gradient, y - pad, kernel, state.height, rows);
  for (int32_t dy = 0; dy < kernel; ++dy) {
    const int32_t centre = y - pad + dy;
    num_rows[static_cast<size_t>(dy)] =
        std::min(state.height, centre + pad + 1) - std::max(0, centre - pad);
  }
  const void** values = rows + kernel;
  const auto& kernels = *context_.kernels.gradients;
  if (consumer.use == Use::kAvgPool) {
    kernels.avg_pool({rows, num_rows.data(), nullptr, out, state.width, pass_->channels, kernel});
  } else {
    window_rows(state.raw, y - 2 * pad, 2 * kernel - 1, state.height, values);
    kernels.max_pool({rows, nullptr, values, out, state.width, pass_->channels, kernel});
  }
}

void Backward::max_halve_back(BlockState& state, size_t index, int32_t y, void* out) {
  const int32_t shifted = y + context_.geometry.padding;
  const void* values[2];
  window_rows(state.raw, y - shifted % 2, 2, state.height, values);
  context_.kernels.gradients->max_halve({{values[0], values[1]},
                                         shifted % 2,
                                         state.consumers[index].gradient[shifted / 2],
                                         out,
                                         state.width,
                                         pass_->channels,
                                         context_.geometry.padding});
}

// What the batch norm of a term needs of the pass's gradient. `sums`: lines of the pass.
GradientTerm Backward::gradient_term(const BlockState& state, size_t t, int32_t y,
                                     float* sums) const {
  const auto line = [&](size_t index) { return sums + static_cast<int64_t>(index) * line_floats_; };
  GradientTerm term = {state.terms.sources[t][y],
                       centres_.data() + static_cast<int64_t>(t) * channel_stride_, line(1 + t)};
  if (!pass_->is_ranged) return term;
  const RangedTerm& range = state.terms.ranged[t];
  term.sum = line(sum_line(t));
  if (range.rectified) {
    term.scale = range.scale;
    term.shift = range.shift;
  }
  term.channels = range.channels;
  term.from = range.from;
  term.to = range.to;
  term.count = range.count;
  return term;
}

// Rows of the pass's gradient, from all shares.
void Backward::finish_rows(BlockState& state, int32_t begin, int32_t end) {
  const Rows out = {gradient_of(static_cast<int32_t>(index_), state.block), state.value_row,
                    state.height};
  auto* sum = reinterpret_cast<float*>(state.scratch + layout_.sums);
  for (int32_t y = begin; y < end; ++y) {
    state.masked.clear();
    state.plain.clear();
    state.dots.clear();
    for (size_t i = 0; i < pass_->consumers.size(); ++i) {
      const Consumer& consumer = pass_->consumers[i];
      if (!layout_.consumers[i].is_live) continue;
      std::byte* own = state.scratch + layout_.consumers[i].own;
      if (consumer.use == Use::kConv) {
        state.masked.push_back(own + (y - begin) * state.value_row);
        continue;
      }
      if (consumer.use == Use::kShortcut) {
        const StoredTensor& shortcut = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
        const int64_t row =
            context_.geometry.row_bytes(context_.value, shortcut.halvings, pass_->channels);
        const std::byte* halved = own + (y / 2 - begin / 2) * row;
        own += (layout_.band / 2 + 1) * row;
        context_.kernels.gradients->halve(
            {halved, own, state.width, pass_->channels, (y | 1) < state.height ? 2 : 1});
      } else if (consumer.use == Use::kClassify) {
        kernels::cpu::HeadGradientRow row = head_arguments(state.block);
        row.row = state.raw[y];
        row.out = own;
        context_.kernels.gradients->head(row);
      } else if (consumer.use == Use::kMaxHalve) {
        max_halve_back(state, i, y, own);
      } else {
        pool_back(state, i, y, own);
      }
      state.plain.push_back({own, 1.0f});
    }
    if (pass_->kept >= 0) {
      for (const Reader& reader : in_->reverse.readers_of(pass_->kept)) {
        const std::byte* row = gradient_of(reader.pass, state.block) + y * state.value_row;
        state.plain.push_back({row, reader.weight >= 0 ? in_->mixing[reader.weight] : 1.0f});
      }
    }
    for (size_t t = 0; t < pass_->terms.size(); ++t) {
      if (!has_dot(pass_->terms[t])) continue;
      state.dots.push_back(gradient_term(state, t, y, sum));
    }
    context_.kernels.gradients->finish(
        {state.masked.data(), state.masked.empty() ? nullptr : state.operand[y], state.plain.data(),
         state.dots.data(), static_cast<int32_t>(state.masked.size()),
         static_cast<int32_t>(state.plain.size()), static_cast<int32_t>(state.dots.size()),
         state.width, pass_->channels, out[y], sum});
  }
  const auto flush = [&](size_t line, int32_t channels) {
    context_.kernels.gradients->flush(sum + static_cast<int64_t>(line) * line_floats_,
                                      totals(state.block, line), channels);
  };
  flush(0, pass_->channels);
  for (size_t t = 0; t < pass_->terms.size(); ++t) {
    if (!has_dot(pass_->terms[t])) continue;
    const int32_t channels = tensor_of(pass_->terms[t]).channels;
    flush(1 + t, channels);
    if (pass_->is_ranged) flush(sum_line(t), channels);
  }
}

}  // namespace nasfast
