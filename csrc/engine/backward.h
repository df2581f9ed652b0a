// SPDX-License-Identifier: MIT
// The way back over a training schedule: gradients of all weights that a lane uses.
//
// Passes are walked from the last to the first. A pass takes the gradients of the passes behind it,
// turns them into those of its consumers' results (with the batch norm between), and makes of them,
// band of rows by band of rows, the gradients of its weights and that of its own value; what the
// batch norms of its terms need of that is summed on the way. What went through the ReLU is not
// stored but combined again from the terms, which are read for those sums anyway.
//
// Sums over images and pixels are kept for every block and merged in the order of blocks, so
// results do not depend on threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/executor.h"
#include "engine/memory.h"
#include "kernels/cpu/gradients.h"
#include "program/reverse.h"

namespace nasfast {

// Where the pieces of a pass's scratch lie, in bytes, for one thread.
struct BackwardLayout {
  struct OfConsumer {
    bool is_live = false;
    int32_t rows = 0;      // of its result's gradient that are kept
    int64_t gradient = 0;  // those rows: operands, of pools values
    int64_t own = 0;       // rows of its share in the pass's gradient
    int64_t packed = 0;    // some rows of `gradient`, packed
    int64_t sums = 0;      // floats before its weight gradient among those of a block
    int64_t num_sums = 0;
    int32_t packed_rows = 1;
  };
  int32_t band = 1;          // rows of the pass's gradient that are made together
  int32_t lead = 0;          // rows of its value that must be there ahead of them
  int32_t rows = 1;          // of its value that are kept
  int32_t packed_rows = 1;   // rows of weight gradients that are made together, at stride 1
  int32_t input_kernel = 0;  // the largest one at stride 1
  int64_t operand = 0, raw = 0, halved = 0, packed_input = 0, pairs = 0, sums = 0, bytes = 0;
  int64_t num_sums = 0;  // floats of a block's weight gradients
  std::vector<OfConsumer> consumers;
};

class Backward {
 public:
  struct Inputs {
    const Schedule& schedule;
    const Reverse& reverse;
    const Batch& batch;          // one minibatch
    Executor& forward;           // has just run the schedule on the batch
    const Recorded& statistics;  // that it took
    const std::byte* images;
    const float* logit_gradient;          // [images, classes]
    std::span<const void* const> packed;  // [views] weights for gradients of inputs
    const float* mixing;                  // mixing weights, or null
    float* gradient;         // arena: all parameters that the lane uses are written to their places
    float* mixing_gradient;  // added to
  };

  // `limits` as of the executor of the way forward. `include` every schedule, then `reserve`.
  Backward(const Context& context, const Limits& limits, int32_t threads);
  void include(const Schedule& schedule, const Reverse& reverse);
  void reserve();
  void run(const Inputs& inputs, Team* team);
  // Where the gradient of a pass lies, by its buffer.
  std::byte* gradient_block(int32_t buffer, int32_t block) const {
    return gradients_.data() + (int64_t{buffer} * limits_.blocks + block) * gradient_block_;
  }
  int64_t bytes() const {
    return gradients_.size() + scratch_.size() + sums_.size() + totals_.size() + head_own_.size();
  }

 private:
  struct BlockState;
  using BlockTask = void (Backward::*)(int32_t thread, int32_t block);

  BackwardLayout layout_of(const Schedule& schedule, const Reverse& reverse, size_t pass) const;
  void run_pass(size_t pass);
  void for_blocks(BlockTask task);
  void run_block(int32_t thread, int32_t block);
  BlockState begin_block(int32_t thread, int32_t block);
  void combine_value(BlockState& state, int32_t end);
  void combine_gradient(BlockState& state, size_t consumer, int32_t end);
  void combine_ranged_gradient(BlockState& state, size_t consumer, int32_t end);
  void use_gradient(BlockState& state, size_t consumer, int32_t begin, int32_t end);
  void convolve_back(BlockState& state, size_t consumer, int32_t begin, int32_t end);
  void convolve_back_halved(BlockState& state, size_t consumer, int32_t begin, int32_t end);
  void run_shortcut(BlockState& state, size_t consumer, int32_t begin, int32_t end);
  void weight_gradients(BlockState& state, int32_t begin, int32_t end);
  void weight_gradients_halved(BlockState& state, size_t consumer, int32_t begin, int32_t end);
  void weight_gradient(BlockState& state, size_t consumer, int32_t first, int32_t rows,
                       int32_t in_width, int32_t input_kernel);
  void finish_rows(BlockState& state, int32_t begin, int32_t end);
  void pool_back(BlockState& state, size_t consumer, int32_t y, void* out);
  void max_halve_back(BlockState& state, size_t consumer, int32_t y, void* out);
  kernels::cpu::GradientTerm gradient_term(const BlockState& state, size_t term, int32_t y,
                                           float* sums) const;

  // The head: batch norm, ReLU, mean, classifier (backward_head.cpp).
  void run_head(const Consumer& consumer);
  void head_block(int32_t thread, int32_t block);
  kernels::cpu::HeadGradientRow head_arguments(int32_t block) const;

  // Batch norms and sums over blocks (backward_sums.cpp).
  void set_centres();
  void set_coefficients();
  void finish_norm(int32_t norm, int32_t halvings, const double* sum, const double* dot,
                   float* of_gradient, float* of_value, float* constant);
  void add_totals(size_t line, int32_t channels, std::vector<double>& out) const;
  void sum_terms(size_t pass);
  void write_weight(const Consumer& consumer, const BackwardLayout::OfConsumer& layout);

  const StoredTensor& tensor_of(const PassTerm& term) const {
    return in_->schedule.tensors[static_cast<size_t>(term.tensor)];
  }
  bool has_dot(const PassTerm& term) const { return term.weight >= 0 || tensor_of(term).norm >= 0; }
  const Pass& pass_of(const Reader& reader) const {
    return in_->schedule.passes[static_cast<size_t>(reader.pass)];
  }
  const PassTerm& term_of(const Reader& reader) const {
    return pass_of(reader).terms[static_cast<size_t>(reader.term)];
  }
  bool is_read_in_ranges(const StoredTensor& tensor, const std::vector<Reader>& readers) const;
  float coefficient_factor(const Reader& reader) const {
    return reader.weight >= 0 ? in_->mixing[reader.weight] : 1.0f;
  }
  // Lines of the sums of a pass: of its gradient; of each term's dots; and, where terms are ranges
  // or rectified, of each term's own gradient.
  static int64_t num_lines(const Pass& pass) {
    return 1 + static_cast<int64_t>(pass.terms.size()) * (pass.is_ranged ? 2 : 1);
  }
  size_t sum_line(size_t term) const { return 1 + pass_->terms.size() + term; }
  int64_t most_lines() const { return 1 + 2 * std::max(limits_.terms, 1); }
  std::byte* gradient_of(int32_t pass, int32_t block) const {
    return gradient_block(in_->reverse.gradient[static_cast<size_t>(pass)], block);
  }
  // Channel coefficients of a consumer's result: of its readers, then of its value, and a constant.
  float* coefficient(size_t consumer, size_t which) {
    return coefficients_.data() +
           static_cast<int64_t>(consumer * (readers_ + 2) + which) * channel_stride_;
  }
  double* totals(int32_t block, size_t line) const {
    return totals_.at<double>(0) +
           (int64_t{block} * most_lines() + static_cast<int64_t>(line)) * line_floats_;
  }
  float* block_sums(int32_t block) const { return sums_.at<float>(0) + block * block_sums_; }

  const Context& context_;
  const Limits limits_;
  const int32_t threads_;
  const int64_t channel_stride_;  // floats: padded channels of the widest tensor, in lines
  const int64_t line_floats_;     // of all lines of a pixel
  // The most that any included schedule needs.
  int64_t gradient_block_ = 0, scratch_bytes_ = 0, block_sums_ = 0;
  int32_t num_gradients_ = 0;
  size_t readers_ = 1;
  Memory gradients_;  // [buffer][block]
  Memory scratch_;    // [thread]
  Memory sums_;       // [block] float weight gradients of the pass at hand
  Memory totals_;     // [block][most_lines][line_floats] double sums of its gradient
  Memory head_own_;   // [block][line_floats] gradient of the mean over the image, by pixel
  Memory features_;   // [block][line_floats] double sums over the image
  std::vector<float> centres_;       // [terms][channel_stride]
  std::vector<float> coefficients_;  // [consumers][readers + 2][channel_stride]
  std::vector<float> head_;          // centre, then three coefficients, [4][channel_stride]

  // The run and the pass at hand.
  const Inputs* in_ = nullptr;
  Team* team_ = nullptr;
  size_t index_ = 0;
  const Pass* pass_ = nullptr;
  BackwardLayout layout_;
  // Sums over blocks and images of the passes done.
  std::vector<std::vector<double>> pass_sums_;               // [passes][channels]
  std::vector<std::vector<std::vector<double>>> pass_dots_;  // [passes][terms][channels]
  std::vector<std::vector<std::vector<double>>> term_sums_;  // likewise, of ranged passes
};

}  // namespace nasfast
