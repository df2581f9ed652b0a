// SPDX-License-Identifier: MIT
// What launches of the way back are told; see descriptors.h.
//
// The gradient of a pass is that of the value it sums. That of a stored result is made of the
// gradients of the passes that read it, and stored nowhere: with g the sum of those, by mixing
// weight, and z = (y - mean) * factor + beta,
//   dy = factor * (g - mean(g) - (y - mean) / deviation * mean(g * (y - mean) / deviation)),
// so whoever needs it combines a * g + b * y + c, channel by channel.
#pragma once

#include "kernels/cuda/descriptors.h"

namespace nasfast::kernels::cuda {

// A pass that reads a result, as one of its terms.
struct ReaderRow {
  const void* gradient;  // of the pass, a value
  const double* sums;    // [2][depth] totals of its term; null: the result has no batch norm
  const float* weight;   // mixing weight; null: 1
  int32_t pitch, depth;  // of the gradient
  int32_t from, count;   // channels of it that are the result's first ones
};

// The gradient of a stored result.
struct ResultRow {
  int32_t first_reader, num_readers;
  const void* value;         // as it is stored; null: no batch norm, and no ReLU
  const float* affine;       // [2][depth] scale, shift
  const double* statistics;  // as in NormRow
  const float* gamma;        // [channels]; null: 1
  float* gamma_gradient;     // [channels]; null: none
  float* beta_gradient;      // [channels]; null: none
  int32_t channels;
  int32_t is_rectified;
  double count;  // numbers of a channel
};

// What a consumer gives to its pass's gradient.
enum class Share : int32_t { kConv, kHalvedConv, kShortcut, kAvgPool, kMaxPool, kMaxHalve };

struct ShareRow {
  Share share;
  int32_t kernel;
  int32_t result;      // row of its result
  const void* weight;  // packed for the way back: taps reversed, inputs as columns; null: none
};

// A classifier's: gradient / pixels where its input, normalised, is positive.
struct HeadShare {
  const float* gradient;     // [images][depth] of the mean over the image; null: no classifier
  const double* sums;        // [2][depth] totals; null: no batch norm
  const float* affine;       // [2][depth]
  const double* statistics;  // as in NormRow
  float* gamma_gradient;     // [channels]; null: none
  float* beta_gradient;      // [channels]; null: none
  const float* gamma;        // [channels]; null: 1
  int32_t is_linear;
};

// Shared memory of a gradient, in bytes from its beginning.
struct GradientLayout {
  int32_t raw;           // [rows with raw_halo][shared_pitch] the pass's sum; -1: not wanted
  int32_t operand;       // [rows with halo][shared_pitch of the widest result] its gradient
  int32_t total;         // [rows][depth + 4] floats, the gradient
  int32_t terms;         // [terms][2][depth] scales and shifts
  int32_t coefficients;  // [3][depth of the widest result]
  int32_t weights;       // as in PassLayout
  int32_t sums;          // [2][max(kThreads, depth)] floats
  int32_t bytes;
};

struct GradientRow {
  int32_t first_term, num_terms;
  int32_t first_share, num_shares;
  int32_t first_reader, num_readers;  // of the value itself, where it is kept
  int32_t channels;
  int32_t is_linear;  // convolutions read the sum itself
  int32_t halo, raw_halo, padding, k_chunk, num_tiles;
  Sides sides;
  Tile tile;
  GradientLayout layout;
  HeadShare head;
  void* gradient;  // out: a value
  // Out: [tiles][terms][2][depth] sums over a tile, by channel of the term, of the gradient (where
  // the term was positive, if it is rectified) and of that times the stored number less its mean.
  float* sums;
};

struct GradientLaunch {
  const GradientRow* rows;
  const TermRow* terms;
  const ShareRow* shares;
  const ResultRow* results;
  const ReaderRow* readers;
  int32_t num_rows;
  int32_t most_tiles, most_bytes;
};

// The way back through a classifier, up to the gradient of the mean over the image.
struct HeadGradientRow {
  int32_t head;            // row of HeadLaunch
  float* features;         // out: [images][depth] means over the image
  float* logits;           // out: [images][classes] gradients
  float* gradient;         // out: [images][depth] of `features`
  float* sums;             // out: [images][2][depth] as GradientRow::sums, before the batch norm
  const double* mean;      // [channels] of the batch norm's statistics; null: none
  float* weight_gradient;  // out: [classes, channels]
  float* bias_gradient;    // out: [classes]; null: none
};

struct HeadGradientLaunch {
  HeadLaunch forward;
  const HeadGradientRow* rows;  // one for each of its heads
  const float* logit_gradient;  // [images, classes]; null: of the mean cross-entropy
};

// Adds up parts in a fixed order: total[k] = partial[0][k] + partial[1][k] + ...
struct SumRow {
  const float* partial;  // [parts][numbers]
  double* total;         // [numbers]
  int32_t parts, numbers;
};

// The gradient of the mixing weight of a term, from the totals of its pass: added to `gradient`.
struct MixingRow {
  const double* sums;  // [2][depth] of the term
  const float* scale;  // [channels] of its batch norm; null: 1
  const float* shift;  // [channels]; null: 0
  const double* mean;  // [channels] that the totals are about; null: 0
  float* gradient;
  int32_t channels, depth;
};

// The gradient of a convolution's weight, cut into parts: part k is of tiles k, k + parts, ...
struct WeightGradientRow {
  int32_t first_term, num_terms;  // of the pass that the convolution reads
  int32_t channels;               // of it
  int32_t is_linear;              // the convolution reads the sum itself
  int32_t is_shortcut;            // it reads means of 2x2 pixels
  int32_t kernel, stride;
  int32_t result;  // row of its result
  int32_t parts, num_tiles;
  int32_t out_channels;
  Sides sides;  // of the pass
  Tile tile;
  float* partial;  // out: [parts][taps][depth_of(out_channels)][depth_of(channels)]
};

struct WeightGradientLaunch {
  const WeightGradientRow* rows;
  const TermRow* terms;
  const ResultRow* results;
  const ReaderRow* readers;
  int32_t num_rows;
  int32_t most_blocks, most_bytes;
};

struct WeightSumRow {
  const float* partial;   // as of WeightGradientRow
  float* gradient;        // out: [out_channels, all_channels, kernel, kernel]
  const int32_t* inputs;  // [in_channels] which inputs these are; null: all
  int32_t parts;
  int32_t in_channels, all_channels, out_channels, kernel;
};

}  // namespace nasfast::kernels::cuda
