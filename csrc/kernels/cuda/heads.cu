// SPDX-License-Identifier: MIT
// Classifiers and their loss, a block of threads for each image.
#include "kernels/cuda/heads.cuh"

namespace nasfast::kernels::cuda {

namespace {

template <Precision P>
__global__ void __launch_bounds__(kThreads, 1) head_kernel(const HeadLaunch launch) {
  const HeadRow& head = launch.heads[blockIdx.y];
  const HeadLayout layout = layout_of(head.channels, head.num_terms, launch.classes);
  score_image<P>(launch, head, static_cast<int32_t>(blockIdx.x), layout,
                 reinterpret_cast<float*>(shared_memory()));
}

template <Precision P>
cudaError_t launch_precision(const HeadLaunch& launch_of, cudaStream_t stream) {
  const HeadLayout layout =
      layout_of(launch_of.most_channels, launch_of.most_terms, launch_of.classes);
  const auto bytes = layout.floats * static_cast<int32_t>(sizeof(float));
  const cudaError_t error = allow_shared_memory(head_kernel<P>, bytes);
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
