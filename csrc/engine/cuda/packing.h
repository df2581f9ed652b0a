// SPDX-License-Identifier: MIT
// Which weights are brought into the layout of the kernels, and from where.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/descriptors.h"
#include "program/program_table.h"
#include "program/schedule.h"

namespace nasfast::cuda {

// Input channels of the views that do not read all of their unit's, in one list.
class ViewInputs {
 public:
  explicit ViewInputs(const WeightViews& views);

  const std::vector<int32_t>& all() const { return all_; }
  int64_t bytes() const { return static_cast<int64_t>(all_.size() * sizeof(int32_t)); }
  // Those of a view where the list lies at `list`; null: all channels of its unit.
  const int32_t* of(size_t view, const int32_t* list) const {
    return begins_[view] >= 0 && list != nullptr ? list + begins_[view] : nullptr;
  }
  int32_t count(size_t view, const Unit& unit) const {
    return begins_[view] >= 0 ? counts_[view] : unit.in_channels;
  }

 private:
  std::vector<int32_t> all_;
  std::vector<int64_t> begins_;  // [views] -1: all channels
  std::vector<int32_t> counts_;
};

// How a view of a unit's weight is packed.
kernels::cuda::WeightRow weight_row(const Unit& unit, const ViewInputs& inputs, size_t view,
                                    const int32_t* list, const float* weight, void* packed);

}  // namespace nasfast::cuda
