// SPDX-License-Identifier: MIT
// The mixed operation of one edge on the CPU: the weighted sum of its candidate operations, from
// one read of the input. It is run as two passes of the engine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/features.h"
#include "engine/mixed_schedule.h"
#include "kernels/cpu/isa.h"

namespace nasfast {

// Bytes that the way back needs again, for features of this shape.
int64_t mixed_op_saved_bytes(const MixedCandidates& candidates, const Features& features,
                             kernels::cpu::Isa isa);

// Writes out, statistics [convolutions, 2, channels] (mean without bias, biased variance) and
// saved, which is aligned to 64 bytes.
void mixed_op(const MixedCandidates& candidates, const Features& x, const float* weights,
              const float* parameters, const Features& out, float* statistics, std::byte* saved,
              kernels::cpu::Isa isa, int32_t threads);

// Writes the gradients of the input (null data: not wanted), of the weights [candidates] and of the
// parameters; that of a bias is zero, as statistics of the minibatch cancel it.
void mixed_op_backward(const MixedCandidates& candidates, const Features& grad_out,
                       const float* weights, const float* parameters, const float* statistics,
                       std::byte* saved, const Features& grad_x, float* grad_weights,
                       float* grad_parameters, kernels::cpu::Isa isa, int32_t threads);

}  // namespace nasfast
