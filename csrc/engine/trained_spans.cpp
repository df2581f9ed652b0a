// SPDX-License-Identifier: MIT
#include "engine/trained_spans.h"

#include <algorithm>
#include <stdexcept>

namespace nasfast {

std::vector<Span> trained_spans(const ProgramTable& table, const Schedule& schedule,
                                const Reverse& reverse) {
  std::vector<Span> trained;
  const auto units = table.units();
  const auto add = [&](int32_t offset, int32_t size) {
    if (offset >= 0) trained.push_back({offset, size});
  };
  for (const Pass& pass : schedule.passes) {
    for (const Consumer& consumer : pass.consumers) {
      if (!reverse.is_live(consumer)) continue;
      if (consumer.unit >= 0) {
        const Unit& unit = units[static_cast<size_t>(consumer.unit)];
        const bool is_head = consumer.use == Use::kClassify;
        const int32_t out = is_head ? table.positions().back().out_channels : unit.out_channels;
        add(unit.weight,
            is_head ? out * pass.channels : out * unit.in_channels * unit.kernel * unit.kernel);
        add(unit.bias, out);
      }
      // What a linear classifier reads is normalised by the convolution before it.
      if (consumer.norm >= 0 && !consumer.is_linear) {
        const Norm& norm = schedule.norms[static_cast<size_t>(consumer.norm)];
        const Unit& unit = units[static_cast<size_t>(norm.unit)];
        add(unit.gamma, norm.channels);
        add(unit.beta, norm.channels);
      }
    }
  }
  const auto before = [](const Span& a, const Span& b) { return a.offset < b.offset; };
  std::sort(trained.begin(), trained.end(), before);
  const auto same = [](const Span& a, const Span& b) { return a.offset == b.offset; };
  if (std::adjacent_find(trained.begin(), trained.end(), same) != trained.end()) {
    throw std::invalid_argument(
        "table: wanted weights that one convolution of a network uses, got some that several do "
        "(weights on nodes)");
  }
  return trained;
}

std::vector<Span> union_of(std::vector<Span> spans) {
  const auto before = [](const Span& a, const Span& b) { return a.offset < b.offset; };
  const auto same = [](const Span& a, const Span& b) { return a.offset == b.offset; };
  std::sort(spans.begin(), spans.end(), before);
  spans.erase(std::unique(spans.begin(), spans.end(), same), spans.end());
  return spans;
}

}  // namespace nasfast
