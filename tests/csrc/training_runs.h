// SPDX-License-Identifier: MIT
// What the tests of training share: tables with whatever a reverse pass may meet, and exact
// gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/training.h"
#include "engine_runs.h"
#include "interpreter.h"
#include "tape.h"

namespace training_runs {

using namespace engine_runs;

// The two stages with three more templates: sums of a sum, of what went into it and of what reads
// it; conv3x3(conv1x1(x)) that nobody reads beside avg_pool(x); and zero. Mixed: the sums are
// mixes, so mixes of mixes among them.
inline Sections stages(const std::vector<int32_t>& channels, bool is_mixed,
                       int32_t alignment = nasfast::kArenaAlignment) {
  using namespace nasfast;
  auto sections = is_mixed ? small_tables::mixed_stages() : small_tables::two_stages();
  const auto append = [&](Section s, const std::vector<int32_t>& numbers) {
    auto& section = sections[static_cast<size_t>(s)];
    section.insert(section.end(), numbers.begin(), numbers.end());
  };
  // 9: 4 + x + conv1x1(x). 10: 9 + max_pool(4) + 4.
  append(kOpcode, {is_mixed ? kMix : kSum, kSum});
  append(kParam, {is_mixed ? 7 : -1, -1});
  append(kOperandBegin, {14, 17});
  append(kOperands, {4, 0, 1, 9, 5, 4});
  append(kTemplateBegin, {19, 22, 23});
  append(kSteps, {1, 3, 4, 9, 5, 10, 1, 2, 3, 6});
  append(kRegisters, {1, 2, 3, 4, 5, 6, 1, 2, 3, 1});
  append(kStepOperandBegin, {17, 18, 20, 23, 24, 27, 28, 29, 30, 30});
  append(kOperandRegisters, {0, 0, 1, 2, 3, 0, 1, 3, 4, 5, 3, 0, 1, 0});
  append(kNumRegisters, {7, 4, 2});
  small_tables::resize(sections, channels, alignment);
  small_tables::set_every_network(sections, 49, {});
  sections[kSettings][0] = kBatch;
  return sections;
}
constexpr int32_t kNumLanes = 49;

inline std::vector<float> random_mixing(const ProgramTable& table) {
  std::vector<float> mixing(static_cast<size_t>(table.num_cells() * table.mixing_width()));
  Random random(17);
  for (float& weight : mixing) weight = static_cast<float>(random.uniform());
  return mixing;
}

// One minibatch through one lane in training mode, in double precision.
struct Exact {
  double loss = 0;
  std::vector<double> logits, gradient, mixing_gradient;

  // Of the mean cross-entropy, or of the logits times `logit_gradient`.
  Exact(const ProgramTable& table, int32_t lane, const float* arena,
        const std::vector<float>& mixing, const Data& data,
        const std::vector<float>& logit_gradient = {}) {
    using tape::Number;
    tape::entries.clear();
    std::vector<Number> weights, factors;
    for (int32_t i = 0; i < table.settings().arena_size; ++i) {
      weights.push_back(Number::variable(double{arena[i]}));
    }
    for (const float factor : mixing) factors.push_back(Number::variable(double{factor}));
    interpreter::MapOf<Number> images(static_cast<int32_t>(data.count()), data.channels,
                                      data.height, data.width);
    std::copy(data.images.begin(), data.images.end(), images.numbers.begin());
    interpreter::InterpreterOf<Number, Number> definition(table, weights.data(), nasfast::kBatch,
                                                          nasfast::kBatch, factors.data());
    const int32_t network = table.lanes()[static_cast<size_t>(lane)].network;
    const auto results = definition.run(network, images, data.sizes, images, data.sizes);
    std::vector<double> seeds;
    const size_t classes = results.size() / data.labels.size();
    for (size_t i = 0; i < data.labels.size(); ++i)
      add_image(&results[i * classes], classes, data, i, seeds);
    if (!logit_gradient.empty()) seeds.assign(logit_gradient.begin(), logit_gradient.end());
    const auto by = tape::derivatives(results, seeds);
    gradient.assign(by.begin(), by.begin() + static_cast<int64_t>(weights.size()));
    mixing_gradient.assign(by.begin() + static_cast<int64_t>(weights.size()),
                           by.begin() + static_cast<int64_t>(weights.size() + factors.size()));
  }

 private:
  void add_image(const tape::Number* row, size_t classes, const Data& data, size_t image,
                 std::vector<double>& seeds) {
    double sum = 0;
    for (size_t k = 0; k < classes; ++k) sum += std::exp(row[k].value);
    const auto count = static_cast<double>(data.labels.size());
    const auto label = static_cast<size_t>(data.labels[image]);
    loss += (std::log(sum) - row[label].value) / count;
    for (size_t k = 0; k < classes; ++k) {
      logits.push_back(row[k].value);
      seeds.push_back((std::exp(row[k].value) / sum - (k == label ? 1 : 0)) / count);
    }
  }
};

struct Gradients {
  std::vector<float> logits, gradient, mixing_gradient;

  bool operator==(const Gradients& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() &&
             (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
    };
    return same(logits, other.logits) && same(gradient, other.gradient) &&
           same(mixing_gradient, other.mixing_gradient);
  }
};

inline Gradients gradients_of(const ProgramTable& table, int32_t lane, const float* arena,
                              const std::vector<float>& mixing, const Data& data,
                              const RunOptions& options, const float* logit_gradient = nullptr) {
  const auto classes = table.positions().back().out_channels;
  // Whatever was there is overwritten.
  Gradients out{std::vector<float>(static_cast<size_t>(data.count() * classes), 7.0f),
                std::vector<float>(static_cast<size_t>(table.settings().arena_size), 7.0f),
                std::vector<float>(mixing.size(), 7.0f)};
  nasfast::program_gradients(table, lane, arena, data.get(),
                             logit_gradient == nullptr ? data.labels.data() : nullptr,
                             logit_gradient, mixing.empty() ? nullptr : mixing.data(), options,
                             {out.logits.data(), out.gradient.data(),
                              mixing.empty() ? nullptr : out.mixing_gradient.data()});
  return out;
}

}  // namespace training_runs
