// SPDX-License-Identifier: MIT
// Passes: a value is summed from its terms once, and everything that reads it is computed from
// shared memory, a block of threads for each tile.
#include "kernels/cuda/convolve.cuh"
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/launch_tiles.cuh"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/sums.cuh"
#include "kernels/cuda/windows.cuh"

namespace nasfast::kernels::cuda {

namespace {

// Sums the terms of all pixels of the tile and around it. Outside of the image lie zeros.
template <Precision P>
__device__ __forceinline__ void load_tile(const PassLaunch& launch, const PassRow& pass,
                                          const Pixel& origin, std::byte* shared) {
  using Type = typename Numbers<P>::Type;
  const PassLayout& layout = pass.layout;
  const TermRow* terms = launch.terms + pass.first_term;
  const int32_t depth = depth_of(pass.channels), vectors = depth / kVector;
  const int32_t pitch = shared_pitch(P, depth), stored = pitch_of(pass.channels);
  auto* scales = reinterpret_cast<float*>(shared + layout.terms);
  load_scales(terms, pass.num_terms, depth, scales);
  __syncthreads();
  const int32_t count = pass.tile.padded_rows(pass.halo) * vectors;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    const int32_t row = i / vectors, channel = i % vectors * kVector;
    const Pixel in_tile = pass.tile.padded_pixel(row, pass.halo);
    const Pixel p = origin + in_tile;
    const bool is_there = has(pass.sides, p);
    float sum[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (is_there) {
      sum_terms<P>(terms, pass.num_terms, scales, depth, index_of(pass.sides, p), channel, sum);
    }
    const int32_t at = row * pitch + channel * number_bytes(P);
    if (layout.raw >= 0) {
      Numbers<P>::store8(reinterpret_cast<Type*>(shared + layout.raw + at), sum);
    }
    const bool is_own = in_tile.y >= 0 && in_tile.y < pass.tile.height() && in_tile.x >= 0 &&
                        in_tile.x < pass.tile.width();
    if (pass.kept != nullptr && is_there && is_own && channel < stored) {
      Numbers<P>::store8(static_cast<Type*>(pass.kept) + index_of(pass.sides, p) * stored + channel,
                         sum);
    }
    if (layout.operand < 0) continue;
    if (pass.is_linear == 0) {
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) sum[k] = rectified(sum[k]);
    }
    store_operand8<P>(shared + layout.operand + at, sum);
  }
  __syncthreads();
}

template <Precision P, int kColumns>
__device__ __forceinline__ void convolve(const Operand& operand, const ConsumerRow& consumer,
                                         const PassRow& pass, const Result& result, int32_t index,
                                         std::byte* shared) {
  auto* sums = reinterpret_cast<float*>(shared + pass.layout.sums);
  const Filter filter = {consumer.weight, consumer.kernel, consumer.stride, consumer.out_channels};
  Product<kColumns> product;
  for (int32_t column = 0; column < depth_of(consumer.out_channels); column += kColumns) {
    product.clear();
    multiply<P, kColumns>(product, operand, filter, column, pass.k_chunk,
                          shared + pass.layout.weights);
    store<P, kColumns>(product, result, consumer, column);
    if (consumer.moments != nullptr) {
      measure<kColumns>(product, result, consumer, column, index, sums);
    }
  }
}

// What needs no weights.
template <Precision P>
__device__ __forceinline__ void look_through_windows(const Operand& raw, const Result& result,
                                                     const ConsumerRow& consumer,
                                                     const PassRow& pass, int32_t index) {
  switch (consumer.task) {
    case Task::kAvgPool:
      return pool<P, false>(raw, result, consumer.kernel, pass.channels, consumer.out);
    case Task::kMaxPool:
      return pool<P, true>(raw, result, consumer.kernel, pass.channels, consumer.out);
    case Task::kMaxHalve:
      return max_halve<P>(raw, result, pass.padding, pass.channels, consumer.out);
    case Task::kMeasure:
      return measure_sum<P>(raw, result, index, pass.channels, consumer.moments);
    case Task::kConv:
    case Task::kShortcut:
      return;
  }
}

template <Precision P, int kColumns>
__global__ void __launch_bounds__(kThreads, 1) pass_kernel(const PassLaunch launch) {
  const PassRow& pass = launch.passes[blockIdx.y];
  const auto index = static_cast<int32_t>(blockIdx.x);
  if (index >= pass.num_tiles) return;
  std::byte* shared = shared_memory();
  const Pixel origin = origin_of(pass.tile, pass.sides, index);
  load_tile<P>(launch, pass, origin, shared);
  const int32_t depth = depth_of(pass.channels), pitch = shared_pitch(P, depth);
  const Operand raw = {shared + pass.layout.raw, pitch, pass.tile, pass.halo, depth};
  for (int32_t i = 0; i < pass.num_consumers; ++i) {
    const ConsumerRow& consumer = launch.consumers[pass.first_consumer + i];
    if (consumer.task == Task::kConv || consumer.task == Task::kShortcut) {
      Operand operand = {shared + pass.layout.operand, pitch, pass.tile, pass.halo, depth};
      int32_t stride = consumer.stride;
      if (consumer.task == Task::kShortcut) {
        operand = {shared + pass.layout.halved, pitch, pass.tile.halved(), 0, depth};
        stride = 2;
        average_quarters<P>(raw, result_of(pass.sides, pass.tile, origin, stride), pass.sides,
                            shared + pass.layout.halved);
      }
      convolve<P, kColumns>(operand, consumer, pass,
                            result_of(pass.sides, pass.tile, origin, stride), index, shared);
    } else {
      look_through_windows<P>(raw, result_of(pass.sides, pass.tile, origin, 1), consumer, pass,
                              index);
    }
  }
}

}  // namespace

cudaError_t launch_passes(Precision precision, int32_t columns, const PassLaunch& launch_of,
                          cudaStream_t stream) {
  return for_columns(precision, columns, [&]<Precision P, int kColumns>() {
    return launch_tiles(pass_kernel<P, kColumns>, launch_of, launch_of.num_passes, stream);
  });
}

}  // namespace nasfast::kernels::cuda
