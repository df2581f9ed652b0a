// SPDX-License-Identifier: MIT
// Gradients of weights, over one block of images.
#include <algorithm>

#include "engine/backward.h"
#include "engine/backward_state.h"

namespace nasfast {

// Gradients of the halved rows and of the weight that read them.
void Backward::run_shortcut(BlockState& state, size_t index, int32_t begin, int32_t end) {
  const Consumer& consumer = pass_->consumers[index];
  const auto& layout = layout_.consumers[index];
  const auto& kernels = context_.kernels;
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const int32_t out_width = context_.geometry[out.halvings].width;
  const int32_t first = begin / 2, count = (end + 1) / 2 - first;
  const Rows own = {state.scratch + layout.own,
                    context_.geometry.row_bytes(context_.value, out.halvings, pass_->channels),
                    layout_.band / 2 + 1};
  const Rows halved = {state.scratch + layout_.halved,
                       context_.geometry.row_bytes(kernels.operand, out.halvings, pass_->channels),
                       layout_.band / 2 + 1};
  const Rows& gradient = state.consumers[index].gradient;
  for (int32_t y = 0; y < count; ++y) {
    const int32_t source = 2 * (first + y);
    const void* below = source + 1 < state.height ? state.raw[source + 1] : nullptr;
    kernels.halve({{state.raw[source], below}, halved[y], state.width, pass_->channels});
    const void* row = gradient[first + y];
    kernels.convolve({&row, in_->packed[static_cast<size_t>(consumer.view)], own[y], nullptr,
                      out_width, out_width, out.channels, pass_->channels, 1, 1, false});
  }
  for (int32_t y = 0; y < count; y += layout.packed_rows) {
    const int32_t rows = std::min(layout.packed_rows, count - y);
    state.pointers.resize(static_cast<size_t>(rows));
    window_rows(halved, y, rows, count, state.pointers.data());
    kernels.gradients->pack_input(
        {state.pointers.data(), state.scratch + layout_.packed_input, rows, out_width,
         pass_->channels, in_->batch.images[static_cast<size_t>(state.block)], 1, 1, out_width});
    weight_gradient(state, index, first + y, rows, out_width, 1);
  }
}

// Of all convolutions of stride 1: they share the packed rows of what they read.
void Backward::weight_gradients(BlockState& state, int32_t begin, int32_t end) {
  const int32_t kernel = layout_.input_kernel;
  if (kernel == 0) return;
  for (int32_t y = begin; y < end; y += layout_.packed_rows) {
    const int32_t rows = std::min(layout_.packed_rows, end - y);
    state.pointers.resize(static_cast<size_t>(rows + kernel - 1));
    window_rows(state.operand, y - kernel / 2, rows + kernel - 1, state.height,
                state.pointers.data());
    context_.kernels.gradients->pack_input(
        {state.pointers.data(), state.scratch + layout_.packed_input, rows + kernel - 1,
         state.width, pass_->channels, in_->batch.images[static_cast<size_t>(state.block)], kernel,
         1, state.width});
    for (size_t i = 0; i < pass_->consumers.size(); ++i) {
      const Consumer& consumer = pass_->consumers[i];
      if (layout_.consumers[i].is_live && consumer.use == Use::kConv && consumer.stride == 1) {
        weight_gradient(state, i, y, rows, state.width, kernel);
      }
    }
  }
}

void Backward::weight_gradients_halved(BlockState& state, size_t index, int32_t begin,
                                       int32_t end) {
  const Consumer& consumer = pass_->consumers[index];
  const auto& layout = layout_.consumers[index];
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const int32_t out_width = context_.geometry[out.halvings].width;
  const int32_t last = (end + 1) / 2;
  for (int32_t y = begin / 2; y < last; y += layout.packed_rows) {
    const int32_t rows = std::min(layout.packed_rows, last - y);
    const int32_t read = (rows - 1) * 2 + consumer.kernel;
    state.pointers.resize(static_cast<size_t>(read));
    window_rows(state.operand, 2 * y - consumer.kernel / 2, read, state.height,
                state.pointers.data());
    context_.kernels.gradients->pack_input(
        {state.pointers.data(), state.scratch + layout_.packed_input, read, state.width,
         pass_->channels, in_->batch.images[static_cast<size_t>(state.block)], consumer.kernel, 2,
         out_width});
    weight_gradient(state, index, y, rows, state.width, consumer.kernel);
  }
}

// Adds rows [first, first + rows) of a consumer's gradient, with the input that is packed.
void Backward::weight_gradient(BlockState& state, size_t index, int32_t first, int32_t rows,
                               int32_t in_width, int32_t input_kernel) {
  const Consumer& consumer = pass_->consumers[index];
  const auto& layout = layout_.consumers[index];
  const StoredTensor& out = in_->schedule.tensors[static_cast<size_t>(consumer.out)];
  const int32_t out_width = context_.geometry[out.halvings].width;
  std::byte* packed = state.scratch + layout.packed;
  state.pointers.resize(static_cast<size_t>(rows));
  for (int32_t y = 0; y < rows; ++y) {
    state.pointers[static_cast<size_t>(y)] = state.consumers[index].gradient[first + y];
  }
  const auto& kernels = *context_.kernels.gradients;
  kernels.pack_gradient({state.pointers.data(), packed, rows, out_width, out.channels,
                         in_->batch.images[static_cast<size_t>(state.block)], 1, 1, out_width});
  kernels.weight({packed, state.scratch + layout_.packed_input,
                  block_sums(state.block) + layout.sums, rows, out_width, in_width, pass_->channels,
                  out.channels, consumer.kernel, input_kernel,
                  consumer.use == Use::kConv ? consumer.stride : 1});
}

}  // namespace nasfast
