// SPDX-License-Identifier: MIT
// The kernels of the way back, as a host calls them; see launches.h.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/gradient_descriptors.h"
#include "kernels/cuda/launches.h"

namespace nasfast::kernels::cuda {

cudaError_t launch_gradients(Precision precision, int32_t columns, const GradientLaunch& launch,
                             cudaStream_t stream);
// Blocks of a row, and shared memory that each needs.
struct WeightGradientSize {
  int32_t blocks, bytes;
};
WeightGradientSize weight_gradient_size(Precision precision, const WeightGradientRow& row);
cudaError_t launch_weight_gradients(Precision precision, const WeightGradientLaunch& launch,
                                    cudaStream_t stream);
// Scores as launch_heads() does, and goes back.
cudaError_t launch_head_gradients(Precision precision, const HeadGradientLaunch& launch,
                                  cudaStream_t stream);
cudaError_t launch_sums(const SumRow* rows, int32_t num_rows, int32_t most_numbers,
                        cudaStream_t stream);
// Row after row.
cudaError_t launch_mixing(const MixingRow* rows, int32_t num_rows, cudaStream_t stream);
cudaError_t launch_weight_sums(const WeightSumRow* rows, int32_t num_rows, int64_t most_numbers,
                               cudaStream_t stream);

}  // namespace nasfast::kernels::cuda
