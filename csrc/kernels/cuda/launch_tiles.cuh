// SPDX-License-Identifier: MIT
// Launches of kernels with a block for each tile of each row, compiled for every precision of
// products and several numbers of columns.
#pragma once

#include "kernels/cuda/intrinsics.cuh"
#include "kernels/cuda/layout.h"

namespace nasfast::kernels::cuda {

// Calls run<P, columns>(), with as many columns as registers are to be chosen for.
template <Precision P, typename Run>
cudaError_t for_columns_of(int32_t columns, const Run& run) {
  if (columns <= 16) return run.template operator()<P, 16>();
  if (columns <= 32) return run.template operator()<P, 32>();
  return run.template operator()<P, 64>();
}
template <typename Run>
cudaError_t for_columns(Precision precision, int32_t columns, const Run& run) {
  switch (precision) {
    case Precision::kBf16:
      return for_columns_of<Precision::kBf16>(columns, run);
    case Precision::kTf32:
      return for_columns_of<Precision::kTf32>(columns, run);
    case Precision::kFp32:
      break;
  }
  return for_columns_of<Precision::kFp32>(columns, run);
}

// `launch_of`: what the kernel is told.
template <typename Launch>
cudaError_t launch_tiles(void (*kernel)(Launch), const Launch& launch_of, int32_t num_rows,
                         cudaStream_t stream) {
  const cudaError_t error = allow_shared_memory(kernel, launch_of.most_bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<uint32_t>(launch_of.most_tiles), static_cast<uint32_t>(num_rows));
  return launch(kernel, grid, kThreads, launch_of.most_bytes, stream, launch_of);
}

}  // namespace nasfast::kernels::cuda
