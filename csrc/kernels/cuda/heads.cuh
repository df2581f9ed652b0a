// SPDX-License-Identifier: MIT
// What the ways there and back through a classifier share.
#pragma once

#include <math_constants.h>

#include "kernels/cuda/launches.h"
#include "kernels/cuda/sums.cuh"

namespace nasfast::kernels::cuda {

// Shared memory of a head, in floats.
struct HeadLayout {
  int32_t terms;     // [terms][2][depth]
  int32_t partial;   // [slices][depth] sums over pixels; then [depth] means
  int32_t logits;    // [classes]
  int32_t gradient;  // [depth] of the means; of the way back
  int32_t dots;      // [slices][depth] more sums over pixels; of the way back
  int32_t floats;
};

NASFAST_HOST_DEVICE constexpr int32_t slices_of(int32_t depth) {
  return depth / kVector >= kThreads ? 1 : kThreads / (depth / kVector);
}

NASFAST_HOST_DEVICE constexpr HeadLayout layout_of(int32_t channels, int32_t terms,
                                                   int32_t classes) {
  const int32_t depth = depth_of(channels);
  const int32_t partial = terms * 2 * depth;
  const int32_t logits = partial + slices_of(depth) * depth;
  const int32_t gradient = round_up(logits + classes, 4), dots = gradient + depth;
  return {0, partial, logits, gradient, dots, dots + slices_of(depth) * depth};
}

// Adds up the slices of every channel; a thread then has its own channels' totals in the first.
static __device__ __forceinline__ void add_slices(int32_t depth, float* partial) {
  __syncthreads();
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < depth; c += kThreads) {
    for (int32_t slice = 1; slice < slices_of(depth); ++slice) {
      partial[c] += partial[slice * depth + c];
    }
  }
}

// Mean over the image of each channel, behind the batch norm; in `partial`.
template <Precision P>
static __device__ __forceinline__ void average(const HeadLaunch& launch, const HeadRow& head,
                                               const float* scales, int32_t image, float* partial) {
  const int32_t depth = depth_of(head.channels), vectors = depth / kVector;
  const int32_t slices = slices_of(depth), pixels = launch.sides.height * launch.sides.width;
  const TermRow* terms = launch.terms + head.first_term;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < slices * vectors; i += kThreads) {
    const int32_t slice = i / vectors, channel = i % vectors * kVector;
    float total[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (int32_t pixel = slice; pixel < pixels; pixel += slices) {
      float sum[kVector];
      sum_terms<P>(terms, head.num_terms, scales, depth, int64_t{image} * pixels + pixel, channel,
                   sum);
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) {
        if (channel + k >= head.channels) break;
        float z = Numbers<P>::rounded(sum[k]);
        if (head.scale != nullptr) z = fmaf(z, head.scale[channel + k], head.shift[channel + k]);
        total[k] += head.is_linear != 0 ? z : rectified(z);
      }
    }
    Numbers<Precision::kFp32>::store8(partial + slice * depth + channel, total);
  }
  add_slices(depth, partial);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < depth; c += kThreads) {
    partial[c] /= static_cast<float>(pixels);
  }
  __syncthreads();
}

// Cross-entropy in double precision, and whether the largest logit, the first of equal ones, is the
// label's and the loss is finite. A label that names no class has a loss that is no number.
static __device__ __forceinline__ void score(const float* logits, int32_t classes, int64_t label,
                                             float* loss, uint8_t* correct) {
  int32_t best = 0;
  for (int32_t k = 1; k < classes; ++k) {
    if (logits[k] > logits[best]) best = k;
  }
  double sum = 0;
  for (int32_t k = 0; k < classes; ++k) {
    sum += exp(static_cast<double>(logits[k]) - static_cast<double>(logits[best]));
  }
  const bool is_class = label >= 0 && label < classes;
  const double own = is_class ? static_cast<double>(logits[label]) : CUDART_NAN;
  const double entropy = log(sum) + static_cast<double>(logits[best]) - own;
  if (loss != nullptr) *loss = static_cast<float>(entropy);
  if (correct != nullptr) *correct = best == label && isfinite(entropy) ? 1 : 0;
}

// Logits of the means, in shared memory.
static __device__ __forceinline__ void classify(const HeadRow& head, int32_t classes,
                                                const float* means, float* logits) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t k = thread / kWarp; k < classes; k += kThreads / kWarp) {
    float sum = 0.0f;
    for (int32_t c = thread % kWarp; c < head.channels; c += kWarp) {
      sum = fmaf(head.weight[int64_t{k} * head.channels + c], means[c], sum);
    }
#pragma unroll
    for (int32_t lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
    }
    if (thread % kWarp == 0) logits[k] = sum + (head.bias != nullptr ? head.bias[k] : 0.0f);
  }
  __syncthreads();
}

// Sums, means and logits of an image, [depth] and [classes] shared floats; writes its results.
template <Precision P>
static __device__ __forceinline__ void score_image(const HeadLaunch& launch, const HeadRow& head,
                                                   int32_t image, const HeadLayout& layout,
                                                   float* shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  float* means = shared + layout.partial;
  float* logits = shared + layout.logits;
  load_scales(launch.terms + head.first_term, head.num_terms, depth_of(head.channels),
              shared + layout.terms);
  __syncthreads();
  average<P>(launch, head, shared + layout.terms, image, means);
  classify(head, launch.classes, means, logits);
  const int64_t at = head.result * launch.num_images + launch.first_image + image;
  for (int32_t k = thread; k < launch.classes && launch.logits != nullptr; k += kThreads) {
    launch.logits[at * launch.classes + k] = logits[k];
  }
  if (thread != 0 || launch.labels == nullptr) return;
  score(logits, launch.classes, launch.labels[image],
        launch.loss != nullptr ? launch.loss + at : nullptr,
        launch.correct != nullptr ? launch.correct + at : nullptr);
}

}  // namespace nasfast::kernels::cuda
