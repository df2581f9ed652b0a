// SPDX-License-Identifier: MIT
// How a pass is cut into tiles, and what of it lies in shared memory. Both follow from the pass
// alone, whatever runs beside it: they fix the order of its sums.
#pragma once

#include "kernels/cuda/descriptors.h"
#include "program/schedule.h"

namespace nasfast::cuda {

// Output channels that a block computes at once; registers are chosen for 16, 32 or 64.
int32_t columns_for(int32_t channels);
int32_t columns_of(const Schedule& schedule, const Pass& pass);

// Fills in halo, chunks, tile and layout. `sides` and channels are there already. Throws
// std::invalid_argument if the pass has more channels than a block can hold.
void lay_out(const Schedule& schedule, const Pass& pass, kernels::cuda::Precision precision,
             kernels::cuda::PassRow& row);

}  // namespace nasfast::cuda
