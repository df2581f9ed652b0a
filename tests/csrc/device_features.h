// SPDX-License-Identifier: MIT
// Tensors of features as other people's code has them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "kernel_rows.h"
#include "kernels/cuda/features.h"

namespace device_features {

using kernel_rows::Random;
using nasfast::kernels::cuda::FeatureTensor;
using nasfast::kernels::cuda::Precision;

// How features lie in memory.
enum class Layout { kPlain, kLast, kApart };

// [B, C, H, W] numbers in memory of exactly their size.
class Features {
 public:
  Features(Precision precision, Layout layout, int32_t batch, int32_t channels, int32_t height,
           int32_t width)
      : precision_(precision), sizes_{batch, channels, height, width} {
    const int64_t b = batch, c = channels, h = height, w = width;
    if (layout == Layout::kPlain) set_strides({c * h * w, h * w, w, 1});
    if (layout == Layout::kLast) set_strides({h * w * c, 1, w * c, c});
    if (layout == Layout::kApart) set_strides({2, 3 * w * h * 2 * b, -2 * b, 2 * b * h});
    int64_t end = 1;
    for (int32_t d = 0; d < 4; ++d) {
      const int64_t reach = (sizes_[d] - 1) * strides_[d];
      (reach < 0 ? begin_ : end) += reach < 0 ? -reach : reach;
    }
    memory_.assign(static_cast<size_t>((begin_ + end) * bytes()), std::byte{0xFF});
  }

  void set(const std::vector<double>& numbers) {
    visit([&](int64_t at, size_t i) { write(at, numbers[i]); });
  }
  std::vector<double> get() const {
    std::vector<double> numbers(static_cast<size_t>(sizes_[0]) * sizes_[1] * sizes_[2] * sizes_[3]);
    visit([&](int64_t at, size_t i) { numbers[i] = read(at); });
    return numbers;
  }
  FeatureTensor tensor() const {
    return {memory_.data() + begin_ * bytes(),
            {strides_[0], strides_[1], strides_[2], strides_[3]}};
  }
  void* data() { return memory_.data(); }
  bool operator==(const Features& other) const { return memory_ == other.memory_; }

 private:
  void set_strides(std::initializer_list<int64_t> strides) {
    std::copy(strides.begin(), strides.end(), strides_);
  }
  int64_t bytes() const { return precision_ == Precision::kBf16 ? 2 : 4; }
  template <typename Visit>
  void visit(const Visit& each) const {
    size_t i = 0;
    for (int32_t n = 0; n < sizes_[0]; ++n) {
      for (int32_t c = 0; c < sizes_[1]; ++c) {
        for (int32_t y = 0; y < sizes_[2]; ++y) {
          for (int32_t x = 0; x < sizes_[3]; ++x) {
            each(begin_ + n * strides_[0] + c * strides_[1] + y * strides_[2] + x * strides_[3],
                 i++);
          }
        }
      }
    }
  }
  void write(int64_t at, double number) {
    const auto wide = static_cast<float>(number);
    const auto* from = reinterpret_cast<const std::byte*>(&wide) + (4 - bytes());
    std::memcpy(memory_.data() + at * bytes(), from, static_cast<size_t>(bytes()));
  }
  double read(int64_t at) const {
    float wide = 0;
    std::memcpy(reinterpret_cast<std::byte*>(&wide) + (4 - bytes()), memory_.data() + at * bytes(),
                static_cast<size_t>(bytes()));
    return wide;
  }

  Precision precision_;
  int32_t sizes_[4];
  int64_t strides_[4] = {}, begin_ = 0;
  std::vector<std::byte> memory_;
};

inline std::vector<double> random_numbers(int64_t count, uint64_t seed, Precision precision) {
  Random random(seed);
  std::vector<double> numbers(static_cast<size_t>(count));
  for (double& number : numbers) {
    number = precision == Precision::kBf16 ? kernel_rows::bfloat16(random.uniform())
                                           : static_cast<float>(random.uniform());
  }
  return numbers;
}

}  // namespace device_features
