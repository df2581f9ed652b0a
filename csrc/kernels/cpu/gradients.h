// SPDX-License-Identifier: MIT
// The kernels of a reverse pass, over the same blocks and lines as those of the way forward
// (kernels.h). Gradients of values are stored like values, gradients of what a convolution puts out
// like operands.
//
// Images that a batch lacks to whole blocks have gradients that nobody reads: sums over images are
// kept image by image or leave them out.
#pragma once

#include "kernels/cpu/kernels.h"

namespace nasfast::kernels::cpu {

// A row added with a factor.
struct WeightedRow {
  const void* row;  // [width, lines] of values
  float weight;
};

// A value that a pass summed, for the sums that its batch norm needs: of its own gradient, which is
// that of the pass, or [value * scale + shift > 0] times it where the term was rectified.
//
// A term may be a range: channel from + i of the term is a summand of channel to + i of the pass,
// for every i < count. Its arrays are by its own channel, and others than those are left alone.
struct GradientTerm {
  const void* row;       // [width, lines] of values
  const float* centre;   // [padded_channels]
  float* dot;            // [padded_channels, 16] sums of gradient * (value - centre), added to
  float* sum = nullptr;  // [padded_channels, 16] sums of its own gradient, added to; null: none
  const float *scale = nullptr, *shift = nullptr;  // [padded_channels]; null: was not rectified
  int32_t channels = 0;                            // of `row`; 0: as the pass, and all of them
  int32_t from = 0, to = 0, count = 0;
};

// Gradient of a pass's value from those of its consumers:
//   out = [operand > 0] * (masked_0 + masked_1 + ...) + weight_0 * plain_0 + ...
// and the sums that its terms' batch norms need, of `out` as it is stored.
struct FinishGradientRow {
  const void* const* masked;  // [num_masked] each [width, lines] of values
  const void* operand;        // what went through the ReLU; null without masked ones
  const WeightedRow* plain;   // [num_plain]
  const GradientTerm* terms;  // [num_terms]
  int32_t num_masked, num_plain, num_terms;
  int32_t width, channels;
  void* out;   // [width, lines] of values
  float* sum;  // [padded_channels, 16] sums of `out`, added to
};

// Gradient of a row of values by pools of stride 1.
struct PoolGradientRow {
  const void* const* rows;    // [kernel] gradients of pooled rows y - kernel / 2...; null outside
  const int32_t* num_rows;    // [kernel] rows in the window of each; of averages only
  const void* const* values;  // [2 * kernel - 1] rows of values; null outside; of maxima only
  void* out;                  // [width, lines] of values
  int32_t width, channels, kernel;
};

// Gradient of a row of values by the mean of 2x2 pixels.
struct HalveGradientRow {
  const void* row;  // [(width + 1) / 2, lines] of values: gradient of the halved row
  void* out;        // [width, lines] of values
  int32_t width, channels;
  int32_t num_rows;  // in the window
};

// Gradient of a row of values by the maximum of 2x2 pixels (MaxHalveRow). A window's goes to its
// first maximum in the order of rows, or to its last NaN, which is what PyTorch does.
struct MaxHalveGradientRow {
  const void* values[2];  // the window's rows, each [width, lines] of values; null outside
  int32_t own;            // which of them this row is
  const void* row;        // [out_width, lines] of values: gradient of the row of maxima
  void* out;              // [width, lines] of values
  int32_t width, channels;
  int32_t pad;  // 0 or 1
};

// Batch norm, ReLU and mean of the head: z = value * scale + shift, its gradient g = [z > 0] * own.
struct HeadGradientRow {
  const void* row;  // [width, lines] of values
  int32_t width, channels;
  const float *scale, *shift;    // [padded_channels]
  const float* centre;           // [padded_channels]
  const float* own;              // [padded_channels, 16]
  float *sum, *dot;              // [padded_channels, 16] of g and g * (value - centre), added to
  const float *of_g, *of_value;  // [padded_channels], with `constant` of the result:
  const float* constant;         // out = g * of_g + value * of_value + constant
  void* out;                     // [width, lines] of values
  bool is_linear = false;        // no ReLU: g = own
};

// Rows of operands, packed for weight gradients: groups of kChannelGroup channels, then rows, then
// steps. A step is a pixel, or two neighbouring ones where operands are pairs of bfloat16.
struct PackRows {
  const void* const* rows;  // [num_rows] each [width, lines] of operands; null: zeros
  void* out;
  int32_t num_rows, width, channels;
  int32_t images;  // of the block; the others become zeros
  // Of inputs only: steps begin kernel / 2 pixels to the left of the image.
  int32_t kernel, stride, out_width;
};

// sums += gradient * input over a band of rows and all images.
struct WeightGradientBand {
  const void* gradient;  // of `pack_gradient`
  const void* input;     // of `pack_input`, kernel input_kernel, (num_rows - 1) * stride + kernel
                         // rows
  float* sums;           // [padded(out) / 4][padded(in) / 4][kernel * kernel][4][4]
  int32_t num_rows, width;  // of the gradient
  int32_t in_width;
  int32_t in_channels, out_channels;
  int32_t kernel;        // of this convolution, at most input_kernel
  int32_t input_kernel;  // that `input` was packed for
  int32_t stride;
};

struct GradientKernels {
  void (*finish)(const FinishGradientRow&);
  void (*avg_pool)(const PoolGradientRow&);
  void (*max_pool)(const PoolGradientRow&);
  void (*halve)(const HalveGradientRow&);
  void (*head_sums)(const HeadGradientRow&);
  void (*head)(const HeadGradientRow&);
  // Moves float sums [padded_channels, 16] into double ones and clears them.
  void (*flush)(float* from, double* to, int32_t channels);
  int64_t (*packed_gradient_bytes)(int32_t rows, int32_t width, int32_t channels);
  void (*pack_gradient)(const PackRows&);
  int64_t (*packed_input_bytes)(int32_t rows, int32_t in_width, int32_t out_width, int32_t channels,
                                int32_t kernel);
  void (*pack_input)(const PackRows&);
  void (*weight)(const WeightGradientBand&);
  // Input gradient of a convolution of stride 2. Of ConvRow: rows[dy] is the row of gradients that
  // tap dy of a window took this row to, null: none; in_* are of the gradient, out_* of the result;
  // no statistics.
  void (*convolve_transposed)(const ConvRow&);
  // Packing of [in of convolve_transposed's result...]: as Kernels' own, never in tiles.
  int64_t (*packed_bytes)(int32_t in, int32_t out, int32_t kernel);
  void (*pack_weight)(const float* weight, int32_t in, int32_t out, int32_t kernel, void* packed);
  int32_t step_pixels;  // pixels of a step
  void (*max_halve)(const MaxHalveGradientRow&);
};

}  // namespace nasfast::kernels::cpu
