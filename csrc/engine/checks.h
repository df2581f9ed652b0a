// SPDX-License-Identifier: MIT
// Checks of what a run is given. They throw std::invalid_argument.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "engine/engine.h"
#include "program/program_table.h"

namespace nasfast {

void require(bool ok, const std::string& message);

void check_threads(const RunOptions& options);
// At least one minibatch, each of a size that we take; `check_sizes` also takes none.
void check_minibatches(const Images& images);
void check_sizes(const Images& images);
// Minibatches that running statistics are defined for, where the table keeps some: more than one
// element a channel. There is at least one minibatch; images have these sides.
void check_running_statistics(const ProgramTable& table, const Images& images, int32_t height,
                              int32_t width);
// Every label names a class of the table.
void check_labels(const ProgramTable& table, const Images& images, const int64_t* labels);

// `lanes` of the table for so many steps, `paths` for each. Throws std::invalid_argument.
void check_paths(const ProgramTable& table, std::span<const int64_t> lanes, int64_t steps,
                 int64_t paths);

}  // namespace nasfast
