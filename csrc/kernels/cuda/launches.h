// SPDX-License-Identifier: MIT
// The kernels, as a host calls them. Rows lie in device memory; where there are none, nothing is
// launched. A launch that fails says why and has run nothing. No sum uses atomics: its order is
// fixed by shapes.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernels/cuda/descriptors.h"

namespace nasfast::kernels::cuda {

constexpr int32_t kMostRows = 65535;  // passes or classifiers of a launch

// `columns`: most output channels of a convolution, that registers are chosen for.
cudaError_t launch_passes(Precision precision, int32_t columns, const PassLaunch& launch,
                          cudaStream_t stream);
cudaError_t launch_norms(const NormRow* norms, int32_t num_norms, int32_t most_channels,
                         cudaStream_t stream);
cudaError_t launch_heads(Precision precision, const HeadLaunch& launch, cudaStream_t stream);
cudaError_t launch_pack_weights(Precision precision, const WeightRow* weights, int32_t num_weights,
                                cudaStream_t stream);
// [images, channels, height, width] float32 to a value.
cudaError_t launch_load_images(Precision precision, const float* images, const Sides& sides,
                               int32_t channels, void* out, cudaStream_t stream);

// Copies from the host, by way of the arguments of kernels: at once, whatever becomes of `from`,
// and when a recorded stream is replayed as well. `bytes`: any number; `to` is aligned to vectors,
// and as many of them are written as it takes.
cudaError_t launch_store_table(const void* from, size_t bytes, void* to, cudaStream_t stream);

}  // namespace nasfast::kernels::cuda
