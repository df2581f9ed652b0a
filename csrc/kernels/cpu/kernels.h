// SPDX-License-Identifier: MIT
// The kernels of the CPU engine: one prototype each, one table of them for every instruction set.
//
// Layout. A *block* is 16 images, a *line* is the 16 images' numbers at one pixel: of one channel
// (float32, `Storage::kFloat`) or of two neighbouring channels as pairs of bfloat16
// (`Storage::kPair`, the even channel in the low half). A line is 64 bytes and 64-byte aligned. A
// value is [block][y][x][line], without a halo; an odd number of channels leaves the high halves of
// the last line zero. Images that a batch lacks to whole blocks are computed like others and read
// by nobody: images never mix but in the statistics, which leave them out.
//
// So every channel count and image size is exact, borders are taps that are left out, per-channel
// numbers are scalars, and statistics are plain vertical sums. A value in memory is kFloat in
// precision fp32 and kPair in bf16. Operands of convolutions are kFloat, or kPair where the
// instruction set has a bfloat16 dot product; in bf16 they are rounded to bfloat16 either way.
//
// Kernels work on one row of a block at a time, allocate nothing and throw nothing. The order of
// every sum is fixed by the shape alone.
#pragma once

#include <cstdint>

namespace nasfast::kernels::cpu {

constexpr int32_t kBlockImages = 16;
constexpr int32_t kLineBytes = 64;
constexpr int32_t kChannelGroup = 4;  // output channels that a convolution computes together

enum class Storage : int32_t { kFloat, kPair };
enum class Precision : int32_t { kFp32, kBf16 };

// Lines of one pixel.
constexpr int32_t lines(Storage storage, int32_t channels) {
  return storage == Storage::kPair ? (channels + 1) / 2 : channels;
}
constexpr int32_t padded_channels(int32_t channels) {
  return (channels + kChannelGroup - 1) / kChannelGroup * kChannelGroup;
}

// One summand of a combination.
struct Term {
  const void* row;     // [width, lines] in the storage of values
  const float* scale;  // [padded_channels]
};

// raw = shift + term * scale + ..., left to right; operand = max(raw, 0), or raw itself.
struct CombineRow {
  const Term* terms;
  const float* shift;  // [padded_channels] of all terms together
  int32_t num_terms;
  int32_t width;
  int32_t channels;
  void* raw;      // [width, lines] in the storage of values, or null; may be the row of a term
  void* operand;  // [width, lines] in the storage of operands, or null
  bool is_linear = false;  // no maximum; only where `raw` is null
};

// One summand of a combination of ranges: channel from + i of a row of its own number of channels,
// as z = value * scale + shift, is added to channel to + i of the result, for every i < count.
struct RangedTerm {
  const void* row;     // [width, lines(channels)] in the storage of values
  const float* scale;  // by the row's channel; [from, from + count) is all that is read
  const float* shift;  // as `scale`; null: 0
  int32_t channels;    // of `row`
  int32_t from, to, count;
  bool rectified = false;  // max(z, 0) is added
};

// raw = shift + the terms that cover a channel, in their order; operand = max(raw, 0), or raw
// itself. A channel that no term covers is its shift alone.
//
// With masked terms, which is how a gradient goes back through a term that was rectified:
//   raw = [z > 0] * (terms[0] + ... + terms[num_masked - 1]) + shift + the other terms,
//   z = value * scale + shift of `mask`.
struct CombineRangedRow {
  const RangedTerm* terms;
  int32_t num_terms;
  int32_t width;
  int32_t channels;
  const float* shift;  // [padded_channels] of all terms together; null: 0
  // [width, lines] in the storage of values, or null; may be the row of a term, or of the mask,
  // with from = to = 0 and as many channels if no other term reads it
  void* raw;
  void* operand;           // [width, lines] in the storage of operands, or null
  bool is_linear = false;  // operand = raw, beside a `raw` too
  int32_t num_masked = 0;  // the first terms; not rectified
  RangedTerm mask = {};    // covers every channel: from = to = 0; read with masked terms only
};

// Sums over the pixels of one block, separately for each of its images, of x - pilot and
// (x - pilot)^2, where the pilot is the block's first pixel: a mean far from zero then costs no
// digits. Of what is stored, rounded as it is: a constant channel then has no variance. The float
// sums of a few rows are moved into the double ones by `flush`.
struct Moments {
  float* pilot;          // [padded_channels, 16]
  float* sum;            // [padded_channels, 16]
  float* square;         // [padded_channels, 16]
  double* total;         // [padded_channels, 16]
  double* total_square;  // [padded_channels, 16]
};

// out[x] = sum over taps and input channels of weight * rows[tap_y][x * stride + tap_x - kernel /
// 2]
struct ConvRow {
  const void* const* rows;  // [kernel] each [in_width, lines] of operands; null outside the image
  const void* weight;       // as `pack_weight` makes it
  void* out;                // [out_width, lines] in the storage of values
  const Moments* moments;   // null: not wanted
  int32_t in_width;
  int32_t out_width;  // (in_width + stride - 1) / stride
  int32_t in_channels;
  int32_t out_channels;
  int32_t kernel;  // odd
  int32_t stride;  // 1 or 2
  bool is_first;   // first row of the block: it gives the pilot
  // Of PairKernels only; `rows` then has one more, the row below the window of the first result.
  void* out_below = nullptr;  // the next row of results; null: there is none
  void* scratch = nullptr;    // scratch_bytes
};

// out[x] = mean or maximum over the window of what lies inside the image. Maxima keep NaN.
struct PoolRow {
  const void* const* rows;  // [kernel] each [width, lines] of values; null outside the image
  void* out;                // [width, lines] of values
  int32_t width;
  int32_t channels;
  int32_t kernel;  // odd
};

// out[x] = mean of 2x2 pixels, of those that are there.
struct HalveRow {
  const void* rows[2];  // each [in_width, lines] of values; the second null outside the image
  void* out;            // [(in_width + 1) / 2, lines] of operands; no ReLU
  int32_t in_width;
  int32_t channels;
};

// out[x] = maximum of the pixels in columns 2 * x - pad and 2 * x - pad + 1 of both rows, of those
// that are there. Maxima keep NaN.
struct MaxHalveRow {
  const void* rows[2];  // each [in_width, lines] of values; null outside the image, but not both
  void* out;            // [out_width, lines] of values
  int32_t in_width;
  int32_t out_width;  // in_width / 2 + 1 with a pad, else (in_width + 1) / 2
  int32_t channels;
  int32_t pad;  // 0 or 1
};

// Statistics of a row of values, or sums of max(row * scale + shift, 0) over its pixels.
struct ReduceRow {
  const void* row;  // [width, lines] of values
  int32_t width;
  int32_t channels;
  const float* scale;      // [padded_channels]; of `accumulate` only
  const float* shift;      // [padded_channels]; of `accumulate` only
  const Moments* moments;  // of `measure` only
  double* sums;            // [padded_channels, 16]; of `accumulate` only, added to
  bool is_first;           // as in ConvRow
  bool is_linear = false;  // no maximum; of `accumulate` only
};

// Mean and biased variance of each channel over the blocks of a minibatch, merged in their order.
struct MergeMoments {
  const Moments* blocks;  // [num_blocks]
  const int32_t* images;  // [num_blocks] in each block
  int32_t num_blocks;
  int32_t channels;
  int64_t pixels;    // of one image
  double* mean;      // [channels]
  double* variance;  // [channels]
};

// Another way to convolve, two rows of results at a time, for the shapes it applies to.
struct PairKernels {
  bool (*applies)(int32_t in, int32_t out, int32_t kernel, int32_t stride, int32_t width);
  void (*convolve)(const ConvRow&);
  int64_t (*packed_bytes)(int32_t in, int32_t out);
  void (*pack_weight)(const float* weight, int32_t in, int32_t out, void* packed);
  int64_t (*scratch_bytes)(int32_t in, int32_t out);
};

struct GradientKernels;  // gradients.h

// One precision of one instruction set.
struct Kernels {
  Storage operand;  // storage of convolution operands
  void (*combine)(const CombineRow&);
  void (*convolve)(const ConvRow&);
  void (*avg_pool)(const PoolRow&);
  void (*max_pool)(const PoolRow&);
  void (*halve)(const HalveRow&);
  void (*measure)(const ReduceRow&);
  void (*accumulate)(const ReduceRow&);
  void (*flush)(const Moments&, int32_t channels);
  void (*merge)(const MergeMoments&);
  // Images of a block, [count, channels, height, width] and count <= 16, as operands [y][x][line];
  // absent images are zeros.
  void (*load_images)(const float* images, int32_t count, int32_t channels, int32_t height,
                      int32_t width, void* out);
  // Bytes of a packed weight, and the packing of [out, in, kernel, kernel] float32.
  int64_t (*packed_bytes)(int32_t in, int32_t out, int32_t kernel);
  void (*pack_weight)(const float* weight, int32_t in, int32_t out, int32_t kernel, void* packed);
  // Called by every thread around its use of the kernels (AMX tiles are configured by thread).
  void (*enter_thread)();
  void (*leave_thread)();
  const PairKernels* pairs;  // null: none
  const GradientKernels* gradients;
  void (*combine_ranged)(const CombineRangedRow&);
  void (*max_halve)(const MaxHalveRow&);

  // The other way for a shape, null where `convolve` is to be used.
  const PairKernels* pairs_for(int32_t in, int32_t out, int32_t kernel, int32_t stride,
                               int32_t width) const {
    return pairs != nullptr && pairs->applies(in, out, kernel, stride, width) ? pairs : nullptr;
  }
};

}  // namespace nasfast::kernels::cpu
