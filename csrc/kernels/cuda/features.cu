// SPDX-License-Identifier: MIT
// Tensors of features to values and back: copies, each number of which has one thread.
#include "kernels/cuda/features.h"
#include "kernels/cuda/vectors.cuh"

namespace nasfast::kernels::cuda {

namespace {

constexpr int32_t kSide = 32;  // pixels, and channels, of a block
constexpr int32_t kRows = kThreads / kSide;
constexpr int32_t kPitch = kSide + 1;  // odd, so that columns lie in different banks
constexpr int64_t kMostBlocks = 65535;

__device__ __forceinline__ int64_t offset_of(const FeatureTensor& features, const Sides& sides,
                                             int64_t pixel, int32_t channel) {
  const int64_t plane = int64_t{sides.height} * sides.width, in_plane = pixel % plane;
  return pixel / plane * features.strides[0] + channel * features.strides[1] +
         in_plane / sides.width * features.strides[2] +
         in_plane % sides.width * features.strides[3];
}

// Neighbouring threads read what lies close together: channels, or else pixels, which are turned in
// shared memory. They write channels.
template <Precision P>
__global__ void __launch_bounds__(kThreads)
    load_kernel(FeatureTensor features, Sides sides, int32_t channels, void* value) {
  using Type = typename Numbers<P>::Type;
  auto* turned = reinterpret_cast<Type*>(shared_memory());  // [pixels][kPitch]
  const auto* from = static_cast<const Type*>(features.data);
  const int32_t pitch = pitch_of(channels);
  const int64_t pixels = int64_t{sides.images} * sides.height * sides.width;
  const int32_t first_channel = static_cast<int32_t>(blockIdx.y) * kSide;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t near = thread % kSide, row = thread / kSide;
  const bool is_last = features.strides[1] == 1;
  for (int64_t first = int64_t{blockIdx.x} * kSide; first < pixels;
       first += int64_t{gridDim.x} * kSide) {
    for (int32_t far = row; far < kSide; far += kRows) {
      const int32_t channel = first_channel + (is_last ? near : far);
      const int64_t pixel = first + (is_last ? far : near);
      Type number{};
      if (pixel < pixels && channel < channels) {
        number = from[offset_of(features, sides, pixel, channel)];
      }
      turned[(is_last ? far : near) * kPitch + (is_last ? near : far)] = number;
    }
    __syncthreads();
    for (int32_t far = row; far < kSide; far += kRows) {
      const int64_t pixel = first + far;
      if (pixel < pixels && first_channel + near < pitch) {
        static_cast<Type*>(value)[pixel * pitch + first_channel + near] =
            turned[far * kPitch + near];
      }
    }
    __syncthreads();
  }
}

template <Precision P>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const void* value, const double* statistics, Sides sides, int32_t channels,
                 void* out) {
  using Type = typename Numbers<P>::Type;
  const int32_t pitch = pitch_of(channels), depth = depth_of(channels);
  const int64_t count = int64_t{sides.images} * sides.height * sides.width * channels;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    const auto channel = static_cast<int32_t>(i % channels);
    float number =
        Numbers<P>::load(static_cast<const Type*>(value) + i / channels * pitch + channel);
    if (statistics != nullptr) {
      // Not scale and shift: a number that is the mean becomes 0.
      number = (number - static_cast<float>(statistics[channel])) *
               static_cast<float>(statistics[depth + channel]);
    }
    Numbers<P>::store(static_cast<Type*>(out) + i, number);
  }
}

uint32_t blocks_for(int64_t count, int32_t of_block) {
  const int64_t blocks = (count + of_block - 1) / of_block;
  return static_cast<uint32_t>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

}  // namespace

cudaError_t launch_load_features(Precision precision, const FeatureTensor& features,
                                 const Sides& sides, int32_t channels, void* value,
                                 cudaStream_t stream) {
  const auto kernel =
      precision == Precision::kBf16 ? load_kernel<Precision::kBf16> : load_kernel<Precision::kFp32>;
  const int64_t pixels = int64_t{sides.images} * sides.height * sides.width;
  const dim3 grid(blocks_for(pixels, kSide), blocks_for(pitch_of(channels), kSide));
  const int32_t bytes = kSide * kPitch * number_bytes(precision);
  return launch(kernel, grid, kThreads, bytes, stream, features, sides, channels, value);
}

cudaError_t launch_store_features(Precision precision, const void* value, const double* statistics,
                                  const Sides& sides, int32_t channels, void* out,
                                  cudaStream_t stream) {
  const auto kernel = precision == Precision::kBf16 ? store_kernel<Precision::kBf16>
                                                    : store_kernel<Precision::kFp32>;
  const int64_t count = int64_t{sides.images} * sides.height * sides.width * channels;
  return launch(kernel, dim3(blocks_for(count, kThreads)), kThreads, 0, stream, value, statistics,
                sides, channels, out);
}

}  // namespace nasfast::kernels::cuda
