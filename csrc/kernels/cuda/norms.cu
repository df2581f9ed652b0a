// SPDX-License-Identifier: MIT
// Batch norms: moments of tiles, merged in a fixed order, become a scale and a shift.
#include "kernels/cuda/intrinsics.cuh"
#include "kernels/cuda/launches.h"

namespace nasfast::kernels::cuda {

namespace {

constexpr int32_t kChannels = 32;  // of a block
constexpr int32_t kSlices = 8;     // of a channel's tiles

struct Moments {
  double count, mean, squares;
};

// Chan's rule.
__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
  const double count = a.count + b.count;
  if (count == 0) return a;
  const double apart = b.mean - a.mean;
  return {count, a.mean + apart * (b.count / count),
          a.squares + b.squares + apart * apart * (a.count * b.count / count)};
}

__global__ void __launch_bounds__(kChannels* kSlices) norm_kernel(const NormRow* norms) {
  const NormRow& norm = norms[blockIdx.y];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t channel = static_cast<int32_t>(blockIdx.x) * kChannels + thread % kChannels;
  const int32_t slice = thread / kChannels, depth = depth_of(norm.channels);
  auto* slices = reinterpret_cast<Moments*>(shared_memory());
  const bool is_there = channel < norm.channels;
  Moments all = {0, 0, 0};
  if (norm.moments != nullptr && is_there) {
    for (int32_t tile = slice; tile < norm.num_tiles; tile += kSlices) {
      const float* moments = norm.moments + int64_t{tile} * 2 * depth + channel;
      all = merged(all, {static_cast<double>(count_of(norm.tile, norm.sides, tile)),
                         static_cast<double>(moments[0]), static_cast<double>(moments[depth])});
    }
  }
  slices[thread] = all;
  __syncthreads();
  if (slice != 0 || channel >= depth) return;
  double scale = 0, shift = 0, mean = 0, variance = 0, inverse = 0;
  if (is_there) {
    if (norm.moments != nullptr) {
      for (int32_t s = 1; s < kSlices; ++s) all = merged(all, slices[s * kChannels + thread]);
      mean = all.mean;
      variance = all.squares / all.count;
    } else {
      // Results lack the bias of their convolution: statistics of a minibatch would cancel it.
      mean = norm.mean[channel];
      if (norm.bias != nullptr) mean -= norm.bias[channel];
      variance = norm.variance[channel];
    }
    inverse = 1 / sqrt(variance + norm.epsilon);
    scale = (norm.gamma != nullptr ? norm.gamma[channel] : 1.0f) * inverse;
    shift = (norm.beta != nullptr ? norm.beta[channel] : 0.0f) - mean * scale;
  }
  norm.affine[channel] = static_cast<float>(scale);
  norm.affine[depth + channel] = static_cast<float>(shift);
  if (norm.summary != nullptr && is_there) {
    norm.summary[channel] = static_cast<float>(mean);
    norm.summary[norm.channels + channel] = static_cast<float>(variance);
  }
  if (norm.statistics == nullptr) return;
  norm.statistics[channel] = mean;
  norm.statistics[depth + channel] = inverse;
  norm.statistics[2 * depth + channel] = variance;
}

}  // namespace

cudaError_t launch_norms(const NormRow* norms, int32_t num_norms, int32_t most_channels,
                         cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int32_t>(sizeof(Moments)) * kChannels * kSlices;
  const int32_t blocks = (depth_of(most_channels) + kChannels - 1) / kChannels;
  for (int32_t begin = 0; begin < num_norms; begin += kMostRows) {
    const int32_t count = least(kMostRows, num_norms - begin);
    const dim3 grid(static_cast<uint32_t>(blocks), static_cast<uint32_t>(count));
    const cudaError_t error =
        launch(norm_kernel, grid, kChannels * kSlices, kBytes, stream, norms + begin);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace nasfast::kernels::cuda
