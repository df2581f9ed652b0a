// SPDX-License-Identifier: MIT
// Gradients of stored results, made where they are needed.
#pragma once

#include "kernels/cuda/gradient_descriptors.h"
#include "kernels/cuda/vectors.cuh"

namespace nasfast::kernels::cuda {

// Of a batch norm's input: a * g + b * y + c with g the gradient of its output, by channel. `sum`
// and `dot`: totals of g and of g * (y - mean).
struct NormGradient {
  float a, b, c;
};
static __device__ __forceinline__ NormGradient norm_gradient(double sum, double dot, double mean,
                                                             double inverse, double gamma,
                                                             double count) {
  const double factor = gamma * inverse, product = inverse * dot;
  return {static_cast<float>(factor), static_cast<float>(-factor * inverse * product / count),
          static_cast<float>(factor * (inverse * mean * product - sum) / count)};
}

// Coefficients of a result's gradient, [3][depth] shared floats. The block that `writes` them also
// writes the gradients of scale and shift.
static __device__ __forceinline__ void load_coefficients(const ResultRow& result,
                                                         const ReaderRow* readers, bool writes,
                                                         float* coefficients) {
  const int32_t depth = depth_of(result.channels);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < depth; c += kThreads) {
    NormGradient of = {1.0f, 0.0f, 0.0f};
    if (result.statistics != nullptr && c < result.channels) {
      double sum = 0, dot = 0;
      for (int32_t r = 0; r < result.num_readers; ++r) {
        const ReaderRow& reader = readers[result.first_reader + r];
        if (c >= reader.count) continue;
        const double weight = reader.weight != nullptr ? *reader.weight : 1.0;
        sum += weight * reader.sums[c];
        dot += weight * reader.sums[reader.depth + c];
      }
      // It was summed with the mean as a float.
      dot += (static_cast<float>(result.statistics[c]) - result.statistics[c]) * sum;
      const double inverse = result.statistics[depth + c];
      const double gamma = result.gamma != nullptr ? result.gamma[c] : 1.0;
      of = norm_gradient(sum, dot, result.statistics[c], inverse, gamma, result.count);
      if (writes && result.gamma_gradient != nullptr) {
        result.gamma_gradient[c] = static_cast<float>(inverse * dot);
      }
      if (writes && result.beta_gradient != nullptr) {
        result.beta_gradient[c] = static_cast<float>(sum);
      }
    }
    coefficients[c] = of.a;
    coefficients[depth + c] = of.b;
    coefficients[2 * depth + c] = of.c;
  }
}

// Eight channels of the sum of gradients that reach a result, from channel `first` on.
template <Precision P>
static __device__ __forceinline__ void sum_readers(const ReaderRow* readers, int32_t first_reader,
                                                   int32_t num_readers, int64_t pixel,
                                                   int32_t first, float (&sum)[kVector]) {
  using Type = typename Numbers<P>::Type;
#pragma unroll
  for (int32_t i = 0; i < kVector; ++i) sum[i] = 0.0f;
  for (int32_t r = 0; r < num_readers; ++r) {
    const ReaderRow& reader = readers[first_reader + r];
    if (first >= reader.count) continue;
    const float weight = reader.weight != nullptr ? *reader.weight : 1.0f;
    const Type* row =
        static_cast<const Type*>(reader.gradient) + pixel * reader.pitch + reader.from + first;
    float numbers[kVector];
    if (reader.from % kVector == 0) {
      Numbers<P>::load8(row, numbers);
    } else {
#pragma unroll
      for (int32_t i = 0; i < kVector; ++i) {
        numbers[i] = first + i < reader.count ? Numbers<P>::load(row + i) : 0.0f;
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kVector; ++i) {
      // Behind the reader's last channel lie others'.
      if (first + i < reader.count) sum[i] = fmaf(weight, numbers[i], sum[i]);
    }
  }
}

// Eight channels of a result's gradient at a pixel, from channel `first` on; zeros behind the last.
template <Precision P>
static __device__ __forceinline__ void result_gradient(const ResultRow& result,
                                                       const ReaderRow* readers,
                                                       const float* coefficients, int64_t pixel,
                                                       int32_t first, float (&out)[kVector]) {
  using Type = typename Numbers<P>::Type;
  const int32_t depth = depth_of(result.channels);
  sum_readers<P>(readers, result.first_reader, result.num_readers, pixel, first, out);
  float value[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  if (result.value != nullptr && first < pitch_of(result.channels)) {
    Numbers<P>::load8(
        static_cast<const Type*>(result.value) + pixel * pitch_of(result.channels) + first, value);
  }
#pragma unroll
  for (int32_t i = 0; i < kVector; ++i) {
    const int32_t c = first + i;
    if (c >= result.channels) {
      out[i] = 0.0f;
      continue;
    }
    if (result.is_rectified != 0 &&
        !(fmaf(value[i], result.affine[c], result.affine[depth + c]) > 0.0f)) {
      out[i] = 0.0f;
    }
    if (result.statistics != nullptr) {
      out[i] = fmaf(coefficients[c], out[i],
                    fmaf(coefficients[depth + c], value[i], coefficients[2 * depth + c]));
    }
  }
}

}  // namespace nasfast::kernels::cuda
