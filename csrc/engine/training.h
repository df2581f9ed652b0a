// SPDX-License-Identifier: MIT
// Training on the CPU: many lanes with private weights, or one supernet path after path.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "engine/engine.h"

namespace nasfast {

struct Sgd {
  double momentum = 0;
  bool nesterov = false;
  double weight_decay = 0;
  double clip = 0;  // largest norm of the gradient, 0: any
};

// What a step leaves behind; null: not wanted. [lanes, steps] of the call.
struct StepRecords {
  double* loss = nullptr;             // before the step, mean of the minibatch
  int64_t* correct = nullptr;         // before the step, images of the minibatch
  double* gradient_l1 = nullptr;      // sum of absolute values, before clip and decay
  double* gradient_sum_l1 = nullptr;  // the same of the sum of all gradients so far
};

// Weights that are trained, and what goes with them; all but the first may be null.
struct TrainedWeights {
  float* weights = nullptr;       // [rows, arena_size]
  float* momentum = nullptr;      // [rows, arena_size]
  float* gradient_sum = nullptr;  // [rows, arena_size]
};

// One SGD step for every lane of a chunk and every minibatch, each lane with its own row of
// weights. Statistics are those of the minibatch; running ones are updated. A lane whose loss or
// gradient is not finite stops there: `diverged_at` [lanes] becomes `first_step` + the step, the
// loss is recorded as it came, later ones are NaN. Lanes that stopped before are left alone.
//
// A lane's bits depend on nothing but itself, its minibatches and its learning rates.
//
// Throws as run_chunk.
void train_lanes(const ProgramTable& table, int32_t chunk, const TrainedWeights& trained,
                 const Images& images, const int64_t* labels, const double* lr /*[lanes, steps]*/,
                 const Sgd& sgd, const RunOptions& options, int32_t first_step,
                 int32_t* diverged_at, const StepRecords& records);

// One SGD step for every minibatch on one row of weights: the gradients of `paths` lanes are added,
// step s taking lanes[s * paths...]. Records are [steps * paths]. Returns the number of steps
// taken: fewer than there are minibatches when a loss or a gradient was not finite; the weights are
// then those before that step, whose losses are recorded.
int64_t train_paths(const ProgramTable& table, std::span<const int64_t> lanes, int64_t paths,
                    const TrainedWeights& trained, const Images& images, const int64_t* labels,
                    double lr, const Sgd& sgd, const RunOptions& options,
                    const StepRecords& records);

// Logits of one lane in training mode, and gradients: of the mean cross-entropy where there are
// labels, else of the sum of logits times `logit_gradient`. Neither: logits alone.
struct GradientResults {
  float* logits = nullptr;           // [images, classes]
  float* gradient = nullptr;         // [arena_size]; parameters that are not used become zero
  float* mixing_gradient = nullptr;  // [cells, mixing width of the table]; or null
  float* running = nullptr;          // arena whose running statistics are updated; or null
};
void program_gradients(const ProgramTable& table, int32_t lane, const float* arena,
                       const Images& images, const int64_t* labels, const float* logit_gradient,
                       const float* mixing, const RunOptions& options,
                       const GradientResults& results);

}  // namespace nasfast
