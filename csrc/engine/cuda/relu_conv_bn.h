// SPDX-License-Identifier: MIT
// One normalised convolution on a CUDA device; see engine/relu_conv_bn.h.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "engine/cuda/edge_placement.h"
#include "kernels/cuda/features.h"

namespace nasfast::cuda {

struct NormalisedConvolution {
  int32_t in_channels, out_channels, kernel, stride;
  double eps;
};

// It allocates nothing on the device; what it is given lies there.
class ReluConvBn {
 public:
  // Throws std::invalid_argument where the convolution does not fit a device.
  ReluConvBn(const NormalisedConvolution& convolution, const FeatureShape& shape);
  ReluConvBn(const ReluConvBn&) = delete;  // the placement knows where the unit is

  int64_t bytes() const { return placement_.bytes(); }  // of working memory

  // out = [images, out_height, out_width, out_channels] of the features' numbers; `weight`
  // [out_channels, in_channels, kernel, kernel]; `memory` is aligned to Placement::kAlignment.
  // Returns once everything is launched. Throws Error, and std::invalid_argument where the current
  // device has less shared memory.
  void run(const kernels::cuda::FeatureTensor& features, const float* weight, void* out,
           std::byte* memory, cudaStream_t stream) const;

 private:
  const NormalisedConvolution convolution_;
  const FeatureShape shape_;
  const Unit unit_;
  EdgePlacement placement_;
  int64_t tables_ = 0, moments_ = 0;  // where these lie
  int32_t shared_bytes_ = 0;
};

}  // namespace nasfast::cuda
