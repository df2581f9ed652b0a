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

kernels::cuda::WeightRow weight_row(const Unit& unit, const ViewInputs& inputs, size_t view,
                                    const int32_t* list, const float* weight, void* packed) {
  kernels::cuda::WeightRow row{};
  row.weight = weight;
  row.inputs = inputs.of(view, list);
  row.packed = packed;
  row.in_channels = inputs.count(view, unit);
  row.all_channels = unit.in_channels;
  row.out_channels = unit.out_channels;
  row.kernel = unit.kernel;
  return row;
}

}  // namespace nasfast::cuda
