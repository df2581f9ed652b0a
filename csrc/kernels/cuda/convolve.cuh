// SPDX-License-Identifier: MIT
// Implicit matrix products: a tile of a convolution's result from an operand in shared memory.
//
// Rows of the product are the tile's pixels, its columns output channels, its depth input channels
// times taps. Nothing is gathered: a row of the left matrix at a tap is a pixel's channels as they
// lie there. A warp computes 32 rows of all columns; weights are copied to shared memory as they
// are needed. In precision tf32 both operands lie there rounded.
#pragma once

#include "kernels/cuda/descriptors.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/vectors.cuh"

namespace nasfast::kernels::cuda {

// The operand of a convolution: a tile in shared memory.
struct Operand {
  const std::byte* data;  // [padded rows of `tile`][pitch bytes]
  int32_t pitch;
  Tile tile;
  int32_t halo;
  int32_t depth;  // channels, a multiple of 16
};

// What an operand is convolved with.
struct Filter {
  const void* weight;  // packed: [tap][depth_of(out_channels)][depth]
  int32_t kernel, stride, out_channels;
};

// What a thread holds of a product: two times 16 rows, and pairs of columns.
template <int kColumns>
struct Product {
  static constexpr int32_t kTiles = kColumns / 8;
  float sums[2][kTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int32_t m = 0; m < 2; ++m) {
#pragma unroll
      for (int32_t n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
      }
    }
  }
};

// Copies weights of `columns` output channels from `column` on and of `depth` input channels from
// `k` on, of all taps.
template <Precision P>
static __device__ __forceinline__ void copy_weights(const void* packed, int32_t taps,
                                                    int32_t all_columns, int32_t all_depth,
                                                    int32_t column, int32_t columns, int32_t k,
                                                    int32_t depth, std::byte* to) {
  constexpr int32_t kBytes = number_bytes(P);
  const int32_t pitch = shared_pitch(P, depth), vectors = depth * kBytes / kVectorBytes;
  const auto* from = static_cast<const std::byte*>(packed);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < taps * columns * vectors; i += kThreads) {
    const int32_t row = i / vectors, vector = i % vectors;
    const int32_t tap = row / columns, n = row % columns;
    const int64_t number = (int64_t{tap} * all_columns + column + n) * all_depth + k;
    copy_async(to + row * pitch + vector * kVectorBytes,
               from + number * kBytes + vector * kVectorBytes);
  }
}

// Adds `depth` channels of one tap by matrix instructions. `rows`: where each of the lane's rows of
// the operand begins.
template <Precision P, int kColumns>
static __device__ __forceinline__ void multiply_tap(Product<kColumns>& product,
                                                    const std::byte* const (&rows)[2],
                                                    const std::byte* weights, int32_t pitch,
                                                    int32_t columns, int32_t depth) {
  constexpr bool kIsBf16 = P == Precision::kBf16;
  constexpr int32_t kDepth = kIsBf16 ? 16 : 8;  // of an instruction
  constexpr int32_t kBytes = number_bytes(P);
  const auto lane = static_cast<int32_t>(threadIdx.x) % kWarp;
  const Element of_a = kIsBf16 ? address_of_a(lane) : tf32::address_of_a(lane);
  const Element of_b = kIsBf16 ? address_of_b(lane) : tf32::address_of_b(lane);
  for (int32_t k = 0; k < depth; k += kDepth) {
    uint32_t a[2][4];
#pragma unroll
    for (int32_t m = 0; m < 2; ++m) load_matrices(a[m], rows[m] + (k + of_a.column) * kBytes);
#pragma unroll
    for (int32_t n = 0; n < Product<kColumns>::kTiles; n += 2) {
      if (n * 8 >= columns) break;
      uint32_t b[4];
      load_matrices(b, weights + (n * 8 + of_b.row) * pitch + (k + of_b.column) * kBytes);
#pragma unroll
      for (int32_t m = 0; m < 2; ++m) {
        if constexpr (kIsBf16) {
          multiply_bf16(product.sums[m][n], a[m], b[0], b[1]);
          multiply_bf16(product.sums[m][n + 1], a[m], b[2], b[3]);
        } else {
          multiply_tf32(product.sums[m][n], a[m], b[0], b[1]);
          multiply_tf32(product.sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
}

// The same in float32, a thread its own numbers. `rows`: of the four rows that it holds.
template <int kColumns>
static __device__ __forceinline__ void multiply_tap_fp32(Product<kColumns>& product,
                                                         const std::byte* const (&rows)[4],
                                                         const std::byte* weights, int32_t pitch,
                                                         int32_t columns, int32_t depth) {
  const int32_t pair = static_cast<int32_t>(threadIdx.x) % 4 * 2;
  for (int32_t k = 0; k < depth; k += 4) {
    float4 a[4];
#pragma unroll
    for (int32_t r = 0; r < 4; ++r) a[r] = *reinterpret_cast<const float4*>(rows[r] + k * 4);
#pragma unroll
    for (int32_t n = 0; n < Product<kColumns>::kTiles; ++n) {
      if (n * 8 >= columns) break;
#pragma unroll
      for (int32_t c = 0; c < 2; ++c) {
        const float4 b =
            *reinterpret_cast<const float4*>(weights + (n * 8 + pair + c) * pitch + k * 4);
#pragma unroll
        for (int32_t r = 0; r < 4; ++r) {
          float& sum = product.sums[r / 2][n][r % 2 * 2 + c];
          sum = fmaf(a[r].x, b.x, sum);
          sum = fmaf(a[r].y, b.y, sum);
          sum = fmaf(a[r].z, b.z, sum);
          sum = fmaf(a[r].w, b.w, sum);
        }
      }
    }
  }
}

// Adds columns [column, column + kColumns) of the product. All threads of the block take part, also
// those without rows of their own. `weights`: shared memory, free before and after.
template <Precision P, int kColumns>
static __device__ __forceinline__ void multiply(Product<kColumns>& product, const Operand& operand,
                                                const Filter& filter, int32_t column,
                                                int32_t k_chunk, std::byte* weights) {
  const int32_t kernel = filter.kernel, taps = kernel * kernel;
  const int32_t all_columns = depth_of(filter.out_channels);
  const int32_t columns = least(kColumns, all_columns - column);
  const auto thread = static_cast<int32_t>(threadIdx.x), lane = thread % kWarp;
  const Tile out = filter.stride == 2 ? operand.tile.halved() : operand.tile;
  const int32_t first = thread / kWarp * kRowsOfWarp;
  // Where a row's window begins, in bytes; rows that there are not read those of the first.
  const auto begin_of = [&](int32_t row) {
    Pixel p = out.pixel(row < out.rows() ? row : 0);
    p.y = p.y * filter.stride - kernel / 2;
    p.x = p.x * filter.stride - kernel / 2;
    return operand.tile.padded_row(p, operand.halo) * operand.pitch;
  };
  constexpr bool kIsFp32 = P == Precision::kFp32;
  constexpr int32_t kOwn = kIsFp32 ? 4 : 2;
  int32_t begins[kOwn];
#pragma unroll
  for (int32_t r = 0; r < kOwn; ++r) {
    // Both kinds of matrix instructions want the same rows of a lane.
    begins[r] =
        begin_of(kIsFp32 ? first + 8 * r + lane / 4 : first + 16 * r + address_of_a(lane).row);
  }
  for (int32_t k = 0; k < operand.depth; k += k_chunk) {
    const int32_t depth = least(k_chunk, operand.depth - k), pitch = shared_pitch(P, depth);
    __syncthreads();
    copy_weights<P>(filter.weight, taps, all_columns, operand.depth, column, columns, k, depth,
                    weights);
    wait_copies();
    __syncthreads();
    if (first >= out.rows()) continue;
    for (int32_t tap = 0; tap < taps; ++tap) {
      const int32_t step = tap / kernel * operand.tile.padded_width(operand.halo) + tap % kernel;
      const std::byte* from = operand.data + step * operand.pitch + k * number_bytes(P);
      const std::byte* of_tap = weights + tap * columns * pitch;
      const std::byte* rows[kOwn];
#pragma unroll
      for (int32_t r = 0; r < kOwn; ++r) rows[r] = from + begins[r];
      if constexpr (kIsFp32) {
        multiply_tap_fp32(product, rows, of_tap, pitch, columns, depth);
      } else {
        multiply_tap<P>(product, rows, of_tap, pitch, columns, depth);
      }
    }
  }
}

}  // namespace nasfast::kernels::cuda
