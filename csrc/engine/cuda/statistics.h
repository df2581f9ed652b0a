// SPDX-License-Identifier: MIT
// Running statistics that move with the minibatches of training.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/cuda/training_placement.h"
#include "kernels/cuda/sgd.h"
#include "program/program_table.h"

namespace nasfast::cuda {

// A row for every batch norm that tracks them, lane after lane. `memory`: that the placement is of;
// `running`: what is updated, laid out like the weights of the lanes. Null where only the number of
// rows is wanted.
std::vector<kernels::cuda::StatisticsRow> statistics_rows(const ProgramTable& table,
                                                          const TrainingPlacement& placement,
                                                          int32_t images, const std::byte* memory,
                                                          float* running);

}  // namespace nasfast::cuda
