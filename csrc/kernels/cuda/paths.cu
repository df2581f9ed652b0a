// SPDX-License-Identifier: MIT
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/intrinsics.cuh"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/paths.h"

namespace nasfast::kernels::cuda {

namespace {

constexpr int32_t kMostBlocks = 1024;

int32_t blocks_for(int64_t numbers) {
  const int64_t blocks = (numbers + kThreads - 1) / kThreads;
  return static_cast<int32_t>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

__global__ void __launch_bounds__(kThreads) add_kernel(const PathsLaunch launch) {
  const auto step = int64_t{gridDim.x} * kThreads;
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < launch.numbers; k += step) {
    float total = launch.is_first != 0 ? 0.0f : launch.total[k];
    for (int32_t path = 0; path < launch.paths; ++path) {
      total += launch.gradients[path * launch.numbers + k];
    }
    launch.total[k] = total;
  }
}

__global__ void __launch_bounds__(kThreads) record_kernel(const PathsLaunch launch) {
  const auto path = static_cast<int64_t>(blockIdx.x);
  auto* shared = reinterpret_cast<double*>(shared_memory());
  const Score score = sum_scores(launch.loss + path * launch.images,
                                 launch.correct + path * launch.images, launch.images, shared);
  if (threadIdx.x != 0) return;
  launch.loss_record[path] = score.loss / launch.images;
  launch.correct_record[path] = static_cast<int64_t>(score.correct);
}

__global__ void __launch_bounds__(kThreads)
    mark_kernel(const SpanRow* spans, int32_t num_spans, uint8_t mark, uint8_t* marks) {
  for (auto i = static_cast<int32_t>(blockIdx.x); i < num_spans;
       i += static_cast<int32_t>(gridDim.x)) {
    const SpanRow span = spans[i];
    for (auto k = static_cast<int32_t>(threadIdx.x); k < span.size; k += kThreads) {
      marks[span.offset + k] = mark;
    }
  }
}

}  // namespace

cudaError_t launch_paths(const PathsLaunch& launch_of, cudaStream_t stream) {
  const auto blocks = static_cast<uint32_t>(blocks_for(launch_of.numbers));
  const cudaError_t error = launch(add_kernel, dim3(blocks), kThreads, 0, stream, launch_of);
  if (error != cudaSuccess) return error;
  return launch(record_kernel, dim3(static_cast<uint32_t>(launch_of.paths)), kThreads,
                kBlockSumBytes, stream, launch_of);
}

cudaError_t launch_marks(const SpanRow* spans, int32_t num_spans, uint8_t mark, uint8_t* marks,
                         cudaStream_t stream) {
  if (num_spans == 0) return cudaSuccess;
  const dim3 grid(static_cast<uint32_t>(least(num_spans, kMostBlocks)));
  return launch(mark_kernel, grid, kThreads, 0, stream, spans, num_spans, mark, marks);
}

}  // namespace nasfast::kernels::cuda
