// SPDX-License-Identifier: MIT
// Classifiers and their loss, a block of threads for each image.
#include "kernels/cuda/launches.h"
#include "kernels/cuda/sums.cuh"

namespace nasfast::kernels::cuda {

namespace {

// Shared memory of a head, in floats.
struct HeadLayout {
  int32_t terms;    // [terms][2][depth]
  int32_t partial;  // [slices][depth] sums over pixels; then [depth] means
  int32_t logits;   // [classes]
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
  return {0, partial, logits, logits + classes};
}

// Mean over the image of each channel, behind the batch norm; in `partial`.
template <Precision P>
__device__ __forceinline__ void average(const HeadLaunch& launch, const HeadRow& head,
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
  __syncthreads();
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < depth; c += kThreads) {
    float total = 0.0f;
    for (int32_t slice = 0; slice < slices; ++slice) total += partial[slice * depth + c];
    partial[c] = total / static_cast<float>(pixels);
  }
  __syncthreads();
}

// Cross-entropy in double precision, and whether the largest logit, the first of equal ones, is the
// label's and the loss is finite.
__device__ __forceinline__ void score(const float* logits, int32_t classes, int64_t label,
                                      float* loss, uint8_t* correct) {
  int32_t best = 0;
  for (int32_t k = 1; k < classes; ++k) {
    if (logits[k] > logits[best]) best = k;
  }
  double sum = 0;
  for (int32_t k = 0; k < classes; ++k) {
    sum += exp(static_cast<double>(logits[k]) - static_cast<double>(logits[best]));
  }
  const double entropy =
      log(sum) + static_cast<double>(logits[best]) - static_cast<double>(logits[label]);
  if (loss != nullptr) *loss = static_cast<float>(entropy);
  if (correct != nullptr) *correct = best == label && isfinite(entropy) ? 1 : 0;
}

template <Precision P>
__global__ void __launch_bounds__(kThreads) head_kernel(const HeadLaunch launch) {
  const HeadRow& head = launch.heads[blockIdx.y];
  const auto image = static_cast<int32_t>(blockIdx.x), thread = static_cast<int32_t>(threadIdx.x);
  const HeadLayout layout = layout_of(head.channels, head.num_terms, launch.classes);
  auto* shared = reinterpret_cast<float*>(shared_memory());
  float* means = shared + layout.partial;
  float* logits = shared + layout.logits;
  load_scales(launch.terms + head.first_term, head.num_terms, depth_of(head.channels),
              shared + layout.terms);
  __syncthreads();
  average<P>(launch, head, shared + layout.terms, image, means);
  for (int32_t k = thread / kWarp; k < launch.classes; k += kThreads / kWarp) {
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
  const int64_t at = head.result * launch.num_images + launch.first_image + image;
  for (int32_t k = thread; k < launch.classes && launch.logits != nullptr; k += kThreads) {
    launch.logits[at * launch.classes + k] = logits[k];
  }
  if (thread != 0 || launch.labels == nullptr) return;
  score(logits, launch.classes, launch.labels[image],
        launch.loss != nullptr ? launch.loss + at : nullptr,
        launch.correct != nullptr ? launch.correct + at : nullptr);
}

template <Precision P>
cudaError_t launch_precision(const HeadLaunch& launch_of, cudaStream_t stream) {
  const HeadLayout layout =
      layout_of(launch_of.most_channels, launch_of.most_terms, launch_of.classes);
  const auto bytes = layout.floats * static_cast<int32_t>(sizeof(float));
  const cudaError_t error =
      cudaFuncSetAttribute(head_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<uint32_t>(launch_of.sides.images),
                  static_cast<uint32_t>(launch_of.num_heads));
  return launch(head_kernel<P>, grid, kThreads, bytes, stream, launch_of);
}

}  // namespace

cudaError_t launch_heads(Precision precision, const HeadLaunch& launch_of, cudaStream_t stream) {
  return precision == Precision::kBf16 ? launch_precision<Precision::kBf16>(launch_of, stream)
                                       : launch_precision<Precision::kFp32>(launch_of, stream);
}

}  // namespace nasfast::kernels::cuda
