// SPDX-License-Identifier: MIT
// SGD, fused over all lanes: as torch.optim.SGD does it, in float32 and in its order.
#include <math_constants.h>

#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/intrinsics.cuh"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/sgd.h"

namespace nasfast::kernels::cuda {

namespace {

// Calls visit(k) for the numbers of a lane that this block has.
template <typename Visit>
__device__ __forceinline__ void for_numbers(int64_t numbers, const Visit& visit) {
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < numbers;
       k += int64_t{kSgdParts} * kThreads) {
    visit(k);
  }
}

__global__ void __launch_bounds__(kThreads) measure_kernel(const SgdLaunch launch) {
  const auto lane = static_cast<int64_t>(blockIdx.y);
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const float* gradient = launch.gradients + lane * launch.numbers;
  double l1 = 0, square = 0;
  for_numbers(launch.numbers, [&](int64_t k) {
    const double number = gradient[k];
    l1 += fabs(number);
    square += number * number;
  });
  l1 = sum_block(l1, shared);
  square = sum_block(square, shared);
  if (threadIdx.x != 0) return;
  double* to = launch.partial + (lane * kSgdParts + blockIdx.x) * 2;
  to[0] = l1;
  to[1] = square;
}

// What a gradient of that square is multiplied by, so that it is no longer than `clip`.
__device__ __forceinline__ float factor_of(double clip, double square) {
  if (clip <= 0) return 1.0f;
  const double factor = clip / (sqrt(square) + 1e-6);
  return static_cast<float>(factor < 1 ? factor : 1);
}

__global__ void __launch_bounds__(kThreads) decide_kernel(const SgdLaunch launch) {
  const auto lane = static_cast<int64_t>(blockIdx.x);
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const Score score = sum_scores(launch.loss + lane * launch.images,
                                 launch.correct + lane * launch.images, launch.images, shared);
  if (threadIdx.x != 0) return;
  const double nan = CUDART_NAN, loss = score.loss / launch.images;
  const int64_t at = lane * launch.steps + launch.step;
  const bool was_active = launch.diverged_at[lane] < 0;
  double l1 = 0, square = 0;
  for (int32_t part = 0; part < kSgdParts; ++part) {
    l1 += launch.partial[(lane * kSgdParts + part) * 2];
    square += launch.partial[(lane * kSgdParts + part) * 2 + 1];
  }
  const bool has_loss = was_active && isfinite(loss);
  const bool is_active = has_loss && isfinite(square);
  launch.loss_record[at] = was_active ? loss : nan;
  launch.correct_record[at] = was_active ? static_cast<int64_t>(score.correct) : 0;
  launch.gradient_l1[at] = is_active ? l1 : nan;
  if (launch.gradient_sum_l1 != nullptr && !is_active) launch.gradient_sum_l1[at] = nan;
  if (was_active && !is_active) launch.diverged_at[lane] = launch.first_step + launch.step;
  launch.states[lane] = {factor_of(launch.clip, square), is_active ? 1 : 0};
}

// One thread: there are few paths, and each depends on those before it.
__global__ void __launch_bounds__(kWarp)
    decide_paths_kernel(const SgdLaunch launch, int32_t paths) {
  if (threadIdx.x != 0) return;
  bool is_finite = launch.diverged_at[0] < 0;
  const bool was_active = is_finite;
  for (int32_t path = 0; path < paths; ++path) {
    if (is_finite) {
      is_finite = isfinite(launch.loss_record[path]);
    } else {
      launch.loss_record[path] = CUDART_NAN;
      launch.correct_record[path] = 0;
    }
  }
  double square = 0;
  for (int32_t part = 0; part < kSgdParts; ++part) square += launch.partial[part * 2 + 1];
  const bool is_active = is_finite && isfinite(square);
  if (was_active && !is_active) launch.diverged_at[0] = launch.first_step + launch.step;
  launch.states[0] = {factor_of(launch.clip, square), is_active ? 1 : 0};
}

__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const StatisticsRow* rows, const SgdState* states) {
  const StatisticsRow& row = rows[blockIdx.y];
  if (states != nullptr && states[row.lane].is_active == 0) return;
  const int32_t depth = depth_of(row.channels);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < row.channels; c += kThreads) {
    const double mean = row.statistics[c] + (row.bias != nullptr ? row.bias[c] : 0.0f);
    const double variance = row.statistics[2 * depth + c] * row.count / (row.count - 1);
    const double old_mean = row.mean[c], old_variance = row.variance[c];
    row.mean[c] = static_cast<float>(old_mean + row.momentum * (mean - old_mean));
    row.variance[c] = static_cast<float>(old_variance + row.momentum * (variance - old_variance));
  }
}

__global__ void __launch_bounds__(kThreads) update_kernel(const SgdLaunch launch) {
  const auto lane = static_cast<int64_t>(blockIdx.y);
  const SgdState state = launch.states[lane];
  if (state.is_active == 0) return;
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const int64_t begin = lane * launch.numbers;
  const auto lr = static_cast<float>(launch.lr[lane * launch.steps + launch.step]);
  double l1 = 0;
  for_numbers(launch.numbers, [&](int64_t k) {
    const int64_t at = begin + k;
    if (launch.marks[at] == kTracked) launch.weights[at] = launch.running[at];
    if (launch.marks[at] != kTrained) return;
    const float gradient = launch.gradients[at], weight = launch.weights[at];
    if (launch.gradient_sums != nullptr) {
      launch.gradient_sums[at] += gradient;
      l1 += fabs(static_cast<double>(launch.gradient_sums[at]));
    }
    float step = gradient * state.factor + launch.weight_decay * weight;
    if (launch.momenta != nullptr) {
      const float momentum = launch.momentum * launch.momenta[at] + step;
      launch.momenta[at] = momentum;
      step = launch.is_nesterov != 0 ? step + launch.momentum * momentum : momentum;
    }
    launch.weights[at] = weight - lr * step;
  });
  if (launch.gradient_sums == nullptr) return;
  l1 = sum_block(l1, shared);
  if (threadIdx.x == 0) launch.partial[(lane * kSgdParts + blockIdx.x) * 2] = l1;
}

__global__ void __launch_bounds__(kWarp) record_sums_kernel(const SgdLaunch launch) {
  const auto lane = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  if (lane >= launch.lanes || launch.states[lane].is_active == 0) return;
  double l1 = 0;
  for (int32_t part = 0; part < kSgdParts; ++part) {
    l1 += launch.partial[(lane * kSgdParts + part) * 2];
  }
  launch.gradient_sum_l1[lane * launch.steps + launch.step] = l1;
}

}  // namespace

cudaError_t launch_measure(const SgdLaunch& launch_of, cudaStream_t stream) {
  const auto lanes = static_cast<uint32_t>(launch_of.lanes);
  const cudaError_t error =
      launch(measure_kernel, dim3(kSgdParts, lanes), kThreads, kBlockSumBytes, stream, launch_of);
  if (error != cudaSuccess) return error;
  return launch(decide_kernel, dim3(lanes), kThreads, kBlockSumBytes, stream, launch_of);
}

cudaError_t launch_measure_paths(const SgdLaunch& launch_of, int32_t paths, cudaStream_t stream) {
  const cudaError_t error =
      launch(measure_kernel, dim3(kSgdParts), kThreads, kBlockSumBytes, stream, launch_of);
  if (error != cudaSuccess) return error;
  return launch(decide_paths_kernel, dim3(1), kWarp, 0, stream, launch_of, paths);
}

cudaError_t launch_statistics(const StatisticsRow* rows, int32_t num_rows, const SgdState* states,
                              cudaStream_t stream) {
  for (int32_t begin = 0; begin < num_rows; begin += kMostRows) {
    const dim3 grid(1, static_cast<uint32_t>(least(kMostRows, num_rows - begin)));
    const cudaError_t error =
        launch(statistics_kernel, grid, kThreads, 0, stream, rows + begin, states);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_updates(const SgdLaunch& launch_of, cudaStream_t stream) {
  const auto lanes = static_cast<uint32_t>(launch_of.lanes);
  const cudaError_t error =
      launch(update_kernel, dim3(kSgdParts, lanes), kThreads, kBlockSumBytes, stream, launch_of);
  if (error != cudaSuccess || launch_of.gradient_sums == nullptr) return error;
  return launch(record_sums_kernel, dim3((lanes + kWarp - 1) / kWarp), kWarp, 0, stream, launch_of);
}

}  // namespace nasfast::kernels::cuda
