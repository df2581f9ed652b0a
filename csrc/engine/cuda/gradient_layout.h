// SPDX-License-Identifier: MIT
// How a pass is cut into tiles on the way back; see pass_layout.h.
#pragma once

#include "kernels/cuda/gradient_descriptors.h"
#include "program/reverse.h"
#include "program/schedule.h"

namespace nasfast::cuda {

// Fills in halos, chunks, tile and layout; the rest is there already. Throws std::invalid_argument
// if the pass has more channels than a block can hold.
void lay_out_gradient(const Schedule& schedule, const Reverse& reverse, const Pass& pass,
                      kernels::cuda::Precision precision, kernels::cuda::GradientRow& row);

}  // namespace nasfast::cuda
