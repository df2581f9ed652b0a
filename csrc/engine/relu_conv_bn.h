// SPDX-License-Identifier: MIT
// One normalised convolution on its own: the candidate operation that other people's code calls.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/cpu/isa.h"

namespace nasfast {

// out = (y - mean) / sqrt(variance + eps) with y = convolution of max(features, 0), padding
// kernel / 2, and the mean and biased variance of y over images and pixels.
struct ReluConvBnParams {
  const void* features;  // [batch, in_channels, height, width], strides in elements
  int64_t strides[4];
  const float* weight;  // [out_channels, in_channels, kernel, kernel]
  void* out;            // [batch, out_height, out_width, out_channels], contiguous
  bool is_bfloat16;     // features and out; float32 otherwise
  int32_t batch, in_channels, height, width, out_channels, kernel, stride;
  double eps;
};

// Runs a function for 0..count-1, possibly on several threads, and waits.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>&)>;

// The result does not depend on how the work is distributed. bfloat16 features are computed in
// precision bf16, float32 ones in fp32. Throws std::bad_alloc.
void relu_conv_bn(const ReluConvBnParams& params, kernels::cpu::Isa isa,
                  const ParallelFor& parallel_for);

}  // namespace nasfast
