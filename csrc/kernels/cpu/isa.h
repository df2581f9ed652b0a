// SPDX-License-Identifier: MIT
// Instruction sets: which there are, which this machine runs, and the kernels of each.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace nasfast::kernels::cpu {

// From the narrowest to the widest.
enum class Isa : int32_t { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };
constexpr int32_t kNumIsas = 5;

const char* name_of(Isa isa);

// Whether this build has kernels for it and the CPU and the operating system run them; otherwise
// `reason` (if given) says what is missing.
bool is_supported(Isa isa, std::string* reason = nullptr);

// The supported ones, ascending; never empty.
std::vector<Isa> supported_isas();

// The widest supported one, or the one that NASFAST_ISA names. Throws std::invalid_argument when
// that is unknown or not supported.
Isa default_isa();

// Throws std::invalid_argument when the name is unknown or not supported.
Isa isa_from_name(const std::string& name);

const Kernels& kernels_of(Isa isa, Precision precision);

}  // namespace nasfast::kernels::cpu
