// SPDX-License-Identifier: MIT
// Sums of terms: what a pass and a classifier read.
#pragma once

#include "kernels/cuda/descriptors.h"
#include "kernels/cuda/vectors.cuh"

namespace nasfast::kernels::cuda {

// Scales and shifts of all terms by channel of the sum, [terms][2][depth] floats.
static __device__ __forceinline__ void load_scales(const TermRow* terms, int32_t num_terms,
                                                   int32_t depth, float* scales) {
  for (int32_t t = 0; t < num_terms; ++t) {
    const TermRow& term = terms[t];
    for (int32_t c = static_cast<int32_t>(threadIdx.x); c < depth; c += kThreads) {
      const int32_t k = c - term.to;
      const bool is_covered = k >= 0 && k < term.count;
      float scale = 0.0f, shift = 0.0f;
      if (is_covered) {
        scale = term.scale != nullptr ? term.scale[k] : 1.0f;
        shift = term.shift != nullptr ? term.shift[k] : 0.0f;
      }
      scales[(2 * t) * depth + c] = scale;
      scales[(2 * t + 1) * depth + c] = shift;
    }
  }
}

// Eight channels of the sum at a pixel, from channel `first` on, terms in their order.
template <Precision P>
static __device__ __forceinline__ void sum_terms(const TermRow* terms, int32_t num_terms,
                                                 const float* scales, int32_t depth, int64_t pixel,
                                                 int32_t first, float (&sum)[kVector]) {
  using Type = typename Numbers<P>::Type;
#pragma unroll
  for (int32_t i = 0; i < kVector; ++i) sum[i] = 0.0f;
  for (int32_t t = 0; t < num_terms; ++t) {
    const TermRow& term = terms[t];
    const int32_t k = first - term.to, count = term.count;
    if (k + kVector <= 0 || k >= count) continue;
    const Type* row = static_cast<const Type*>(term.data) + pixel * term.pitch;
    float numbers[kVector];
    if (k >= 0 && k % kVector == 0) {
      Numbers<P>::load8(row + k, numbers);
    } else {
#pragma unroll
      for (int32_t i = 0; i < kVector; ++i) {
        numbers[i] = k + i >= 0 && k + i < count ? Numbers<P>::load(row + k + i) : 0.0f;
      }
    }
    float scale[kVector], shift[kVector];
    Numbers<Precision::kFp32>::load8(scales + (2 * t) * depth + first, scale);
    Numbers<Precision::kFp32>::load8(scales + (2 * t + 1) * depth + first, shift);
#pragma unroll
    for (int32_t i = 0; i < kVector; ++i) {
      float z = fmaf(numbers[i], scale[i], shift[i]);
      if (term.is_rectified != 0) z = rectified(z);
      if (term.weight != nullptr) z *= *term.weight;
      // What lies in channels that the term does not have may be no number at all.
      if (k + i >= 0 && k + i < count) sum[i] += z;
    }
  }
}

}  // namespace nasfast::kernels::cuda
