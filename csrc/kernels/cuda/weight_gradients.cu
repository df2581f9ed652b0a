// SPDX-License-Identifier: MIT
// Gradients of convolutions' weights: for each tap the product of a result's gradient and of what
// the convolution read, over the pixels of all tiles.
//
// A block computes 16 outputs by 16 inputs of up to nine taps, over every `parts`-th tile; each of
// its warps over a quarter of a tile's pixels. Parts are added later, in their order.
#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/gradient_launches.h"
#include "kernels/cuda/results.cuh"
#include "kernels/cuda/sums.cuh"

namespace nasfast::kernels::cuda {

namespace {

constexpr int32_t kSide = 16;  // outputs, and inputs, of a block
constexpr int32_t kTaps = 9;   // most taps of a block
constexpr int32_t kWarps = kThreads / kWarp;
constexpr int32_t kProduct = kTaps * kSide * kSide;

// Shared memory, in bytes. Tiles have 16 channels.
struct WeightLayout {
  int32_t operand;       // [padded rows][pitch] what the convolution read
  int32_t gradient;      // [tile rows][pitch] of its result
  int32_t terms;         // [terms][2][depth]
  int32_t coefficients;  // [3][depth of the result]
  int32_t products;      // [warps][kProduct] floats
  int32_t bytes;
};

template <Precision P>
NASFAST_HOST_DEVICE constexpr WeightLayout weight_layout(const WeightGradientRow& row) {
  const int32_t pitch = shared_pitch(P, kSide), floats = static_cast<int32_t>(sizeof(float));
  const int32_t gradient = row.tile.padded_rows(row.kernel / 2) * pitch;
  const int32_t terms = gradient + kTileRows * pitch;
  const int32_t coefficients = terms + row.num_terms * 2 * depth_of(row.channels) * floats;
  const int32_t products = coefficients + 3 * depth_of(row.out_channels) * floats;
  return {0, gradient, terms, coefficients, products, products + kWarps * kProduct * floats};
}

// What a block computes.
struct Block {
  int32_t part, output, input, tap;  // the first ones
};

NASFAST_HOST_DEVICE constexpr int32_t num_blocks(const WeightGradientRow& row) {
  const int32_t groups = (row.kernel * row.kernel + kTaps - 1) / kTaps;
  return row.parts * groups * (depth_of(row.out_channels) / kSide) *
         (depth_of(row.channels) / kSide);
}
NASFAST_HOST_DEVICE constexpr Block block_of(const WeightGradientRow& row, int32_t index) {
  const int32_t inputs = depth_of(row.channels) / kSide;
  const int32_t outputs = depth_of(row.out_channels) / kSide;
  const int32_t groups = (row.kernel * row.kernel + kTaps - 1) / kTaps;
  return {index / inputs / outputs / groups, index / inputs % outputs * kSide,
          index % inputs * kSide, index / inputs / outputs % groups * kTaps};
}

// Sixteen channels of the convolution's input, around the tile.
template <Precision P>
__device__ __forceinline__ void load_input(const WeightGradientLaunch& launch,
                                           const WeightGradientRow& row, const Pixel& origin,
                                           const float* scales, int32_t input, std::byte* to) {
  const TermRow* terms = launch.terms + row.first_term;
  const int32_t depth = depth_of(row.channels), halo = row.kernel / 2;
  const int32_t count = row.tile.padded_rows(halo) * (kSide / kVector);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    const int32_t at = i / 2, channel = i % 2 * kVector;
    const Pixel in_tile = row.tile.padded_pixel(at, halo);
    const Pixel p = origin + in_tile;
    float sum[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (has(row.sides, p)) {
      sum_terms<P>(terms, row.num_terms, scales, depth, index_of(row.sides, p), input + channel,
                   sum);
    }
    if (row.is_linear == 0) {
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) sum[k] = rectified(sum[k]);
    }
    store_operand8<P>(to + at * shared_pitch(P, kSide) + channel * number_bytes(P), sum);
  }
}

// Means of 2x2 pixels of the input, at the rows of the halved tile.
template <Precision P>
__device__ __forceinline__ void load_means(const WeightGradientLaunch& launch,
                                           const WeightGradientRow& row, const Result& halved,
                                           const float* scales, int32_t input, std::byte* to) {
  const TermRow* terms = launch.terms + row.first_term;
  const int32_t depth = depth_of(row.channels);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < halved.tile.rows() * 2; i += kThreads) {
    const int32_t at = i / 2, channel = i % 2 * kVector;
    const Pixel p = halved.pixel(at);
    float mean[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    int32_t count = 0;
    for (int32_t quarter = 0; quarter < 4; ++quarter) {
      const Pixel from = {p.image, p.y * 2 + quarter / 2, p.x * 2 + quarter % 2};
      if (!has(row.sides, from)) continue;
      float sum[kVector];
      sum_terms<P>(terms, row.num_terms, scales, depth, index_of(row.sides, from), input + channel,
                   sum);
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) mean[k] += Numbers<P>::rounded(sum[k]);
      ++count;
    }
#pragma unroll
    for (int32_t k = 0; k < kVector; ++k) {
      mean[k] = count > 0 ? mean[k] / static_cast<float>(count) : 0.0f;
    }
    store_operand8<P>(to + at * shared_pitch(P, kSide) + channel * number_bytes(P), mean);
  }
}

// Sixteen channels of the result's gradient; zeros behind the tile's last row, up to all rows.
template <Precision P>
__device__ __forceinline__ void load_gradient(const WeightGradientLaunch& launch,
                                              const WeightGradientRow& row, const Result& result,
                                              const float* coefficients, int32_t output,
                                              std::byte* to) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kTileRows * 2; i += kThreads) {
    const int32_t at = i / 2, channel = i % 2 * kVector;
    float gradient[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (result.has_row(at)) {
      result_gradient<P>(launch.results[row.result], launch.readers, coefficients,
                         index_of(result.sides, result.pixel(at)), output + channel, gradient);
    }
    store_operand8<P>(to + at * shared_pitch(P, kSide) + channel * number_bytes(P), gradient);
  }
}

// Adds the products of a warp's 32 pixels. `begin_of(row)`: where a pixel's window begins in the
// operand, in bytes; `step_of(tap)`: how much further a tap is.
template <Precision P, typename BeginOf, typename StepOf>
__device__ __forceinline__ void multiply_pixels(float (&sums)[kTaps][2][4],
                                                const std::byte* operand, const std::byte* gradient,
                                                int32_t taps, const BeginOf& begin_of,
                                                const StepOf& step_of) {
  const auto thread = static_cast<int32_t>(threadIdx.x), lane = thread % kWarp;
  const int32_t first = thread / kWarp * kRowsOfWarp, pitch = shared_pitch(P, kSide);
  if constexpr (P == Precision::kBf16) {
#pragma unroll
    for (int32_t k = 0; k < kRowsOfWarp; k += 16) {
      // Rows in memory are pixels, so matrices are turned as they are loaded.
      uint32_t a[4];
      const Element of_a = address_of_turned_a(lane), of_b = address_of_turned_b(lane);
      load_turned_matrices(a, gradient + (first + k + of_a.row) * pitch + of_a.column * 2);
      const std::byte* rows = operand + begin_of(first + k + of_b.row) + of_b.column * 2;
#pragma unroll
      for (int32_t tap = 0; tap < kTaps; ++tap) {
        if (tap >= taps) break;
        uint32_t b[4];
        load_turned_matrices(b, rows + step_of(tap));
        multiply_bf16(sums[tap][0], a, b[0], b[1]);
        multiply_bf16(sums[tap][1], a, b[2], b[3]);
      }
    }
  } else if constexpr (P == Precision::kTf32) {
    const auto load = [](const std::byte* from) {
      return bits_of(*reinterpret_cast<const float*>(from));
    };
#pragma unroll
    for (int32_t k = 0; k < kRowsOfWarp; k += 8) {
      uint32_t a[4];
#pragma unroll
      for (int32_t r = 0; r < 4; ++r) {
        const Element at = tf32::element_of_a(lane, r);
        const int32_t pixel = first + k + tf32::turned_row(at.column);
        a[r] = load(gradient + pixel * pitch + at.row * 4);
      }
      const std::byte* rows[2];
#pragma unroll
      for (int32_t r = 0; r < 2; ++r) {
        const Element at = tf32::element_of_b(lane, r);
        rows[r] = operand + begin_of(first + k + tf32::turned_row(at.row)) + at.column * 4;
      }
#pragma unroll
      for (int32_t tap = 0; tap < kTaps; ++tap) {
        if (tap >= taps) break;
        const int32_t step = step_of(tap);
#pragma unroll
        for (int32_t n = 0; n < 2; ++n) {
          multiply_tf32(sums[tap][n], a, load(rows[0] + step + n * 32),
                        load(rows[1] + step + n * 32));
        }
      }
    }
  } else {
    const int32_t group = lane / 4, pair = lane % 4 * 2;
    for (int32_t k = 0; k < kRowsOfWarp; ++k) {
      const auto* a = reinterpret_cast<const float*>(gradient + (first + k) * pitch);
      const std::byte* row = operand + begin_of(first + k);
#pragma unroll
      for (int32_t tap = 0; tap < kTaps; ++tap) {
        if (tap >= taps) break;
        const auto* b = reinterpret_cast<const float*>(row + step_of(tap));
#pragma unroll
        for (int32_t n = 0; n < 2; ++n) {
#pragma unroll
          for (int32_t i = 0; i < 4; ++i) {
            sums[tap][n][i] = fmaf(a[group + i / 2 * 8], b[n * 8 + pair + i % 2], sums[tap][n][i]);
          }
        }
      }
    }
  }
}

template <Precision P>
__global__ void __launch_bounds__(kThreads, 1)
    weight_gradient_kernel(const WeightGradientLaunch launch) {
  const WeightGradientRow& row = launch.rows[blockIdx.y];
  if (static_cast<int32_t>(blockIdx.x) >= num_blocks(row)) return;
  const Block block = block_of(row, static_cast<int32_t>(blockIdx.x));
  const WeightLayout layout = weight_layout<P>(row);
  std::byte* shared = shared_memory();
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t depth = depth_of(row.channels), pitch = shared_pitch(P, kSide);
  const int32_t taps = least(kTaps, row.kernel * row.kernel - block.tap), halo = row.kernel / 2;
  auto* scales = reinterpret_cast<float*>(shared + layout.terms);
  auto* coefficients = reinterpret_cast<float*>(shared + layout.coefficients);
  load_scales(launch.terms + row.first_term, row.num_terms, depth, scales);
  load_coefficients(launch.results[row.result], launch.readers, blockIdx.x == 0, coefficients);
  float sums[kTaps][2][4] = {};
  for (int32_t index = block.part; index < row.num_tiles; index += row.parts) {
    const Pixel origin = origin_of(row.tile, row.sides, index);
    const int32_t stride = row.is_shortcut != 0 ? 2 : row.stride;
    const Result result = result_of(row.sides, row.tile, origin, stride);
    __syncthreads();
    if (row.is_shortcut != 0) {
      load_means<P>(launch, row, result, scales, block.input, shared + layout.operand);
    } else {
      load_input<P>(launch, row, origin, scales, block.input, shared + layout.operand);
    }
    load_gradient<P>(launch, row, result, coefficients, block.output, shared + layout.gradient);
    __syncthreads();
    if (thread / kWarp * kRowsOfWarp >= result.tile.rows()) continue;
    const auto begin_of = [&](int32_t at) {
      // Rows that there are not have no gradient: any number does.
      const int32_t there = at < result.tile.rows() ? at : 0;
      if (row.is_shortcut != 0) return there * pitch;
      const Pixel p = result.tile.pixel(there);
      return row.tile.padded_row({p.image, p.y * row.stride - halo, p.x * row.stride - halo},
                                 halo) *
             pitch;
    };
    const auto step_of = [&](int32_t tap) {
      const int32_t of_all = block.tap + tap;
      return (of_all / row.kernel * row.tile.padded_width(halo) + of_all % row.kernel) * pitch;
    };
    multiply_pixels<P>(sums, shared + layout.operand, shared + layout.gradient, taps, begin_of,
                       step_of);
  }
  auto* products = reinterpret_cast<float*>(shared + layout.products);
#pragma unroll
  for (int32_t tap = 0; tap < kTaps; ++tap) {
#pragma unroll
    for (int32_t n = 0; n < 2; ++n) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const Element at = element_of_sum(thread % kWarp, i);
        products[thread / kWarp * kProduct + (tap * kSide + at.row) * kSide + n * 8 + at.column] =
            sums[tap][n][i];
      }
    }
  }
  __syncthreads();
  const int32_t all_taps = row.kernel * row.kernel, outputs = depth_of(row.out_channels);
  for (int32_t i = thread; i < taps * kSide * kSide; i += kThreads) {
    float total = 0.0f;
    for (int32_t warp = 0; warp < kWarps; ++warp) total += products[warp * kProduct + i];
    const int32_t tap = block.tap + i / (kSide * kSide);
    const int32_t output = block.output + i / kSide % kSide, input = block.input + i % kSide;
    row.partial[((int64_t{block.part} * all_taps + tap) * outputs + output) * depth + input] =
        total;
  }
}

template <Precision P>
cudaError_t launch_precision(const WeightGradientLaunch& launch_of, cudaStream_t stream) {
  const cudaError_t error = allow_shared_memory(weight_gradient_kernel<P>, launch_of.most_bytes);
  if (error != cudaSuccess) return error;
  for (int32_t begin = 0; begin < launch_of.num_rows; begin += kMostRows) {
    WeightGradientLaunch some = launch_of;
    some.rows += begin;
    some.num_rows = least(kMostRows, launch_of.num_rows - begin);
    const dim3 grid(static_cast<uint32_t>(some.most_blocks), static_cast<uint32_t>(some.num_rows));
    const cudaError_t failure =
        launch(weight_gradient_kernel<P>, grid, kThreads, some.most_bytes, stream, some);
    if (failure != cudaSuccess) return failure;
  }
  return cudaSuccess;
}

}  // namespace

WeightGradientSize weight_gradient_size(Precision precision, const WeightGradientRow& row) {
  // In tf32 as in fp32.
  const bool is_narrow = precision == Precision::kBf16;
  return {num_blocks(row), is_narrow ? weight_layout<Precision::kBf16>(row).bytes
                                     : weight_layout<Precision::kFp32>(row).bytes};
}

cudaError_t launch_weight_gradients(Precision precision, const WeightGradientLaunch& launch_of,
                                    cudaStream_t stream) {
  switch (precision) {
    case Precision::kBf16:
      return launch_precision<Precision::kBf16>(launch_of, stream);
    case Precision::kTf32:
      return launch_precision<Precision::kTf32>(launch_of, stream);
    case Precision::kFp32:
      break;
  }
  return launch_precision<Precision::kFp32>(launch_of, stream);
}

}  // namespace nasfast::kernels::cuda
