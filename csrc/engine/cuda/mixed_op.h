// SPDX-License-Identifier: MIT
// The mixed operation of one edge on a CUDA device: the weighted sum of its candidate operations,
// from one read of the input; see engine/mixed_op.h. Neither way allocates anything on the device;
// what they are given lies there. Results depend on nothing but what is given.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "engine/cuda/edge_placement.h"
#include "engine/mixed_schedule.h"
#include "kernels/cuda/features.h"

namespace nasfast::cuda {

// Memory is aligned to Placement::kAlignment, results to kVectorBytes.
struct MixedTensors {
  kernels::cuda::FeatureTensor x;
  const float* weights;     // [candidates]
  const float* parameters;  // as of MixedCandidates
  void* out;                // [images, height, width, channels]
  float* statistics;        // [convolutions, 2, channels] mean without bias, biased variance
  std::byte* saved;         // for the way back
};

class MixedForward {
 public:
  // Throws std::invalid_argument where the candidates do not fit a device.
  MixedForward(const MixedCandidates& candidates, const FeatureShape& shape);
  MixedForward(const MixedForward&) = delete;  // the placement knows where the units are

  int64_t saved_bytes() const { return placement_.saved_bytes(); }
  int64_t bytes() const { return placement_.bytes() - saved_bytes(); }  // of working memory
  int32_t shared_bytes() const { return shared_bytes_; }                // of a block

  // Returns once everything is launched. Throws Error, and std::invalid_argument where the current
  // device has less shared memory.
  void run(const MixedTensors& tensors, std::byte* memory, cudaStream_t stream) const;

 private:
  const FeatureShape shape_;
  const int32_t channels_;
  const MixedSchedule passes_;
  EdgePlacement placement_;
  int64_t tables_ = 0, moments_ = 0;  // where these lie
  int32_t shared_bytes_ = 0;
};

struct MixedGradients {
  kernels::cuda::FeatureTensor grad_out;
  const float* weights;
  const float* parameters;
  std::byte* saved;        // by the way forward; it is only read
  void* grad_x;            // [images, height, width, channels]; null: not wanted
  float* grad_weights;     // [candidates]
  float* grad_parameters;  // that of a bias is zero, as statistics of the minibatch cancel it
};

class MixedBackward {
 public:
  // As MixedForward.
  MixedBackward(const MixedCandidates& candidates, const FeatureShape& shape, bool wants_x);
  MixedBackward(const MixedBackward&) = delete;

  int64_t saved_bytes() const { return placement_.saved_bytes(); }
  int64_t bytes() const { return placement_.bytes() - saved_bytes(); }
  int32_t shared_bytes() const { return shared_bytes_; }

  void run(const MixedGradients& gradients, std::byte* memory, cudaStream_t stream) const;

 private:
  const FeatureShape shape_;
  const int32_t channels_;
  const int64_t num_candidates_, num_parameters_;
  const MixedSchedule passes_;
  EdgePlacement placement_;
  int64_t tables_ = 0, partial_ = 0;
  int32_t shared_bytes_ = 0;
};

// Throws std::invalid_argument where the current device does not take both ways, whatever the
// number of images; and Error.
void require_mixed_op_fits(const MixedCandidates& candidates, const FeatureShape& shape);

}  // namespace nasfast::cuda
