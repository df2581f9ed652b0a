// SPDX-License-Identifier: MIT
#include "engine/cuda/packing.h"

namespace nasfast::cuda {

ViewInputs::ViewInputs(const WeightViews& views) {
  for (const WeightViews::View& view : views.all()) {
    begins_.push_back(view.inputs.empty() ? -1 : static_cast<int64_t>(all_.size()));
    const size_t begin = all_.size();
    for (const Range& range : view.inputs) {
      for (int32_t i = 0; i < range.count; ++i) all_.push_back(range.begin + i);
    }
    counts_.push_back(static_cast<int32_t>(all_.size() - begin));
  }
}

void add_weight_rows(const Placement& placement, const Addresses& addresses,
                     const ViewInputs& inputs, const int32_t* list, const Network& network,
                     const std::vector<int64_t>& packed, bool is_turned,
                     std::vector<kernels::cuda::WeightRow>& rows) {
  for (size_t view = 0; view < packed.size(); ++view) {
    if (packed[view] < 0) continue;
    const Unit& unit = placement.unit(placement.views().all()[view].unit);
    kernels::cuda::WeightRow row{};
    row.weight = addresses.weight(network, unit.weight);
    row.inputs = inputs.of(view, list);
    row.packed = addresses.at<void>(packed[view]);
    row.in_channels = inputs.count(view, unit);
    row.all_channels = unit.in_channels;
    row.out_channels = unit.out_channels;
    row.kernel = unit.kernel;
    row.is_turned = is_turned;
    rows.push_back(row);
  }
}

}  // namespace nasfast::cuda
