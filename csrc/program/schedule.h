// SPDX-License-Identifier: MIT
// From a lane of a program table to the passes that a backend runs.
//
// A pass reads one value once and feeds everything that consumes it: its terms are normalised and
// summed, the sum goes to the convolutions (through a ReLU), pools and so on that read it, and is
// kept where a later pass needs it again. Sums are therefore not instructions of their own, and a
// convolution's result is stored raw: whoever reads it normalises it. Between two passes lies the
// only barrier there is, that of the batch statistics.
//
// What a schedule says depends on its lane alone: a lane computes the same whatever it is run with.
#pragma once

#include <cstdint>
#include <vector>

#include "program/program_table.h"

namespace nasfast {

enum class Part : int32_t { kCells, kFixed, kLast };  // of a network, for batch-norm modes

enum class Use : int32_t {
  kConv,      // ReLU, convolution; `out` is raw, normalised by `norm`
  kAvgPool,   // `out` is a value
  kMaxPool,   // `out` is a value
  kShortcut,  // 2x2 mean, then a 1x1 convolution: `out` is a value
  kMeasure,   // statistics alone, for `norm`
  kClassify   // batch norm `norm`, ReLU, mean over the image, classifier
};

// What is kept in memory: values, and raw results of convolutions.
struct StoredTensor {
  int32_t halvings = 0;  // of the image
  int32_t channels = 0;
  int32_t norm = -1;      // the batch norm that makes it a value; -1: it is one
  int32_t external = -1;  // slot among the chunk's shared tensors, or
  int32_t buffer = -1;    // buffer of the lane
};

struct Norm {
  int32_t unit = 0;
  Part part = Part::kCells;
  int32_t channels = 0;
};

struct Consumer {
  Use use;
  int32_t unit = -1;  // of convolution, shortcut, classifier
  int32_t kernel = 1;
  int32_t stride = 1;
  int32_t out = -1;  // tensor
  int32_t norm = -1;
};

// A summand of a pass: a tensor, in training also with a mixing weight.
struct PassTerm {
  int32_t tensor = 0;
  int32_t weight = -1;  // index among the mixing weights of all cells; -1: none
};

struct Pass {
  bool reads_images = false;  // the stem: no terms, and no ReLU before its convolution
  int32_t halvings = 0;
  int32_t channels = 0;
  std::vector<PassTerm> terms;  // added left to right
  int32_t kept = -1;            // tensor that the sum is stored in
  // A value that is one tensor as it stands is read in place, as the raw input of pools.
  bool in_place = false;
  std::vector<Consumer> consumers;

  bool feeds(Use use) const;
  bool needs_operand() const { return feeds(Use::kConv); }
  bool needs_raw() const;
};

struct Schedule {
  std::vector<Pass> passes;
  std::vector<StoredTensor> tensors;
  std::vector<Norm> norms;
  int32_t num_buffers = 0;
};

// The tensors that the lanes of a chunk share. Slot 0 is the stem's convolution.
struct SharedSchedule {
  Schedule schedule;
  std::vector<int32_t> expressions;   // of each slot; 0, the cell's input, for the stem
  std::vector<int32_t> norm_of_slot;  // -1: a value

  // Slot of an expression of the first cell, or -1.
  int32_t slot_of(int32_t expression) const;
};

SharedSchedule schedule_shared(const ProgramTable& table, int32_t chunk);

// `measures_last` tells whether the head's batch norm needs statistics of its own input.
Schedule schedule_lane(const ProgramTable& table, int32_t network, const SharedSchedule& shared,
                       bool measures_last);

// A lane with nothing shared, stem and all, and every tensor in a buffer of its own: a reverse pass
// needs them again.
Schedule schedule_training(const ProgramTable& table, int32_t network);

}  // namespace nasfast
