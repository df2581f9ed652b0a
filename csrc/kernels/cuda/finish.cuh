// SPDX-License-Identifier: MIT
// What becomes of a product: results in memory, and their moments.
#pragma once

#include "kernels/cuda/convolve.cuh"

namespace nasfast::kernels::cuda {

// Where the tile of a result lies.
struct Result {
  Sides sides;
  Tile tile;
  Pixel origin;

  __device__ __forceinline__ Pixel pixel(int32_t row) const { return origin + tile.pixel(row); }
  __device__ __forceinline__ bool has_row(int32_t row) const {
    return row < tile.rows() && has(sides, pixel(row));
  }
};

// The tile of what is made at this stride of a value.
static __device__ __forceinline__ Result result_of(const Sides& sides, const Tile& tile,
                                                   const Pixel& origin, int32_t stride) {
  if (stride == 1) return {sides, tile, origin};
  return {halved(sides), tile.halved(), {origin.image, origin.y / 2, origin.x / 2}};
}

// Row `r` < 4 of those that a thread holds of a product.
static __device__ __forceinline__ int32_t row_of(int32_t r) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  return thread / kWarp * kRowsOfWarp + r * 8 + thread % kWarp / 4;
}

// Rounds the product as it is stored, and stores it.
template <Precision P, int kColumns>
static __device__ __forceinline__ void store(Product<kColumns>& product, const Result& result,
                                             const ConsumerRow& consumer, int32_t column) {
  using Type = typename Numbers<P>::Type;
  const int32_t pitch = pitch_of(consumer.out_channels);
  const int32_t pair = static_cast<int32_t>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int32_t r = 0; r < 4; ++r) {
    const bool is_there = result.has_row(row_of(r));
    Type* row = static_cast<Type*>(consumer.out) +
                (is_there ? index_of(result.sides, result.pixel(row_of(r))) * pitch : 0);
#pragma unroll
    for (int32_t n = 0; n < Product<kColumns>::kTiles; ++n) {
      const int32_t c = column + n * 8 + pair;
      float (&own)[4] = product.sums[r / 2][n];
      float& first = own[r % 2 * 2];
      float& second = own[r % 2 * 2 + 1];
      // Zeros behind the last channel even where the sum is no number.
      first = c < consumer.out_channels ? Numbers<P>::rounded(first) : 0.0f;
      second = c + 1 < consumer.out_channels ? Numbers<P>::rounded(second) : 0.0f;
      if (is_there && c < pitch) Numbers<P>::store2(row + c, first, second);
    }
  }
}

// Adds up what the rows of a tile give to each column: `of(r, n, c)` for rows that there are.
// `sums`: [warps + 1][kColumns] shared floats; the last line gets the total, there for all threads.
template <int kColumns, typename Of>
static __device__ __forceinline__ void sum_columns(const bool (&is_there)[4], float* sums,
                                                   const Of& of) {
  constexpr int32_t kWarps = kThreads / kWarp;
  const auto thread = static_cast<int32_t>(threadIdx.x), lane = thread % kWarp;
#pragma unroll
  for (int32_t n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int32_t c = 0; c < 2; ++c) {
      float sum = 0.0f;
#pragma unroll
      for (int32_t r = 0; r < 4; ++r) sum += is_there[r] ? of(r, n, c) : 0.0f;
#pragma unroll
      for (int32_t lanes = 4; lanes < kWarp; lanes *= 2) {
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
      }
      if (lane < 4) sums[thread / kWarp * kColumns + n * 8 + lane * 2 + c] = sum;
    }
  }
  __syncthreads();
  if (thread < kColumns) {
    float total = 0.0f;
    for (int32_t warp = 0; warp < kWarps; ++warp) total += sums[warp * kColumns + thread];
    sums[kWarps * kColumns + thread] = total;
  }
  __syncthreads();
}

// Mean of each column over the tile, and sum of squared deviations from it.
template <int kColumns>
static __device__ __forceinline__ void measure(const Product<kColumns>& product,
                                               const Result& result, const ConsumerRow& consumer,
                                               int32_t column, int32_t index, float* sums) {
  constexpr int32_t kWarps = kThreads / kWarp;
  const auto thread = static_cast<int32_t>(threadIdx.x), pair = thread % 4 * 2;
  const int32_t depth = depth_of(consumer.out_channels);
  const auto count = static_cast<float>(count_of(result.tile, result.sides, index));
  float* moments = consumer.moments + int64_t{index} * 2 * depth + column;
  const bool is_own = thread < kColumns && column + thread < depth;
  bool is_there[4];
#pragma unroll
  for (int32_t r = 0; r < 4; ++r) is_there[r] = result.has_row(row_of(r));
  const auto number = [&](int32_t r, int32_t n, int32_t c) {
    return product.sums[r / 2][n][r % 2 * 2 + c];
  };
  sum_columns<kColumns>(is_there, sums, number);
  const float* total = sums + kWarps * kColumns;
  float means[kColumns / 8][2];
#pragma unroll
  for (int32_t n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int32_t c = 0; c < 2; ++c) means[n][c] = total[n * 8 + pair + c] / count;
  }
  if (is_own) moments[thread] = total[thread] / count;
  sum_columns<kColumns>(is_there, sums, [&](int32_t r, int32_t n, int32_t c) {
    const float deviation = number(r, n, c) - means[n][c];
    return deviation * deviation;
  });
  if (is_own) moments[depth + thread] = total[thread];
}

}  // namespace nasfast::kernels::cuda
