// SPDX-License-Identifier: MIT
#include "engine/relu_conv_bn.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/batch.h"
#include "engine/convolution.h"
#include "engine/memory.h"
#include "engine/transpose.h"

namespace nasfast {

using namespace kernels::cpu;

namespace {

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float relu(float x) { return x <= 0.0f ? 0.0f : x; }  // NaN stays

class ReluConvBn {
 public:
  ReluConvBn(const ReluConvBnParams& params, Isa isa)
      : p_(params),
        kernels_(kernels_of(isa, params.is_bfloat16 ? Precision::kBf16 : Precision::kFp32)),
        value_(params.is_bfloat16 ? Storage::kPair : Storage::kFloat),
        out_height_((params.height + params.stride - 1) / params.stride),
        out_width_((params.width + params.stride - 1) / params.stride),
        in_row_(int64_t{params.width} * lines(kernels_.operand, params.in_channels) * kLineBytes),
        out_row_(int64_t{out_width_} * lines(value_, params.out_channels) * kLineBytes),
        batch_(std::vector<int64_t>{params.batch}),
        operands_(batch_.num_blocks() * in_row_ * params.height),
        values_(batch_.num_blocks() * out_row_ * out_height_),
        convolution_(kernels_, params.in_channels, params.out_channels, params.kernel,
                     params.stride, params.width),
        weight_(convolution_.packed_bytes()),
        channel_lines_(int64_t{padded_channels(params.out_channels)} * kBlockImages),
        sums_(batch_.num_blocks() * channel_lines_ *
              int64_t{3 * sizeof(float) + 2 * sizeof(double)}),
        moments_(static_cast<size_t>(batch_.num_blocks())) {
    convolution_.pack_weight(p_.weight, weight_.data());
  }

  void run(const ParallelFor& parallel_for) {
    parallel_for(batch_.num_blocks(), [&](int64_t block) {
      kernels_.enter_thread();
      load(block);
      convolve(block);
      kernels_.leave_thread();
    });
    std::vector<double> mean(static_cast<size_t>(p_.out_channels)), variance(mean.size());
    kernels_.merge({moments_.data(), batch_.images.data(), batch_.num_blocks(), p_.out_channels,
                    int64_t{out_height_} * out_width_, mean.data(), variance.data()});
    std::vector<float> scale(mean.size()), centre(mean.begin(), mean.end());
    for (size_t c = 0; c < mean.size(); ++c) {
      scale[c] = static_cast<float>(1.0 / std::sqrt(variance[c] + p_.eps));
    }
    parallel_for(batch_.num_blocks(),
                 [&](int64_t block) { write(block, scale.data(), centre.data()); });
  }

 private:
  // Lines of operands; images that are not there are zeros.
  void load(int64_t block) {
    std::byte* to = operands_.data() + block * in_row_ * p_.height;
    std::memset(to, 0, static_cast<size_t>(in_row_ * p_.height));
    const bool entries_are_lines = p_.is_bfloat16 == (kernels_.operand == Storage::kPair);
    const bool whole = !p_.is_bfloat16 || (p_.in_channels % 2 == 0 && has_even_strides());
    if (p_.strides[1] == 1 && entries_are_lines && whole) {
      load_channels_last(block, reinterpret_cast<uint32_t*>(to));
    } else {
      load_any(block, to);
    }
  }

  bool has_even_strides() const {
    return p_.strides[0] % 2 == 0 && p_.strides[2] % 2 == 0 && p_.strides[3] % 2 == 0 &&
           reinterpret_cast<uintptr_t>(p_.features) % 4 == 0;
  }

  void load_channels_last(int64_t block, uint32_t* to) const {
    const int64_t per_entry = p_.is_bfloat16 ? 2 : 1;
    const int64_t entries = p_.in_channels / per_entry;
    const auto* features = static_cast<const uint32_t*>(p_.features);
    // A set sign bit: below zero, or NaN, which stays.
    const auto relu_float = [](auto bits) {
      return (bits >> 31) != 0 && (bits & 0x7fffffffu) <= 0x7f800000u ? bits & 0u : bits;
    };
    const auto relu_pair = [](auto bits) {
      const auto high =
          (bits >> 31) != 0 && (bits & 0x7fff0000u) <= 0x7f800000u ? bits & 0x0000ffffu : bits;
      return (bits & 0x8000u) != 0 && (bits & 0x7fffu) <= 0x7f80u ? high & 0xffff0000u : high;
    };
    for (int32_t y = 0; y < p_.height; ++y) {
      for (int32_t x = 0; x < p_.width; ++x, to += entries * kBlockImages) {
        const int64_t from =
            (block * kBlockImages * p_.strides[0] + y * p_.strides[2] + x * p_.strides[3]) /
            per_entry;
        const int32_t images = batch_.images[static_cast<size_t>(block)];
        if (p_.is_bfloat16) {
          rows_to_lines(features + from, p_.strides[0] / 2, images, entries, to, relu_pair,
                        relu_pair);
        } else {
          rows_to_lines(features + from, p_.strides[0], images, entries, to, relu_float,
                        relu_float);
        }
      }
    }
  }

  // Features of any strides.
  void load_any(int64_t block, std::byte* to) const {
    const int64_t pixel = in_row_ / p_.width;
    const bool pairs = kernels_.operand == Storage::kPair;
    for (int32_t y = 0; y < p_.height; ++y) {
      for (int32_t x = 0; x < p_.width; ++x, to += pixel) {
        for (int32_t i = 0; i < batch_.images[static_cast<size_t>(block)]; ++i) {
          const int64_t from =
              (block * kBlockImages + i) * p_.strides[0] + y * p_.strides[2] + x * p_.strides[3];
          for (int32_t c = 0; c < p_.in_channels; ++c) {
            const float feature = relu(read(from + c * p_.strides[1]));
            if (pairs) {
              auto* line = reinterpret_cast<uint16_t*>(to) + c / 2 * 2 * kBlockImages;
              line[2 * i + c % 2] = to_bfloat16(feature);
            } else {
              reinterpret_cast<float*>(to)[c * kBlockImages + i] = feature;
            }
          }
        }
      }
    }
  }

  float read(int64_t index) const {
    return p_.is_bfloat16 ? from_bfloat16(static_cast<const uint16_t*>(p_.features)[index])
                          : static_cast<const float*>(p_.features)[index];
  }

  void convolve(int64_t block) {
    Moments& m = moments_[static_cast<size_t>(block)];
    const int64_t bytes = sums_.size() / batch_.num_blocks();
    m.total = sums_.at<double>(block * bytes);
    m.total_square = m.total + channel_lines_;
    m.pilot = reinterpret_cast<float*>(m.total_square + channel_lines_);
    m.sum = m.pilot + channel_lines_;
    m.square = m.sum + channel_lines_;
    std::memset(m.total, 0, static_cast<size_t>(bytes));
    std::vector<const void*> rows(static_cast<size_t>(p_.kernel) + 1);
    const Memory scratch(convolution_.scratch_bytes());
    const std::byte* from = operands_.data() + block * in_row_ * p_.height;
    std::byte* to = values_.data() + block * out_height_ * out_row_;
    const int32_t at_once = convolution_.rows_at_once();
    for (int32_t y = 0; y < out_height_; y += at_once, to += at_once * out_row_) {
      for (int32_t k = 0; k < p_.kernel + at_once - 1; ++k) {
        const int32_t source = y * p_.stride + k - p_.kernel / 2;
        const bool exists = source >= 0 && source < p_.height;
        rows[static_cast<size_t>(k)] = exists ? from + source * in_row_ : nullptr;
      }
      const bool has_below = at_once == 2 && y + 1 < out_height_;
      convolution_.run({rows.data(), weight_.data(), to, &m, p_.width, out_width_, p_.in_channels,
                        p_.out_channels, p_.kernel, p_.stride, y == 0,
                        has_below ? to + out_row_ : nullptr, scratch.data()});
      kernels_.flush(m, p_.out_channels);
    }
  }

  void write(int64_t block, const float* scale, const float* centre) const {
    const std::byte* from = values_.data() + block * out_height_ * out_row_;
    const int64_t pixel = out_row_ / out_width_;
    const int64_t pixels = int64_t{out_height_} * out_width_;
    const int32_t images = batch_.images[static_cast<size_t>(block)];
    const int64_t first = block * kBlockImages * pixels * p_.out_channels;
    std::vector<uint32_t> lines(static_cast<size_t>(pixel) / sizeof(uint32_t));
    for (int64_t at = 0; at < pixels; ++at, from += pixel) {
      normalise(from, scale, centre, lines.data());
      const int64_t to = first + at * p_.out_channels, stride = pixels * p_.out_channels;
      if (!p_.is_bfloat16) {
        lines_to_rows(lines.data(), p_.out_channels, images, static_cast<uint32_t*>(p_.out) + to,
                      stride);
      } else if (p_.out_channels % 2 == 0) {
        lines_to_rows(lines.data(), p_.out_channels / 2, images,
                      static_cast<uint32_t*>(p_.out) + to / 2, stride / 2);
      } else {
        for (int32_t i = 0; i < images; ++i) {
          for (int32_t c = 0; c < p_.out_channels; ++c) {
            const uint32_t pair = lines[static_cast<size_t>(c / 2 * kBlockImages + i)];
            static_cast<uint16_t*>(p_.out)[to + i * stride + c] =
                static_cast<uint16_t>(c % 2 == 0 ? pair : pair >> 16);
          }
        }
      }
    }
  }

  // Lines of one pixel, normalised, in the storage of the result.
  void normalise(const std::byte* from, const float* scale, const float* centre,
                 uint32_t* lines) const {
    for (int32_t c = 0; c < p_.out_channels; c += p_.is_bfloat16 ? 2 : 1) {
      const std::byte* line = from + (p_.is_bfloat16 ? c / 2 : c) * kLineBytes;
      uint32_t entries[kBlockImages];
      std::memcpy(entries, line, sizeof entries);
      for (uint32_t& entry : entries) {
        if (p_.is_bfloat16) {
          const bool has_odd = c + 1 < p_.out_channels;
          const float low = from_bfloat16(static_cast<uint16_t>(entry));
          const float high = from_bfloat16(static_cast<uint16_t>(entry >> 16));
          const float odd = has_odd ? (high - centre[c + 1]) * scale[c + 1] : 0.0f;
          entry = to_bfloat16((low - centre[c]) * scale[c]) |
                  (static_cast<uint32_t>(to_bfloat16(odd)) << 16);
        } else {
          float x;
          std::memcpy(&x, &entry, sizeof x);
          x = (x - centre[c]) * scale[c];
          std::memcpy(&entry, &x, sizeof x);
        }
      }
      std::memcpy(lines, entries, sizeof entries);
      lines += kBlockImages;
    }
  }

  const ReluConvBnParams& p_;
  const Kernels& kernels_;
  const Storage value_;
  const int32_t out_height_, out_width_;
  const int64_t in_row_, out_row_;  // bytes
  const Batch batch_;
  const Memory operands_, values_;
  const Convolution convolution_;
  const Memory weight_;
  const int64_t channel_lines_;
  const Memory sums_;
  std::vector<Moments> moments_;
};

}  // namespace

void relu_conv_bn(const ReluConvBnParams& params, Isa isa, const ParallelFor& parallel_for) {
  ReluConvBn(params, isa).run(parallel_for);
}

}  // namespace nasfast
