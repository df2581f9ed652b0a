// SPDX-License-Identifier: MIT
// From a lane of a program table to the passes that a backend runs.
//
// A pass reads one value once and feeds everything that consumes it: its terms are normalised and
// summed, the sum goes to the convolutions (through a ReLU), pools and so on that read it, and is
// kept where a later pass needs it again. Sums are therefore not instructions of their own, and a
// convolution's result is stored raw: whoever reads it normalises it. Between two passes lies the
// only barrier there is, that of the batch statistics.
//
// Where networks put a ReLU behind the batch norm, every value is a sum of terms that are rectified
// one by one, and nothing is negative: the ReLU in front of a convolution then changes no number.
// A cell's output there lies in slots of which an architecture may leave some free; what is always
// zero is left out of passes and tensors, and of the weights that read them.
//
// What a schedule says depends on its lane alone: a lane computes the same whatever it is run with.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "program/program_table.h"

namespace nasfast {

enum class Part : int32_t { kCells, kFixed, kLast };  // of a network, for batch-norm modes

enum class Use : int32_t {
  kConv,      // ReLU, convolution; `out` is raw, normalised by `norm`
  kAvgPool,   // `out` is a value
  kMaxPool,   // `out` is a value
  kShortcut,  // 2x2 mean, then a 1x1 convolution: `out` is a value
  kMaxHalve,  // maximum over 2x2 windows of stride 2: `out` is a value
  kMeasure,   // statistics alone, for `norm`
  kClassify   // batch norm `norm`, ReLU, mean over the image, classifier
};

// Neighbouring channels.
struct Range {
  int32_t begin = 0, count = 0;
  bool operator==(const Range&) const = default;
  auto operator<=>(const Range&) const = default;
};
using Ranges = std::vector<Range>;

// The weights of units, or parts of them: what a convolution reads whose input has channels that
// are always zero. View u is all of unit u.
class WeightViews {
 public:
  struct View {
    int32_t unit;
    Ranges inputs;  // of the unit's input channels; empty: all
  };
  explicit WeightViews(size_t num_units);
  int32_t of(int32_t unit, const Ranges& inputs);
  const std::vector<View>& all() const { return views_; }

 private:
  std::vector<View> views_;
  std::map<std::pair<int32_t, Ranges>, int32_t> parts_;
};

// What is kept in memory: values, and raw results of convolutions.
struct StoredTensor {
  int32_t halvings = 0;  // of the image
  int32_t channels = 0;
  int32_t norm = -1;          // the batch norm that makes it a value; -1: it is one
  bool is_rectified = false;  // with a ReLU behind that
  int32_t external = -1;      // slot among the chunk's shared tensors, or
  int32_t buffer = -1;        // buffer of the lane
  bool is_wide = false;       // which buffers are meant: those for values wider than the stage
};

// Whether it reads a value itself, as it is or to halve it.
constexpr bool reads_raw(Use use) {
  return use == Use::kMaxPool || use == Use::kShortcut || use == Use::kMaxHalve;
}
constexpr bool is_pool(Use use) {
  return use == Use::kAvgPool || use == Use::kMaxPool || use == Use::kMaxHalve;
}

struct Norm {
  int32_t unit = 0;
  Part part = Part::kCells;
  int32_t channels = 0;
};

struct Consumer {
  Use use;
  int32_t unit = -1;  // of convolution, shortcut, classifier
  int32_t view = -1;  // of its weight, where it convolves
  int32_t kernel = 1;
  int32_t stride = 1;
  int32_t out = -1;  // tensor
  int32_t norm = -1;
  bool is_linear = false;  // a classifier: no ReLU, and batch norm only where there is one
};

// A summand of a pass: a tensor, in training also with a mixing weight. Its first channels, or all,
// are added to channels of the pass from `to` on.
struct PassTerm {
  int32_t tensor = 0;
  int32_t weight = -1;  // index among the mixing weights of all cells; -1: none
  int32_t to = 0;
  int32_t count = 0;
};

struct Pass {
  int32_t position = 0;       // of the network, that it belongs to
  bool reads_images = false;  // the stem: no terms, and no ReLU before its convolution
  int32_t halvings = 0;
  int32_t channels = 0;
  std::vector<PassTerm> terms;  // added left to right
  Ranges inputs;                // channels of its consumers' units that the pass has; empty: all
  bool is_ranged = false;       // some term is rectified, or does not cover all channels
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
  int32_t num_buffers = 0, num_wide_buffers = 0;
};

// The tensors that the lanes of a chunk share. Slot 0 is the stem's convolution.
struct SharedSchedule {
  Schedule schedule;
  std::vector<int32_t> expressions;     // of each slot; 0, the cell's input, for the stem
  std::vector<int32_t> tensor_of_slot;  // among those of the schedule

  const StoredTensor& tensor_of(int32_t slot) const {
    return schedule.tensors[static_cast<size_t>(tensor_of_slot[static_cast<size_t>(slot)])];
  }
  // Slot of an expression of the first cell, or -1.
  int32_t slot_of(int32_t expression) const;
};

// When a buffer may be written again.
enum class Reuse {
  kWithinPass,     // by the pass that reads it last: where a block's rows are read before
  kBetweenPasses,  // by the pass behind that
  kNever           // a reverse pass needs all tensors again
};

SharedSchedule schedule_shared(const ProgramTable& table, int32_t chunk, WeightViews& views);

// `measures_last` tells whether the head's batch norm needs statistics of its own input.
Schedule schedule_lane(const ProgramTable& table, int32_t network, const SharedSchedule& shared,
                       bool measures_last, WeightViews& views, Reuse reuse = Reuse::kWithinPass);

// A lane with nothing shared, stem and all; it rounds as one of a chunk does.
Schedule schedule_alone(const ProgramTable& table, int32_t network, bool measures_last,
                        WeightViews& views, Reuse reuse);

// A lane with nothing shared, and every tensor in a buffer of its own.
Schedule schedule_training(const ProgramTable& table, int32_t network, WeightViews& views);

}  // namespace nasfast
