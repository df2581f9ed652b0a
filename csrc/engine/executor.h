// SPDX-License-Identifier: MIT
// Runs the passes of a schedule over the blocks of a batch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/memory.h"
#include "engine/rows.h"
#include "engine/team.h"
#include "kernels/cpu/kernels.h"
#include "program/program_table.h"
#include "program/schedule.h"

namespace nasfast {

// What all executors of a chunk share; outlives them.
struct Context {
  std::span<const Position> positions;  // of the skeleton
  std::span<const Unit> units;
  const kernels::cpu::Kernels& kernels;
  kernels::cpu::Storage value;  // storage of values
  const Geometry& geometry;
  const float* arena;                   // of the chunk's weight set
  std::span<const void* const> packed;  // [views] packed weights; null where not used
  BatchNormMode modes[3];               // by Part
};

// Pooled statistics of one lane, by norm; filled while calibrating, then read.
struct Recorded {
  std::vector<std::vector<double>> mean, variance;
};

// Where the tensors that lanes share lie, and how they are normalised.
struct SharedValues {
  struct Place {
    std::byte* data = nullptr;
    int64_t block_stride = 0;  // bytes between blocks
  };
  std::vector<Place> places;      // [slot]
  const float* scales = nullptr;  // [slot][minibatch][2][channel_stride]: scale, shift
  int64_t channel_stride = 0;
  int32_t minibatches = 0;

  std::byte* block(int32_t slot, int32_t block) const {
    const Place& place = places[static_cast<size_t>(slot)];
    return place.data + block * place.block_stride;
  }
  int64_t scale_offset(int32_t slot, int32_t minibatch) const {
    return (int64_t{slot} * minibatches + minibatch) * 2 * channel_stride;
  }
  const float* scale(int32_t slot, int32_t minibatch) const {
    return scales + scale_offset(slot, minibatch);
  }
};

// The most that any schedule of a run needs.
struct Limits {
  int32_t buffers = 0, wide_buffers = 0;
  int32_t norms = 0;
  int32_t consumers = 0;  // of a pass
  int32_t terms = 0;      // of a pass
  int32_t channels = 0;   // of any tensor
  int32_t kernel = 1;
  int32_t blocks = 0;
  int32_t minibatches = 0;
  // Channels by halvings of the image: of values that passes sum, and of tensors of a lane's own.
  std::vector<int32_t> summed, stored, stored_wide;
  // In training every tensor has a place of its own: bytes that those of a lane take for a block.
  bool keeps_all = false;
  int64_t kept_bytes = 0;
  std::byte* kept = nullptr;  // where they lie; null: in memory of the executor's own

  void include(const Schedule& schedule);
  void include_kept(const Schedule& schedule, const Geometry& geometry,
                    kernels::cpu::Storage value);
};

// The terms of a pass over one block: where their rows lie, and what scales them.
struct PassTerms {
  std::vector<Rows> sources;
  std::vector<kernels::cpu::Term> plain;
  std::vector<kernels::cpu::RangedTerm> ranged;  // instead, of a pass with `is_ranged`
};

class Executor {
 public:
  // `threads`: most threads of a team that may share this executor.
  Executor(const Context& context, const Limits& limits, int32_t threads);
  ~Executor();

  // Runs a schedule. With a team its threads share the blocks of every pass, otherwise the caller
  // does them in order; the results are the same. `recorded` is needed where a part recalibrates:
  // filled when `recording`, else read; in mode batch filled if it is there, and the batch is one
  // minibatch. `logits`: [images of the batch, classes], where the schedule has a classifier.
  // `mixing`: mixing weights, where terms have some.
  void run(const Schedule& schedule, const Batch& batch, const SharedValues& shared,
           const std::byte* images, Recorded* recorded, bool recording, Team* team, float* logits,
           const float* mixing = nullptr);

  // Puts the executor where a run in mode batch with these statistics left it, when tensors were
  // kept outside of it.
  void restore(const Schedule& schedule, const Batch& batch, const SharedValues& shared,
               const Recorded& statistics, const float* mixing);

  // Scale and shift of a norm: [2][channel_stride()].
  float* affine(int32_t norm, int32_t minibatch) const {
    return affine_.at<float>(0) +
           (int64_t{norm} * limits_.minibatches + minibatch) * 2 * channel_stride_;
  }
  // Scale and shift of a value that is one already.
  const float* identity() const { return constants_.at<float>(0); }
  int64_t channel_stride() const { return channel_stride_; }
  // Of the last run: where a tensor lies, and, once a pass is prepared, its terms and their sum.
  std::byte* block_of(const StoredTensor& tensor, int32_t block) const;
  void prepare_terms(const Pass& pass);
  void bind_terms(const Pass& pass, int32_t block, int32_t minibatch, PassTerms& terms) const;
  // Row y of the sum, as a value, as an operand, or both.
  void combine_row(const Pass& pass, PassTerms& terms, int32_t y, int32_t minibatch, void* raw,
                   void* operand) const;
  int64_t bytes() const;

 private:
  struct BlockPass;
  struct ThreadState;
  void run_pass(const Pass& pass);
  void run_block(const Pass& pass, int32_t thread, int32_t block);
  void consume(const Pass& pass, const Consumer& consumer, BlockPass& state, int32_t index,
               int32_t end);
  void convolve_rows(const Pass& pass, const Consumer& consumer, BlockPass& state, int32_t index,
                     int32_t end);
  Rows rows_of(const Consumer& consumer, int32_t block) const;
  void classify(const Pass& pass, const Consumer& consumer, int32_t block, const double* sums);
  void finish_norm(int32_t norm, int32_t halvings, const kernels::cpu::Moments* moments);
  void set_affine(const Norm& norm, int32_t index, int32_t minibatch, const double* mean,
                  const double* variance);
  bool needs_statistics(int32_t norm) const;
  void place_tensors();
  int64_t weighted_offset(size_t term, int32_t minibatch) const {
    return (static_cast<int64_t>(term) * limits_.minibatches + minibatch) * channel_stride_;
  }
  const float* scale_of(const StoredTensor& tensor, int32_t minibatch) const;
  const float* scale_of_term(const Pass& pass, size_t term, int32_t minibatch) const;
  kernels::cpu::RangedTerm ranged(const PassTerm& term, int32_t minibatch) const;
  kernels::cpu::Moments* moments_of(int32_t consumer) {
    return moments_.data() + int64_t{consumer} * limits_.blocks;
  }

  const Context& context_;
  const Limits limits_;
  int64_t channel_stride_;              // floats: padded channels of the widest tensor, in lines
  int64_t block_stride_, wide_stride_;  // bytes of the largest block of a value
  int64_t operand_row_;                 // bytes of the largest row of operands
  int64_t operand_ring_, value_ring_;   // bytes of the rows that a thread keeps
  Memory buffers_, affine_, constants_, statistics_, scratch_;
  int64_t scratch_stride_;
  std::vector<kernels::cpu::Moments> moments_;  // [consumer][block]
  std::vector<std::unique_ptr<ThreadState>> thread_states_;
  std::vector<double> mean_, variance_;
  std::vector<float> shift_;     // [minibatch][channel_stride] of all terms of a pass
  std::vector<float> weighted_;  // [term][minibatch][channel_stride] scales of weighted terms
  std::vector<int64_t> places_;  // [tensors] bytes of a block before each, where all are kept

  // The run at hand.
  const Schedule* schedule_ = nullptr;
  const Batch* batch_ = nullptr;
  const SharedValues* shared_ = nullptr;
  const std::byte* images_ = nullptr;
  Recorded* recorded_ = nullptr;
  bool recording_ = false;
  Team* team_ = nullptr;
  float* logits_ = nullptr;
  const float* mixing_ = nullptr;
  bool forward_ = false;  // order of the blocks in the pass at hand
};

}  // namespace nasfast
