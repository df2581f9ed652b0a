// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace nasfast::cuda {

// What the device or its driver refused.
class Error : public std::runtime_error {
 public:
  Error(const char* what, cudaError_t code)
      : std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code)) {}
};

inline void check(const char* what, cudaError_t code) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or the next launch of anybody in this process would report it
  throw Error(what, code);
}

}  // namespace nasfast::cuda
