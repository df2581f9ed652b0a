// SPDX-License-Identifier: MIT
#include "engine/mixed_schedule.h"

#include <algorithm>
#include <limits>
#include <string>

#include "engine/checks.h"

namespace nasfast {

int64_t MixedCandidates::num_parameters() const {
  int64_t count = 0;
  for (const One& one : all) {
    if (one.kind != Candidate::kConv) continue;
    const int64_t vectors = int64_t{one.has_bias} + 2 * int64_t{one.has_affine};
    count += (int64_t{channels} * one.kernel * one.kernel + vectors) * channels;
  }
  return count;
}

int32_t MixedCandidates::num_convolutions() const {
  return static_cast<int32_t>(std::count_if(
      all.begin(), all.end(), [](const One& one) { return one.kind == Candidate::kConv; }));
}

MixedSchedule::MixedSchedule(const MixedCandidates& candidates) {
  require(candidates.num_parameters() <= std::numeric_limits<int32_t>::max(),
          "params: wanted fewer than 2147483648 numbers, got " +
              std::to_string(candidates.num_parameters()));
  const int32_t channels = candidates.channels;
  auto& tensors = schedule.tensors;
  tensors = {{0, channels, -1, false, 0, -1}, {0, channels, -1, false, 1, -1}};
  schedule.passes.resize(2);
  nasfast::Pass& feed = schedule.passes[kFeed];
  nasfast::Pass& sum = schedule.passes[kSum];
  feed.channels = sum.channels = channels;
  feed.terms = {{kInput, -1, 0, channels}};
  feed.in_place = true;
  sum.kept = kOut;
  int32_t offset = 0;
  const auto take = [&](bool exists, int32_t size) {
    const int32_t begin = exists ? offset : -1;
    offset += exists ? size : 0;
    return begin;
  };
  for (size_t k = 0; k < candidates.all.size(); ++k) {
    const auto [kind, kernel, has_bias, has_affine] = candidates.all[k];
    const auto weight = static_cast<int32_t>(k);
    if (kind == Candidate::kZero) continue;
    if (kind == Candidate::kIdentity) {
      sum.terms.push_back({kInput, weight, 0, channels});
      continue;
    }
    const auto out = static_cast<int32_t>(tensors.size());
    const int32_t buffer = out - kFirst;
    sum.terms.push_back({out, weight, 0, channels});
    if (kind != Candidate::kConv) {
      tensors.push_back({0, channels, -1, false, -1, buffer});
      const Use use = kind == Candidate::kAvgPool ? Use::kAvgPool : Use::kMaxPool;
      feed.consumers.push_back({use, -1, -1, kernel, 1, out, -1});
      continue;
    }
    const auto unit = static_cast<int32_t>(units.size());
    tensors.push_back({0, channels, unit, false, -1, buffer});
    Unit& own = units.emplace_back();
    own.weight = take(true, channels * channels * kernel * kernel);
    own.bias = take(has_bias, channels);
    own.gamma = take(has_affine, channels);
    own.beta = take(has_affine, channels);
    own.mean = own.variance = -1;
    own.kernel = kernel;
    own.in_channels = own.out_channels = channels;
    schedule.norms.push_back({unit, Part::kCells, channels});
    feed.consumers.push_back({Use::kConv, unit, unit, kernel, 1, out, unit});
  }
  schedule.num_buffers = static_cast<int32_t>(tensors.size()) - kFirst;
}

Reverse MixedSchedule::reverse(bool wants_x) const {
  Reverse reverse;
  reverse.readers.resize(schedule.tensors.size());
  reverse.readers[kOut] = {{kReader, 0, -1}};
  const auto& terms = schedule.passes[kSum].terms;
  for (size_t t = 0; t < terms.size(); ++t) {
    reverse.readers[static_cast<size_t>(terms[t].tensor)].push_back(
        {kSum, static_cast<int32_t>(t), terms[t].weight});
  }
  reverse.gradient = {wants_x ? kFeed : -1, kSum, kReader};
  reverse.num_buffers = 3;
  return reverse;
}

}  // namespace nasfast
