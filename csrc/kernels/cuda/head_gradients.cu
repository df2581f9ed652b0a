// SPDX-License-Identifier: MIT
// The way back through classifiers: to the mean over each image, and to their weights.
#include "kernels/cuda/gradient_launches.h"
#include "kernels/cuda/heads.cuh"

namespace nasfast::kernels::cuda {

namespace {

// What cross-entropy, averaged over the minibatch, gives to the logits.
__device__ __forceinline__ void load_logit_gradient(const HeadGradientLaunch& launch, int32_t image,
                                                    float* logits) {
  const int32_t classes = launch.forward.classes;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  double most = logits[0], sum = 0;
  for (int32_t k = 1; k < classes; ++k) most = most < logits[k] ? logits[k] : most;
  for (int32_t k = 0; k < classes; ++k) sum += exp(static_cast<double>(logits[k]) - most);
  __syncthreads();
  for (int32_t k = thread; k < classes; k += kThreads) {
    if (launch.logit_gradient != nullptr) {
      logits[k] = launch.logit_gradient[int64_t{image} * classes + k];
      continue;
    }
    const double share = exp(static_cast<double>(logits[k]) - most) / sum;
    const double target = launch.forward.labels[image] == k ? 1 : 0;
    logits[k] = static_cast<float>((share - target) / launch.forward.sides.images);
  }
  __syncthreads();
}

// Sums over the image of what reaches the batch norm, and of that times its input less the mean.
template <Precision P>
__device__ __forceinline__ void sum_pixels(const HeadLaunch& launch, const HeadRow& head,
                                           const HeadGradientRow& row, int32_t image,
                                           const HeadLayout& layout, float* shared) {
  const int32_t depth = depth_of(head.channels), vectors = depth / kVector;
  const int32_t slices = slices_of(depth), pixels = launch.sides.height * launch.sides.width;
  const TermRow* terms = launch.terms + head.first_term;
  const float* gradient = shared + layout.gradient;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < slices * vectors; i += kThreads) {
    const int32_t slice = i / vectors, channel = i % vectors * kVector;
    float total[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    float dots[kVector] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (int32_t pixel = slice; pixel < pixels; pixel += slices) {
      float sum[kVector];
      sum_terms<P>(terms, head.num_terms, shared + layout.terms, depth,
                   int64_t{image} * pixels + pixel, channel, sum);
#pragma unroll
      for (int32_t k = 0; k < kVector; ++k) {
        const int32_t c = channel + k;
        if (c >= head.channels) break;
        const float number = Numbers<P>::rounded(sum[k]);
        const float z = fmaf(number, head.scale[c], head.shift[c]);
        if (head.is_linear == 0 && !(z > 0.0f)) continue;
        const float own = gradient[c] / static_cast<float>(pixels);
        total[k] += own;
        dots[k] = fmaf(own, number - static_cast<float>(row.mean[c]), dots[k]);
      }
    }
    Numbers<Precision::kFp32>::store8(shared + layout.partial + slice * depth + channel, total);
    Numbers<Precision::kFp32>::store8(shared + layout.dots + slice * depth + channel, dots);
  }
  add_slices(depth, shared + layout.partial);
  add_slices(depth, shared + layout.dots);
  float* to = row.sums + int64_t{image} * 2 * depth;
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < depth; c += kThreads) {
    to[c] = shared[layout.partial + c];
    to[depth + c] = shared[layout.dots + c];
  }
}

template <Precision P>
__global__ void __launch_bounds__(kThreads, 1)
    head_gradient_kernel(const HeadGradientLaunch launch) {
  const HeadGradientRow& row = launch.rows[blockIdx.y];
  const HeadRow& head = launch.forward.heads[row.head];
  const auto image = static_cast<int32_t>(blockIdx.x), thread = static_cast<int32_t>(threadIdx.x);
  const int32_t classes = launch.forward.classes, depth = depth_of(head.channels);
  const HeadLayout layout = layout_of(head.channels, head.num_terms, classes);
  auto* shared = reinterpret_cast<float*>(shared_memory());
  float* logits = shared + layout.logits;
  score_image<P>(launch.forward, head, image, layout, shared);
  __syncthreads();
  load_logit_gradient(launch, image, logits);
  for (int32_t k = thread; k < classes; k += kThreads) {
    row.logits[int64_t{image} * classes + k] = logits[k];
  }
  for (int32_t c = thread; c < depth; c += kThreads) {
    float sum = 0.0f;
    for (int32_t k = 0; k < classes && c < head.channels; ++k) {
      sum = fmaf(head.weight[int64_t{k} * head.channels + c], logits[k], sum);
    }
    shared[layout.gradient + c] = sum;
    row.gradient[int64_t{image} * depth + c] = sum;
    row.features[int64_t{image} * depth + c] = shared[layout.partial + c];
  }
  __syncthreads();
  if (row.mean != nullptr) sum_pixels<P>(launch.forward, head, row, image, layout, shared);
}

// A thread for each number of a classifier's weight and bias.
__global__ void __launch_bounds__(kThreads, 1) head_weight_kernel(const HeadGradientLaunch launch) {
  const HeadGradientRow& row = launch.rows[blockIdx.y];
  const int32_t channels = launch.forward.heads[row.head].channels;
  const int32_t classes = launch.forward.classes, depth = depth_of(channels);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
       i < int64_t{classes} * (channels + 1); i += int64_t{gridDim.x} * kThreads) {
    const auto k = static_cast<int32_t>(i / (channels + 1));
    const auto c = static_cast<int32_t>(i % (channels + 1));
    float sum = 0.0f;
    for (int32_t image = 0; image < launch.forward.sides.images; ++image) {
      const float feature = c < channels ? row.features[int64_t{image} * depth + c] : 1.0f;
      sum = fmaf(row.logits[int64_t{image} * classes + k], feature, sum);
    }
    if (c < channels) {
      row.weight_gradient[int64_t{k} * channels + c] = sum;
    } else if (row.bias_gradient != nullptr) {
      row.bias_gradient[k] = sum;
    }
  }
}

template <Precision P>
cudaError_t launch_precision(const HeadGradientLaunch& launch_of, cudaStream_t stream) {
  const HeadLaunch& forward = launch_of.forward;
  const HeadLayout layout = layout_of(forward.most_channels, forward.most_terms, forward.classes);
  const auto bytes = layout.floats * static_cast<int32_t>(sizeof(float));
  cudaError_t error = allow_shared_memory(head_gradient_kernel<P>, bytes);
  if (error != cudaSuccess) return error;
  const auto heads = static_cast<uint32_t>(forward.num_heads);
  error = launch(head_gradient_kernel<P>, dim3(static_cast<uint32_t>(forward.sides.images), heads),
                 kThreads, bytes, stream, launch_of);
  if (error != cudaSuccess) return error;
  const int32_t numbers = forward.classes * (forward.most_channels + 1);
  const auto blocks = static_cast<uint32_t>((numbers + kThreads - 1) / kThreads);
  return launch(head_weight_kernel, dim3(blocks, heads), kThreads, 0, stream, launch_of);
}

}  // namespace

cudaError_t launch_head_gradients(Precision precision, const HeadGradientLaunch& launch_of,
                                  cudaStream_t stream) {
  return precision == Precision::kBf16 ? launch_precision<Precision::kBf16>(launch_of, stream)
                                       : launch_precision<Precision::kFp32>(launch_of, stream);
}

}  // namespace nasfast::kernels::cuda
