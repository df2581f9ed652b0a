// SPDX-License-Identifier: MIT
// As the file of this name that comes with CUDA.
#pragma once

#include <limits>

#define CUDART_NAN (std::numeric_limits<double>::quiet_NaN())
