// SPDX-License-Identifier: MIT
// The mixed operation of one edge as two passes: one feeds every candidate, one sums them. All
// devices run the same ones.
#pragma once

#include <cstdint>
#include <vector>

#include "program/reverse.h"
#include "program/schedule.h"

namespace nasfast {

enum class Candidate : int32_t { kZero, kIdentity, kConv, kAvgPool, kMaxPool };  // as spaces.OpKind

// Candidates of stride 1 between equal numbers of channels. `parameters` holds those of every
// convolution in turn: weight [channels, channels, kernel, kernel], bias, gamma and beta [channels]
// each; which there are, `has_bias` and `has_affine` say.
struct MixedCandidates {
  struct One {
    Candidate kind;
    int32_t kernel;
    bool has_bias, has_affine;
  };
  std::vector<One> all;
  int32_t channels;

  int64_t num_parameters() const;
  int32_t num_convolutions() const;
};

struct MixedSchedule {
  enum Tensor : int32_t { kInput, kOut, kFirst };
  enum Pass : int32_t { kFeed, kSum, kReader };  // the reader stands for whoever takes the result

  Schedule schedule;        // without the reader; its norms are those of the convolutions, in order
  std::vector<Unit> units;  // of the convolutions, in order; offsets among the parameters

  // Throws std::invalid_argument where there are more parameters than offsets reach.
  explicit MixedSchedule(const MixedCandidates& candidates);

  // `wants_x`: whether the gradient of the input is wanted, as that of the feeding pass.
  Reverse reverse(bool wants_x) const;
};

}  // namespace nasfast
