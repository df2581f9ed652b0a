// SPDX-License-Identifier: MIT
// The launches of the way back, and the tables they read; see steps.h for the way forward.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/cuda/packing.h"
#include "engine/cuda/steps.h"
#include "engine/cuda/training_placement.h"
#include "kernels/cuda/gradient_launches.h"

namespace nasfast::cuda {

struct GradientsStep {
  int32_t first = 0, count = 0;
  int32_t columns = 0;
  int32_t most_tiles = 0, most_bytes = 0;
};
struct SumsStep {
  int32_t first = 0, count = 0;
  int32_t most_numbers = 0;
};
struct WeightGradientsStep {
  int32_t first = 0, count = 0;  // of rows, and of rows of sums
  int32_t most_blocks = 0, most_bytes = 0;
  int64_t most_numbers = 0;
};
struct HeadGradientsStep {
  int32_t first = 0, count = 0;
  int32_t most_classes = 0;
};

// One after another: classifiers and their sums; gradients of values (a launch for each number of
// columns), their sums, and what these say of mixing weights; gradients of weights, whose parts are
// then added.
struct BackwardStep {
  HeadGradientsStep heads;
  SumsStep head_sums;
  std::vector<GradientsStep> gradients;
  SumsStep sums;
  SumsStep mixing;
  WeightGradientsStep weights;
};

struct BackwardSteps {
  std::vector<kernels::cuda::TermRow> terms;
  std::vector<kernels::cuda::ReaderRow> readers;
  std::vector<kernels::cuda::ResultRow> results;
  std::vector<kernels::cuda::ShareRow> shares;
  std::vector<kernels::cuda::GradientRow> gradients;
  std::vector<kernels::cuda::SumRow> sums;
  std::vector<kernels::cuda::MixingRow> mixing;
  std::vector<kernels::cuda::WeightGradientRow> weights;
  std::vector<kernels::cuda::WeightSumRow> weight_sums;
  std::vector<kernels::cuda::HeadGradientRow> heads;
  std::vector<BackwardStep> steps;
  int64_t partial_bytes = 0;  // that a step needs at most

  int32_t most_shared() const;  // bytes of shared memory of a block
};

struct BackwardAddresses {
  Addresses forward;
  std::byte* partial = nullptr;      // sums of tiles, of the step at hand
  float* gradients = nullptr;        // [lanes, arena]
  float* mixing_gradient = nullptr;  // null: not wanted
  const int32_t* inputs = nullptr;   // of views
};

// `backward`: of the placement's lanes.
BackwardSteps backward_steps(const Placement& placement,
                             const std::vector<BackwardPlaces>& backward, const ViewInputs& inputs,
                             kernels::cuda::Precision precision, const BackwardAddresses& addresses,
                             int32_t images);

}  // namespace nasfast::cuda
