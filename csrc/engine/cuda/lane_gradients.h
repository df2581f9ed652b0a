// SPDX-License-Identifier: MIT
// Logits and gradients of one lane in training mode on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/cuda/lane_groups.h"
#include "engine/cuda/minibatch.h"
#include "engine/cuda/placement.h"
#include "engine/training.h"
#include "program/program_table.h"

namespace nasfast::cuda {

// What the gradients are of, in device memory: the mean cross-entropy where the minibatch has
// labels, else the sum of logits times `logit_gradient`. Neither: logits alone.
struct GradientInputs {
  const float* arena = nullptr;           // [arena]
  const float* mixing = nullptr;          // [cells, mixing width]; null: none
  const float* logit_gradient = nullptr;  // [images, classes]
};

// As program_gradients() on the CPU (engine/training.h) says; results lie in device memory. Returns
// when all is done. `allocate` gives the memory that it computes with. Throws as
// LaneTrainer::run().
void lane_gradients(const ProgramTable& table, int32_t lane, const Options& options,
                    const Budget& budget, Allocate allocate, const GradientInputs& inputs,
                    const Minibatch& minibatch, const GradientResults& results,
                    cudaStream_t stream);

}  // namespace nasfast::cuda
