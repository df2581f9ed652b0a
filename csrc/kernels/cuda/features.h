// SPDX-License-Identifier: MIT
// Between tensors of features, as other people's code has them, and values.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/launches.h"

namespace nasfast::kernels::cuda {

// [images, channels, height, width] of numbers that are stored as the precision stores them.
struct FeatureTensor {
  const void* data;
  int64_t strides[4];  // in numbers, of any sign
};

// Copies a tensor to a value, zeros behind its last channel.
cudaError_t launch_load_features(Precision precision, const FeatureTensor& features,
                                 const Sides& sides, int32_t channels, void* value,
                                 cudaStream_t stream);

// Writes a value as contiguous [images, height, width, channels], as it is, or normalised by a
// batch norm's statistics (as in NormRow): (number - mean) / deviation.
cudaError_t launch_store_features(Precision precision, const void* value, const double* statistics,
                                  const Sides& sides, int32_t channels, void* out,
                                  cudaStream_t stream);

}  // namespace nasfast::kernels::cuda
