// SPDX-License-Identifier: MIT
#include "engine/packed_weights.h"

#include "engine/convolution.h"

namespace nasfast {

PackedWeights::PackedWeights(const ProgramTable& table, const float* arena,
                             const kernels::cpu::Kernels& kernels)
    : table_(table),
      arena_(arena),
      kernels_(kernels),
      shapes_(table.units().size()),
      wanted_(table.units().size(), false),
      pointers_(table.units().size(), nullptr) {
  for (const Position& p : table.positions()) {
    const size_t count = table.units_of(p).size();
    for (size_t i = 0; i < count; ++i) {
      // Of a reduction's units only the second reads what the position puts out.
      const bool reads_out = p.kind == kReduction && i == 1;
      shapes_[static_cast<size_t>(p.unit) + i] = {reads_out ? p.out_channels : p.in_channels,
                                                  p.out_channels, 1};
    }
  }
}

void PackedWeights::include(const Schedule& schedule) {
  for (const Pass& pass : schedule.passes) {
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.use == Use::kConv || consumer.use == Use::kShortcut) {
        wanted_[static_cast<size_t>(consumer.unit)] = true;
        shapes_[static_cast<size_t>(consumer.unit)].stride = consumer.stride;
      }
    }
  }
}

void PackedWeights::pack() {
  const auto units = table_.units();
  const auto convolution = [&](size_t u) {
    return Convolution(kernels_, shapes_[u].in, shapes_[u].out, units[u].kernel, shapes_[u].stride);
  };
  std::vector<int64_t> offsets(units.size(), 0);
  int64_t end = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    if (!wanted_[u]) continue;
    offsets[u] = end;
    end += Memory::aligned(convolution(u).packed_bytes());
  }
  memory_ = Memory(end);
  for (size_t u = 0; u < units.size(); ++u) {
    if (!wanted_[u]) continue;
    void* to = memory_.data() + offsets[u];
    convolution(u).pack_weight(arena_ + units[u].weight, to);
    pointers_[u] = to;
  }
}

}  // namespace nasfast
