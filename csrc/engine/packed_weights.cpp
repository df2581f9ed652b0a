// SPDX-License-Identifier: MIT
#include "engine/packed_weights.h"

#include "engine/convolution.h"
#include "kernels/cpu/gradients.h"

namespace nasfast {

PackedWeights::PackedWeights(std::span<const Unit> units, const kernels::cpu::Kernels& kernels,
                             const Geometry& geometry, Way way)
    : units_(units),
      geometry_(geometry),
      way_(way),
      kernels_(kernels),
      shapes_(units.size()),
      wanted_(units.size(), false),
      pointers_(units.size(), nullptr) {}

void PackedWeights::include(const Schedule& schedule) {
  for (const Pass& pass : schedule.passes) {
    if (way_ == Way::kInputGradient && pass.reads_images) continue;
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.use != Use::kConv && consumer.use != Use::kShortcut) continue;
      const auto unit = static_cast<size_t>(consumer.unit);
      const StoredTensor& out = schedule.tensors[static_cast<size_t>(consumer.out)];
      wanted_[unit] = true;
      shapes_[unit] = {pass.channels, out.channels, geometry_[pass.halvings].width,
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

void PackedWeights::pack(const float* arena) {
  std::vector<int64_t> offsets(units_.size(), 0);
  int64_t end = 0;
  for (size_t u = 0; u < units_.size(); ++u) {
    if (!wanted_[u]) continue;
    offsets[u] = end;
    end += Memory::aligned(packed_bytes(units_[u], shapes_[u]));
  }
  if (memory_.size() != end) memory_ = Memory(end);
  for (size_t u = 0; u < units_.size(); ++u) {
    if (!wanted_[u]) continue;
    void* to = memory_.data() + offsets[u];
    pack_unit(units_[u], shapes_[u], arena + units_[u].weight, to);
    pointers_[u] = to;
  }
}

}  // namespace nasfast
