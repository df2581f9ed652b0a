// SPDX-License-Identifier: MIT
// What a launch is told: rows of tables in device memory. One launch runs a pass of every lane of a
// chunk that has one at this point, so rows carry their own addresses and shapes.
#pragma once

#include <cstdint>

#include "kernels/cuda/layout.h"

namespace nasfast::kernels::cuda {

// A summand of a pass: channels [0, count) of a value, times scale plus shift, all that times the
// mixing weight, are added to channels [to, to + count) of the sum.
struct TermRow {
  const void* data;     // value
  const float* scale;   // [count]; null: 1
  const float* shift;   // [count]; null: 0
  const float* weight;  // mixing weight; null: 1
  const double* mean;   // [count] of a batch norm's statistics; null: none
  int32_t pitch;        // of the value
  int32_t to, count;
  int32_t is_rectified;  // max(., 0) is added
};

enum class Task : int32_t { kConv, kAvgPool, kMaxPool, kShortcut, kMaxHalve, kMeasure };

// What a pass makes of its sum.
struct ConsumerRow {
  Task task;
  int32_t kernel, stride;
  int32_t out_channels;
  void* out;           // value; null: kMeasure
  const void* weight;  // packed, see pack_weights(); null: none
  // [tiles][2][depth_of(out_channels)] mean of each channel over a tile, then the sum of squared
  // deviations from it; null: not wanted.
  float* moments;
};

// Shared memory of a pass, in bytes from its beginning.
struct PassLayout {
  int32_t operand;  // [padded rows][shared_pitch] what convolutions read
  int32_t raw;      // the same of the sum itself; -1: not wanted
  int32_t halved;   // [rows / 4][shared_pitch] means of 2x2 pixels, an operand; -1: not wanted
  int32_t terms;    // [terms][2][depth] scales and shifts by channel of the sum
  int32_t weights;  // [taps][columns][shared_pitch of k_chunk]
  int32_t sums;     // [warps + 1][columns] floats
  int32_t bytes;
};

struct PassRow {
  int32_t first_term, num_terms;
  int32_t first_consumer, num_consumers;
  int32_t channels;
  int32_t is_linear;  // convolutions read the sum itself, without a ReLU
  int32_t halo;       // pixels around a tile that its windows reach
  int32_t padding;    // in front of an image that is halved by maxima
  int32_t k_chunk;    // channels of an operand whose weights are in shared memory at a time
  int32_t num_tiles;
  Sides sides;
  Tile tile;
  PassLayout layout;
  void* kept;  // the sum as a value; null: not wanted
};

struct PassLaunch {
  const PassRow* passes;
  const TermRow* terms;
  const ConsumerRow* consumers;
  int32_t num_passes;
  int32_t most_tiles, most_bytes;  // of a pass
};

// Batch norms to finish: from moments, or from running statistics.
struct NormRow {
  const float* moments;   // as in ConsumerRow; null: running statistics
  const float* mean;      // [channels] of the arena
  const float* variance;  // [channels] of the arena
  const float* bias;      // [channels] of the convolution, that results lack; null: none
  const float* gamma;     // [channels]; null: 1
  const float* beta;      // [channels]; null: 0
  float* affine;          // out: [2][depth_of(channels)] scale, then shift
  // Out: [3][depth_of(channels)] mean, 1 / deviation and variance; null: not wanted.
  double* statistics;
  int32_t channels;
  int32_t num_tiles;
  Tile tile;
  Sides sides;
  double epsilon = 1e-5;  // added to the variance
  // Out: [2][channels] mean and variance in single precision; null: not wanted.
  float* summary;
};

// Classifiers: batch norm and ReLU (or neither), mean over the image, linear, loss.
struct HeadRow {
  int32_t first_term, num_terms;
  const float* scale;   // [channels] of the batch norm; null: none
  const float* shift;   // [channels]
  const float* weight;  // [classes, channels] float32
  const float* bias;    // [classes]; null: none
  int32_t channels, is_linear;
  int32_t result;  // its row of the results
};

struct HeadLaunch {
  const HeadRow* heads;
  const TermRow* terms;
  const int64_t* labels;  // [images of the minibatch]; null: none
  int32_t num_heads, classes;
  int32_t most_channels, most_terms;
  Sides sides;
  // Rows of results are of `num_images` images, of which this minibatch is those from `first_image`
  // on.
  int64_t num_images, first_image;
  float* logits;     // [results, num_images, classes]; null: not wanted
  float* loss;       // [results, num_images]; null: not wanted
  uint8_t* correct;  // [results, num_images]; null: not wanted
};

// A weight [out, in, kernel, kernel] float32, of some of whose inputs only; packed as
// [tap][depth_of(out)][depth_of(in)] numbers of the precision, zeros where there is none.
struct WeightRow {
  const float* weight;
  const int32_t* inputs;  // [in] which input channels; null: all, in order
  void* packed;
  int32_t in_channels;   // that the packed weight has
  int32_t all_channels;  // that the weight has
  int32_t out_channels, kernel;
  // For the way back: taps in reverse, inputs and outputs change places.
  int32_t is_turned;
};

}  // namespace nasfast::kernels::cuda
