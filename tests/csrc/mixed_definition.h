// SPDX-License-Identifier: MIT
// The operators between tensors of features one number at a time, from their words alone, with
// numbers that know their gradients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "engine/mixed_schedule.h"
#include "interpreter.h"
#include "tape.h"

namespace mixed_definition {

using interpreter::for_each;
using nasfast::Candidate;
using nasfast::MixedCandidates;
using tape::Number;
using Map = interpreter::MapOf<Number>;

inline Map relu(Map map) {
  for (Number& number : map.numbers) {
    if (number <= Number(0)) number = Number(0);
  }
  return map;
}

// Of padding kernel / 2.
inline Map convolution(const Map& in, const Number* weight, int32_t channels, int32_t kernel,
                       int32_t stride) {
  Map out(in.images, channels, (in.height + stride - 1) / stride, (in.width + stride - 1) / stride);
  for_each(out, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
    Number sum;
    for (int32_t i = 0; i < in.channels; ++i) {
      for (int32_t tap = 0; tap < kernel * kernel; ++tap) {
        const int32_t from_y = y * stride + tap / kernel - kernel / 2;
        const int32_t from_x = x * stride + tap % kernel - kernel / 2;
        if (!in.has(from_y, from_x)) continue;
        sum += weight[(c * in.channels + i) * kernel * kernel + tap] * in.at(n, i, from_y, from_x);
      }
    }
    out.at(n, c, y, x) = sum;
  });
  return out;
}

// Batch statistics of each channel: mean and biased variance.
inline std::vector<std::pair<Number, Number>> statistics(const Map& map) {
  std::vector<std::pair<Number, Number>> found(static_cast<size_t>(map.channels));
  const double count = static_cast<double>(map.images) * map.height * map.width;
  const auto of = [&](int32_t c) -> auto& { return found[static_cast<size_t>(c)]; };
  for_each(map, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
    of(c).first += map.at(n, c, y, x) / count;
  });
  for_each(map, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
    const Number apart = map.at(n, c, y, x) - of(c).first;
    of(c).second += apart * apart / count;
  });
  return found;
}

// (number - mean) / sqrt(variance + eps).
inline Map normalised(Map map, double eps) {
  const auto measured = statistics(map);
  for_each(map, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
    const auto& [mean, variance] = measured[static_cast<size_t>(c)];
    map.at(n, c, y, x) = (map.at(n, c, y, x) - mean) / sqrt(variance + Number(eps));
  });
  return map;
}

// Of what lies inside the image; of equal ones the first is the maximum.
inline Map pooled(const Map& in, int32_t kernel, bool is_max) {
  Map out(in.images, in.channels, in.height, in.width);
  for_each(out, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
    Number result;
    int32_t count = 0;
    for (int32_t tap = 0; tap < kernel * kernel; ++tap) {
      const int32_t from_y = y + tap / kernel - kernel / 2, from_x = x + tap % kernel - kernel / 2;
      if (!in.has(from_y, from_x)) continue;
      const Number own = in.at(n, c, from_y, from_x);
      if (!is_max) {
        result += own;
      } else if (count == 0 || result < own) {
        result = own;
      }
      ++count;
    }
    out.at(n, c, y, x) = is_max ? result : result / count;
  });
  return out;
}

struct Mixed {
  std::vector<double> out, statistics;  // [B, C, H, W], [convolutions, 2, C]
  std::vector<double> grad_x, grad_weights, grad_params;
};

// The weighted sum of the candidates of `x` [B, C, H, W], and gradients of the sum of it times
// `grad_out`.
inline Mixed mixed_op(const MixedCandidates& candidates, int32_t batch, int32_t height,
                      int32_t width, const std::vector<double>& x,
                      const std::vector<double>& weights, const std::vector<double>& params,
                      const std::vector<double>& grad_out) {
  tape::entries.clear();
  const auto variables = [](const std::vector<double>& values) {
    std::vector<Number> numbers;
    for (const double value : values) numbers.push_back(Number::variable(value));
    return numbers;
  };
  const int32_t channels = candidates.channels;
  Map in(batch, channels, height, width), out = in;
  in.numbers = variables(x);
  const std::vector<Number> factors = variables(weights), parameters = variables(params);
  const Number* next = parameters.data();
  Mixed found;
  for (size_t k = 0; k < candidates.all.size(); ++k) {
    const auto [kind, kernel, has_bias, has_affine] = candidates.all[k];
    if (kind == Candidate::kZero) continue;
    Map value = in;
    if (kind == Candidate::kAvgPool || kind == Candidate::kMaxPool) {
      value = pooled(in, kernel, kind == Candidate::kMaxPool);
    } else if (kind == Candidate::kConv) {
      const Map raw = convolution(relu(in), next, channels, kernel, 1);
      next += int64_t{channels} * channels * kernel * kernel + (has_bias ? channels : 0);
      const auto measured = statistics(raw);
      for (const auto& of : measured) found.statistics.push_back(of.first.value);
      for (const auto& of : measured) found.statistics.push_back(of.second.value);
      value = normalised(raw, 1e-5);
      if (has_affine) {
        for_each(value, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
          Number& own = value.at(n, c, y, x);
          own = own * next[c] + next[channels + c];
        });
        next += 2 * channels;
      }
    }
    for (size_t i = 0; i < out.numbers.size(); ++i) out.numbers[i] += value.numbers[i] * factors[k];
  }
  for (const Number& number : out.numbers) found.out.push_back(number.value);
  const std::vector<double> by = tape::derivatives(out.numbers, grad_out);
  auto at = by.begin();
  for (auto [to, count] :
       {std::pair{&found.grad_x, x.size()}, std::pair{&found.grad_weights, weights.size()},
        std::pair{&found.grad_params, params.size()}}) {
    to->assign(at, at + static_cast<int64_t>(count));
    at += static_cast<int64_t>(count);
  }
  return found;
}

// [B, out, H, W] of `features` [B, in, H, W].
inline std::vector<double> relu_conv_bn(const Map& features, const std::vector<double>& weight,
                                        int32_t out_channels, int32_t kernel, int32_t stride,
                                        double eps) {
  const std::vector<Number> numbers(weight.begin(), weight.end());
  std::vector<double> found;
  const Map raw = convolution(relu(features), numbers.data(), out_channels, kernel, stride);
  for (const Number& number : normalised(raw, eps).numbers) found.push_back(number.value);
  return found;
}

}  // namespace mixed_definition
