// SPDX-License-Identifier: MIT
// Sums over all threads of a block, in an order that is fixed.
#pragma once

#include "kernels/cuda/intrinsics.cuh"
#include "kernels/cuda/layout.h"

namespace nasfast::kernels::cuda {

// In thread 0. `shared`: kThreads.
static __device__ __forceinline__ double sum_block(double own, double* shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  __syncthreads();
  shared[thread] = own;
  for (int32_t half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] += shared[thread + half];
  }
  __syncthreads();
  return shared[0];
}

// Results of a minibatch.
struct Score {
  double loss, correct;
};

// Their sums over the images of a lane; in thread 0. `shared`: kThreads.
static __device__ __forceinline__ Score sum_scores(const float* loss, const uint8_t* correct,
                                                   int32_t images, double* shared) {
  Score own{0, 0};
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < images; i += kThreads) {
    own.loss += loss[i];
    own.correct += correct[i];
  }
  own.loss = sum_block(own.loss, shared);
  own.correct = sum_block(own.correct, shared);
  return own;
}

constexpr auto kBlockSumBytes = static_cast<int32_t>(sizeof(double)) * kThreads;

}  // namespace nasfast::kernels::cuda
