// SPDX-License-Identifier: MIT
#include "engine/cuda/edge_placement.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

namespace {

constexpr int32_t kHalvings = 1;  // most that an operator has

}  // namespace

EdgePlacement::EdgePlacement(std::span<const Unit> units, const Schedule& schedule,
                             const FeatureShape& shape)
    : TrainingPlacement({units, Geometry(shape.sides.height, shape.sides.width, kHalvings, 0)},
                        shape.precision, shape.sides.images),
      inputs_(views_) {
  Network& own = lanes_.emplace_back();
  own.schedule = schedule;
  place_tensors(own);
  saved_bytes_ = bytes();
}

void EdgePlacement::place_forward() { place_packed(lanes_[0]); }

void EdgePlacement::place_external(int32_t tensor) {
  const StoredTensor& of = network().schedule.tensors[static_cast<size_t>(tensor)];
  lanes_[0].tensors[static_cast<size_t>(tensor)] = take_value(of.halvings, of.channels);
}

void EdgePlacement::place_reverse(const Reverse& reverse, int32_t outside) {
  BackwardPlaces& to = backward_.emplace_back();
  to.reverse = reverse;
  place_backward(network(), 0, to, outside);
}

std::vector<WeightRow> EdgePlacement::weight_rows(const Addresses& addresses) const {
  const bool is_turned = !backward_.empty();
  std::vector<WeightRow> rows;
  add_weight_rows(*this, addresses, inputs_, nullptr, network(),
                  is_turned ? backward_[0].packed : network().packed, is_turned, rows);
  return rows;
}

}  // namespace nasfast::cuda
