// SPDX-License-Identifier: MIT
// SGD of many lanes at once: what launches of it are told.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nasfast::kernels::cuda {

constexpr int32_t kSgdParts = 16;  // blocks of a lane

// What numbers of a row of weights are; 0: at rest.
constexpr uint8_t kTrained = 1, kTracked = 2;

// What a lane does in the step at hand.
struct SgdState {
  float factor;       // of the gradient
  int32_t is_active;  // 0: it has stopped
};

// Rows of `numbers` for every lane.
struct SgdLaunch {
  const uint8_t* marks;  // kTrained where a parameter is trained; elsewhere gradients are zero
  const float* running;  // what becomes of those that are kTracked in a step
  const float* gradients;
  float* weights;
  float* momenta;        // null: none
  float* gradient_sums;  // null: not wanted
  int64_t numbers;
  int32_t lanes;
  // The minibatch's results, and what is recorded of them: [lanes, steps], this being step `step`.
  const float* loss;       // [lanes, images]
  const uint8_t* correct;  // [lanes, images]
  int32_t images;
  double* loss_record;
  int64_t* correct_record;
  double* gradient_l1;
  double* gradient_sum_l1;  // null where sums are not wanted
  const double* lr;
  int32_t steps, step;
  int32_t first_step;    // number of step 0, for those that stop
  int32_t* diverged_at;  // [lanes] step in which a lane stopped, -1: it has not
  double* partial;       // [lanes][kSgdParts][2] scratch
  SgdState* states;      // [lanes] scratch
  double clip;           // largest norm of a gradient; 0: any
  float momentum, weight_decay;
  int32_t is_nesterov;
};

// Running statistics of a batch norm, moved towards the minibatch's.
struct StatisticsRow {
  const double* statistics;  // [3][depth] mean, 1 / deviation, variance
  float* mean;               // [channels]
  float* variance;           // [channels]
  const float* bias;         // [channels] that results lack; null: none
  int32_t channels, lane;
  double count;     // numbers of a channel
  double momentum;  // weight of the new statistics
};

// Records the step and decides which lanes take it: a lane whose loss or gradient is not finite
// stops. launch_updates() then takes it; running statistics move in between.
cudaError_t launch_measure(const SgdLaunch& launch, cudaStream_t stream);
// The same of one lane that is several paths: records are of the step, [paths], and hold what each
// path came to. Behind the first that is not finite they are made NaN and 0; the step is not taken
// then.
cudaError_t launch_measure_paths(const SgdLaunch& launch, int32_t paths, cudaStream_t stream);
// `states` null: all lanes take the step. Rows of one call are of different batch norms.
cudaError_t launch_statistics(const StatisticsRow* rows, int32_t num_rows, const SgdState* states,
                              cudaStream_t stream);
cudaError_t launch_updates(const SgdLaunch& launch, cudaStream_t stream);

}  // namespace nasfast::kernels::cuda
