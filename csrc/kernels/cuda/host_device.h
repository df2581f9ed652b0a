// SPDX-License-Identifier: MIT
#pragma once

// In front of functions that kernels and host share; the host's compiler knows no CUDA.
#if defined(__CUDACC__)
#define NASFAST_HOST_DEVICE __host__ __device__
#else
#define NASFAST_HOST_DEVICE
#endif
