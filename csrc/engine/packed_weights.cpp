// SPDX-License-Identifier: MIT
#include "engine/packed_weights.h"

#include <algorithm>

#include "engine/convolution.h"
#include "kernels/cpu/gradients.h"

namespace nasfast {

PackedWeights::PackedWeights(std::span<const Unit> units, const WeightViews& views,
                             const kernels::cpu::Kernels& kernels, const Geometry& geometry,
                             Way way)
    : units_(units), views_(views), geometry_(geometry), way_(way), kernels_(kernels) {}

void PackedWeights::include(const Schedule& schedule) {
  shapes_.resize(views_.all().size());
  wanted_.resize(views_.all().size(), false);
  for (const Pass& pass : schedule.passes) {
    if (way_ == Way::kInputGradient && pass.reads_images) continue;
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.use != Use::kConv && consumer.use != Use::kShortcut) continue;
      const auto view = static_cast<size_t>(consumer.view);
      const StoredTensor& out = schedule.tensors[static_cast<size_t>(consumer.out)];
      wanted_[view] = true;
      shapes_[view] = {pass.channels, out.channels, geometry_[pass.halvings].width,
                       consumer.stride};
    }
  }
}

int64_t PackedWeights::packed_bytes(const Unit& unit, const Shape& shape) const {
  if (way_ == Way::kForward) {
    return Convolution(kernels_, shape.in, shape.out, unit.kernel, shape.stride, shape.width)
        .packed_bytes();
  }
  if (shape.stride == 1) {
    return Convolution(kernels_, shape.out, shape.in, unit.kernel, 1, shape.width).packed_bytes();
  }
  return kernels_.gradients->packed_bytes(shape.out, shape.in, unit.kernel);
}

void PackedWeights::pack_unit(const Unit& unit, const Shape& shape, const float* weight,
                              void* packed) {
  const auto [in, out, width, stride] = shape;
  if (way_ == Way::kForward) {
    return Convolution(kernels_, in, out, unit.kernel, stride, width).pack_weight(weight, packed);
  }
  // Input and output change places; at stride 1 the gradient of the input is a convolution with the
  // taps in reverse.
  const int64_t taps = int64_t{unit.kernel} * unit.kernel;
  turned_.resize(static_cast<size_t>(in * out * taps));
  float* to = turned_.data();
  for (int64_t i = 0; i < in; ++i) {
    for (int64_t o = 0; o < out; ++o) {
      const float* from = weight + (o * in + i) * taps;
      for (int64_t tap = 0; tap < taps; ++tap) *to++ = from[stride == 1 ? taps - 1 - tap : tap];
    }
  }
  if (stride == 1) {
    return Convolution(kernels_, out, in, unit.kernel, 1, width)
        .pack_weight(turned_.data(), packed);
  }
  kernels_.gradients->pack_weight(turned_.data(), out, in, unit.kernel, packed);
}

// The inputs of a view, [out, inputs, kernel, kernel].
const float* PackedWeights::part_of(const WeightViews::View& view, const Shape& shape,
                                    const float* weight) {
  if (view.inputs.empty()) return weight;
  const Unit& unit = units_[static_cast<size_t>(view.unit)];
  const int64_t taps = int64_t{unit.kernel} * unit.kernel;
  part_.resize(static_cast<size_t>(shape.in * shape.out * taps));
  float* to = part_.data();
  for (int64_t o = 0; o < shape.out; ++o) {
    for (const Range& range : view.inputs) {
      const float* from = weight + (o * unit.in_channels + range.begin) * taps;
      to = std::copy_n(from, range.count * taps, to);
    }
  }
  return part_.data();
}

void PackedWeights::pack(const float* arena) {
  const auto& views = views_.all();
  const auto unit_of = [&](size_t v) -> const Unit& {
    return units_[static_cast<size_t>(views[v].unit)];
  };
  std::vector<int64_t> offsets(wanted_.size(), 0);
  int64_t end = 0;
  for (size_t v = 0; v < wanted_.size(); ++v) {
    if (!wanted_[v]) continue;
    offsets[v] = end;
    end += Memory::aligned(packed_bytes(unit_of(v), shapes_[v]));
  }
  if (memory_.size() != end) memory_ = Memory(end);
  pointers_.assign(wanted_.size(), nullptr);
  for (size_t v = 0; v < wanted_.size(); ++v) {
    if (!wanted_[v]) continue;
    void* to = memory_.data() + offsets[v];
    const float* weight = part_of(views[v], shapes_[v], arena + unit_of(v).weight);
    pack_unit(unit_of(v), shapes_[v], weight, to);
    pointers_[v] = to;
  }
}

}  // namespace nasfast
