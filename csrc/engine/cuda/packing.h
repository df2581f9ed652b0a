// SPDX-License-Identifier: MIT
// Which weights are brought into the layout of the kernels, and from where.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/cuda/steps.h"
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

// Appends how the weights of a network get to `packed`, by view (-1: that one does not), in the
// layout of the kernels. `list`: where the inputs of views lie; `is_turned`: for the way back.
void add_weight_rows(const Placement& placement, const Addresses& addresses,
                     const ViewInputs& inputs, const int32_t* list, const Network& network,
                     const std::vector<int64_t>& packed, bool is_turned,
                     std::vector<kernels::cuda::WeightRow>& rows);

}  // namespace nasfast::cuda
