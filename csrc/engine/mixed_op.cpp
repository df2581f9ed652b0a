// SPDX-License-Identifier: MIT
#include "engine/mixed_op.h"

#include <algorithm>

#include "engine/backward.h"
#include "engine/executor.h"
#include "engine/packed_weights.h"
#include "program/reverse.h"

namespace nasfast {

using kernels::cpu::Kernels;
using kernels::cpu::Precision;
using kernels::cpu::Storage;
using kernels::cpu::Term;

namespace {

// What the two passes are, and everything that runs them.
class Edge {
 public:
  using enum MixedSchedule::Tensor;  // the first two lie outside
  using enum MixedSchedule::Pass;

  Edge(const MixedCandidates& candidates, const Features& features, kernels::cpu::Isa isa,
       int32_t threads)
      : kernels_(kernels::cpu::kernels_of(
            isa, features.is_bfloat16 ? Precision::kBf16 : Precision::kFp32)),
        value_(features.is_bfloat16 ? Storage::kPair : Storage::kFloat),
        geometry_(features.height, features.width, 0, 0),
        batch_(std::vector<int64_t>{features.batch}),
        features_(features),
        passes_(candidates),
        team_(threads, kernels_.enter_thread, kernels_.leave_thread) {
    const int32_t channels = candidates.channels;
    positions_ = {{kCell, channels, channels, 0, 0, 0, 0}};
    limits_.blocks = batch_.num_blocks();
    limits_.minibatches = 1;
    limits_.include(schedule_);
    limits_.include_kept(schedule_, geometry_, value_);
  }

  int64_t input_bytes() const { return batch_.num_blocks() * features_.block_bytes(); }
  int64_t saved_bytes() const { return input_bytes() + limits_.kept_bytes * batch_.num_blocks(); }

  void forward(const float* weights, const float* parameters, const Features& out,
               float* statistics, std::byte* saved) {
    const Memory result(input_bytes());
    for_blocks([&](int32_t block) { features_.load(block, x_block(saved, block)); });
    const WeightViews views(units_.size());
    PackedWeights packed(units_, views, kernels_, geometry_);
    packed.include(schedule_);
    packed.pack(parameters);
    const Context context = context_of(parameters, packed.pointers());
    Executor executor(context, limits_in(saved), team_.size());
    Recorded recorded;
    executor.run(schedule_, batch_, outside(saved, result.data()), nullptr, &recorded, false,
                 &team_, nullptr, weights);
    for (size_t n = 0; n < schedule_.norms.size(); ++n) {
      for (const auto* numbers : {&recorded.mean[n], &recorded.variance[n]}) {
        for (const double number : *numbers) *statistics++ = static_cast<float>(number);
      }
    }
    for_blocks([&](int32_t block) { out.store(block, x_block(result.data(), block)); });
  }

  // `features_` is the gradient of the result.
  void backward(const float* weights, const float* parameters, const float* statistics,
                std::byte* saved, const Features& grad_x, float* grad_weights,
                float* grad_parameters) {
    const WeightViews views(units_.size());
    PackedWeights packed(units_, views, kernels_, geometry_, PackedWeights::Way::kInputGradient);
    packed.include(schedule_);
    packed.pack(parameters);
    Recorded recorded;
    for (const Norm& norm : schedule_.norms) {
      recorded.mean.emplace_back(statistics, statistics + norm.channels);
      statistics += norm.channels;
      recorded.variance.emplace_back(statistics, statistics + norm.channels);
      statistics += norm.channels;
    }
    const bool wants_x = grad_x.data != nullptr;
    const Reverse reverse = passes_.reverse(wants_x);
    const SharedValues shared = outside(saved, nullptr);
    const Context context = context_of(parameters, {});
    const Limits limits = limits_in(saved);
    Executor executor(context, limits, team_.size());
    executor.restore(schedule_, batch_, shared, recorded, weights);
    Backward backward(context, limits, team_.size());
    backward.include(schedule_, reverse);
    backward.reserve();
    for_blocks(
        [&](int32_t block) { features_.load(block, backward.gradient_block(kReader, block)); });
    backward.run({schedule_, reverse, batch_, executor, recorded, nullptr, nullptr,
                  packed.pointers(), weights, grad_parameters, grad_weights},
                 &team_);
    if (!wants_x) return;
    // The input's gradient: through the candidates that it feeds, and as it is.
    double identity = 0;
    for (const PassTerm& term : schedule_.passes[kSum].terms) {
      identity += term.tensor == kInput ? weights[term.weight] : 0.0f;
    }
    const auto channels = static_cast<size_t>(kernels::cpu::padded_channels(features_.channels));
    const std::vector<float> ones(channels, 1.0f), zeros(channels, 0.0f),
        of_identity(channels, static_cast<float>(identity));
    const int64_t row = geometry_.row_bytes(value_, 0, features_.channels);
    for_blocks([&](int32_t block) {
      std::byte* fed = backward.gradient_block(kFeed, block);
      const std::byte* own = backward.gradient_block(kSum, block);
      for (int32_t y = 0; y < features_.height; ++y, fed += row, own += row) {
        const Term both[2] = {{fed, ones.data()}, {own, of_identity.data()}};
        kernels_.combine(
            {both, zeros.data(), 2, features_.width, features_.channels, fed, nullptr});
      }
      grad_x.store(block, backward.gradient_block(kFeed, block));
    });
  }

 private:
  std::byte* x_block(std::byte* base, int32_t block) const {
    return base + block * features_.block_bytes();
  }
  Context context_of(const float* parameters, std::span<const void* const> packed) const {
    return {positions_, units_,     kernels_, value_,
            geometry_,  parameters, packed,   {kBatch, kBatch, kBatch}};
  }
  // In `saved` lies the input, then all that is kept.
  Limits limits_in(std::byte* saved) const {
    Limits limits = limits_;
    limits.kept = saved + input_bytes();
    return limits;
  }
  SharedValues outside(std::byte* input, std::byte* out) const {
    SharedValues values;
    const int64_t block = features_.block_bytes();
    values.places = {{input, block}, {out != nullptr ? out : input, block}};
    return values;
  }
  template <typename Task>
  void for_blocks(const Task& task) {
    team_.run(batch_.num_blocks(),
              [&](int32_t, int64_t block) { task(static_cast<int32_t>(block)); });
  }

  const Kernels& kernels_;
  const Storage value_;
  const Geometry geometry_;
  const Batch batch_;
  const Features features_;
  const MixedSchedule passes_;
  const Schedule& schedule_ = passes_.schedule;
  const std::vector<Unit>& units_ = passes_.units;
  Team team_;
  std::vector<Position> positions_;
  Limits limits_;  // without a place for what is kept
};

}  // namespace

int64_t mixed_op_saved_bytes(const MixedCandidates& candidates, const Features& features,
                             kernels::cpu::Isa isa) {
  return Edge(candidates, features, isa, 1).saved_bytes();
}

void mixed_op(const MixedCandidates& candidates, const Features& x, const float* weights,
              const float* parameters, const Features& out, float* statistics, std::byte* saved,
              kernels::cpu::Isa isa, int32_t threads) {
  Edge(candidates, x, isa, threads).forward(weights, parameters, out, statistics, saved);
}

void mixed_op_backward(const MixedCandidates& candidates, const Features& grad_out,
                       const float* weights, const float* parameters, const float* statistics,
                       std::byte* saved, const Features& grad_x, float* grad_weights,
                       float* grad_parameters, kernels::cpu::Isa isa, int32_t threads) {
  std::fill_n(grad_weights, candidates.all.size(), 0.0f);
  std::fill_n(grad_parameters, candidates.num_parameters(), 0.0f);
  Edge(candidates, grad_out, isa, threads)
      .backward(weights, parameters, statistics, saved, grad_x, grad_weights, grad_parameters);
}

}  // namespace nasfast
