// SPDX-License-Identifier: MIT
// Weights and images, brought into the layout that kernels read; and small tables.
#include "kernels/cuda/launches.h"
#include "kernels/cuda/vectors.cuh"

namespace nasfast::kernels::cuda {

namespace {

constexpr int32_t kBlocksOfWeight = 8;

template <Precision P>
__device__ __forceinline__ void store_number(void* to, int64_t index, float number) {
  Numbers<P>::store(static_cast<typename Numbers<P>::Type*>(to) + index, number);
}

// What products are made of, and nothing else.
template <Precision P>
__global__ void __launch_bounds__(kThreads) weight_kernel(const WeightRow* weights) {
  const WeightRow& row = weights[blockIdx.y];
  const bool is_turned = row.is_turned != 0;
  const int32_t columns = depth_of(is_turned ? row.in_channels : row.out_channels);
  const int32_t depth = depth_of(is_turned ? row.out_channels : row.in_channels);
  const int32_t taps = row.kernel * row.kernel;
  const int64_t count = int64_t{taps} * columns * depth;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    const auto k = static_cast<int32_t>(i % depth), n = static_cast<int32_t>(i / depth % columns);
    const auto packed_tap = static_cast<int32_t>(i / depth / columns);
    const int32_t in = is_turned ? n : k, out = is_turned ? k : n;
    const int32_t tap = is_turned ? taps - 1 - packed_tap : packed_tap;
    float number = 0.0f;
    if (in < row.in_channels && out < row.out_channels) {
      const int32_t from = row.inputs != nullptr ? row.inputs[in] : in;
      number = row.weight[(int64_t{out} * row.all_channels + from) * taps + tap];
    }
    store_number<P>(row.packed, i, operand_of<P>(number));
  }
}

template <Precision P>
__global__ void __launch_bounds__(kThreads)
    image_kernel(const float* images, Sides sides, int32_t channels, void* out) {
  const int32_t pitch = pitch_of(channels);
  const int64_t plane = int64_t{sides.height} * sides.width;
  const int64_t count = sides.images * plane * pitch;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t channel = i % pitch, pixel = i / pitch;
    const int64_t at = (pixel / plane * channels + channel) * plane + pixel % plane;
    store_number<P>(out, i, channel < channels ? images[at] : 0.0f);
  }
}

// As much as fits the arguments of a kernel beside the others.
struct Piece {
  static constexpr int32_t kVectors = 240;
  uint4 vectors[kVectors];
};

__global__ void __launch_bounds__(kThreads)
    piece_kernel(const __grid_constant__ Piece piece, int32_t count, uint4* to) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    to[i] = piece.vectors[i];
  }
}

template <Precision P>
cudaError_t load_images(const float* images, const Sides& sides, int32_t channels, void* out,
                        cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 65535;
  const int64_t count = int64_t{sides.images} * sides.height * sides.width * pitch_of(channels);
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<uint32_t>(blocks < kMostBlocks ? blocks : kMostBlocks));
  return launch(image_kernel<P>, grid, kThreads, 0, stream, images, sides, channels, out);
}

}  // namespace

cudaError_t launch_pack_weights(Precision precision, const WeightRow* weights, int32_t num_weights,
                                cudaStream_t stream) {
  auto* kernel = weight_kernel<Precision::kFp32>;
  if (precision == Precision::kBf16) kernel = weight_kernel<Precision::kBf16>;
  if (precision == Precision::kTf32) kernel = weight_kernel<Precision::kTf32>;
  for (int32_t begin = 0; begin < num_weights; begin += kMostRows) {
    const dim3 grid(kBlocksOfWeight, static_cast<uint32_t>(least(kMostRows, num_weights - begin)));
    const cudaError_t error = launch(kernel, grid, kThreads, 0, stream, weights + begin);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_load_images(Precision precision, const float* images, const Sides& sides,
                               int32_t channels, void* out, cudaStream_t stream) {
  return precision == Precision::kBf16
             ? load_images<Precision::kBf16>(images, sides, channels, out, stream)
             : load_images<Precision::kFp32>(images, sides, channels, out, stream);
}

cudaError_t launch_store_table(const void* from, size_t bytes, void* to, cudaStream_t stream) {
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<uint4*>(to);
  while (bytes > 0) {
    Piece piece{};
    const size_t some = bytes < sizeof piece ? bytes : sizeof piece;
    std::memcpy(&piece, source, some);
    const auto count = static_cast<int32_t>((some + kVectorBytes - 1) / kVectorBytes);
    const cudaError_t error = launch(piece_kernel, 1, kThreads, 0, stream, piece, count, target);
    if (error != cudaSuccess) return error;
    source += some;
    target += count;
    bytes -= some;
  }
  return cudaSuccess;
}

}  // namespace nasfast::kernels::cuda
