// SPDX-License-Identifier: MIT
// Sums over tiles, in an order that is fixed.
#include "kernels/cuda/gradient_launches.h"
#include "kernels/cuda/intrinsics.cuh"

namespace nasfast::kernels::cuda {

namespace {

constexpr int32_t kColumns = 32;  // numbers of a block
constexpr int32_t kSlices = 8;    // of the parts of a number

// Adds up every kSlices-th part, then these sums; in all threads of slice 0.
template <typename Of>
__device__ __forceinline__ double sum_parts(int32_t parts, bool is_there, const Of& of) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  auto* slices = reinterpret_cast<double*>(shared_memory());
  double sum = 0;
  for (int32_t part = thread / kColumns; is_there && part < parts; part += kSlices) sum += of(part);
  slices[thread] = sum;
  __syncthreads();
  if (thread / kColumns != 0) return 0;
  for (int32_t s = 1; s < kSlices; ++s) sum += slices[s * kColumns + thread];
  return sum;
}

__global__ void __launch_bounds__(kColumns* kSlices) sum_kernel(const SumRow* rows) {
  const SumRow& row = rows[blockIdx.y];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t k = static_cast<int32_t>(blockIdx.x) * kColumns + thread % kColumns;
  const bool is_there = k < row.numbers;
  const double sum = sum_parts(row.parts, is_there, [&](int32_t part) {
    return static_cast<double>(row.partial[int64_t{part} * row.numbers + k]);
  });
  if (thread < kColumns && is_there) row.total[k] = sum;
}

// A thread for each number of a weight's gradient, in the arena's order.
__global__ void __launch_bounds__(kColumns* kSlices) weight_sum_kernel(const WeightSumRow* rows) {
  const WeightSumRow& row = rows[blockIdx.y];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t taps = row.kernel * row.kernel;
  const int64_t count = int64_t{row.out_channels} * row.in_channels * taps;
  const int64_t k = int64_t{blockIdx.x} * kColumns + thread % kColumns;
  if (int64_t{blockIdx.x} * kColumns >= count) return;
  const bool is_there = k < count;
  const int32_t columns = depth_of(row.in_channels), out_rows = depth_of(row.out_channels);
  const auto tap = static_cast<int32_t>(k % taps);
  const auto in = static_cast<int32_t>(k / taps % row.in_channels);
  const auto out = static_cast<int32_t>(k / taps / row.in_channels);
  const double sum = sum_parts(row.parts, is_there, [&](int32_t part) {
    return static_cast<double>(
        row.partial[((int64_t{part} * taps + tap) * out_rows + out) * columns + in]);
  });
  if (thread >= kColumns || !is_there) return;
  const int32_t input = row.inputs != nullptr ? row.inputs[in] : in;
  row.gradient[(int64_t{out} * row.all_channels + input) * taps + tap] = static_cast<float>(sum);
}

// Several terms may have the same mixing weight, so one block does them all.
__global__ void __launch_bounds__(kWarp) mixing_kernel(const MixingRow* rows, int32_t num_rows) {
  for (int32_t r = 0; r < num_rows; ++r) {
    const MixingRow& row = rows[r];
    double sum = 0;
    for (int32_t c = static_cast<int32_t>(threadIdx.x); c < row.channels; c += kWarp) {
      const double scale = row.scale != nullptr ? row.scale[c] : 1.0;
      const double shift = row.shift != nullptr ? row.shift[c] : 0.0;
      const double mean = row.mean != nullptr ? static_cast<float>(row.mean[c]) : 0.0;
      sum += scale * row.sums[row.depth + c] + (shift + scale * mean) * row.sums[c];
    }
#pragma unroll
    for (int32_t lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
    }
    if (threadIdx.x == 0) *row.gradient += static_cast<float>(sum);
    __syncwarp();
  }
}

template <typename Row>
cudaError_t launch_rows(void (*kernel)(const Row*), const Row* rows, int32_t num_rows,
                        int64_t most_numbers, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int32_t>(sizeof(double)) * kColumns * kSlices;
  for (int32_t begin = 0; begin < num_rows; begin += kMostRows) {
    const dim3 grid(static_cast<uint32_t>((most_numbers + kColumns - 1) / kColumns),
                    static_cast<uint32_t>(least(kMostRows, num_rows - begin)));
    const cudaError_t error =
        launch(kernel, grid, kColumns * kSlices, kBytes, stream, rows + begin);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_sums(const SumRow* rows, int32_t num_rows, int32_t most_numbers,
                        cudaStream_t stream) {
  return launch_rows(sum_kernel, rows, num_rows, most_numbers, stream);
}

cudaError_t launch_mixing(const MixingRow* rows, int32_t num_rows, cudaStream_t stream) {
  if (num_rows == 0) return cudaSuccess;
  return launch(mixing_kernel, dim3(1), kWarp, 0, stream, rows, num_rows);
}

cudaError_t launch_weight_sums(const WeightSumRow* rows, int32_t num_rows, int64_t most_numbers,
                               cudaStream_t stream) {
  return launch_rows(weight_sum_kernel, rows, num_rows, most_numbers, stream);
}

}  // namespace nasfast::kernels::cuda
