// SPDX-License-Identifier: MIT
// Which numbers of an arena a network trains.
#pragma once

#include <cstdint>
#include <vector>

#include "program/program_table.h"
#include "program/reverse.h"
#include "program/schedule.h"

namespace nasfast {

// Neighbouring numbers of an arena.
struct Span {
  int32_t offset, size;
};

// Parameters of a network that get a gradient, in the order of the arena. Throws
// std::invalid_argument where several convolutions have the same weights: a reverse pass writes the
// gradient of a tensor, it does not add to it.
std::vector<Span> trained_spans(const ProgramTable& table, const Schedule& schedule,
                                const Reverse& reverse);

// The spans of several networks together, each once, in the order of the arena.
std::vector<Span> union_of(std::vector<Span> spans);

}  // namespace nasfast
