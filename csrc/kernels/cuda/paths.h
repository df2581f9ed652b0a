// SPDX-License-Identifier: MIT
// Several paths with the same weights, whose gradients are added: what launches are told.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nasfast::kernels::cuda {

// Some of a step's paths.
struct PathsLaunch {
  const float* gradients;  // [paths, numbers]
  float* total;            // [numbers] sum of the gradients of all paths so far, in their order
  int64_t numbers;
  int32_t paths;
  int32_t is_first;        // there were none before these
  const float* loss;       // [paths, images]
  const uint8_t* correct;  // [paths, images]
  int32_t images;
  double* loss_record;      // [paths] mean of the minibatch
  int64_t* correct_record;  // [paths] images of the minibatch
};

cudaError_t launch_paths(const PathsLaunch& launch, cudaStream_t stream);

// Neighbouring numbers.
struct SpanRow {
  int64_t offset;
  int32_t size;
};

// Marks some numbers. The others keep their marks.
cudaError_t launch_marks(const SpanRow* spans, int32_t num_spans, uint8_t mark, uint8_t* marks,
                         cudaStream_t stream);

}  // namespace nasfast::kernels::cuda
