// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>

namespace nasfast::cuda {

// Memory of the host that is page-locked, so that a device copies from it while the host goes on;
// from other memory a copy waits until the stream is done.
class HostBuffer {
 public:
  // Returns that many bytes; what was there may be gone. Null where there is no such memory.
  std::byte* reserve(size_t bytes) {
    if (bytes <= bytes_) return memory_.get();
    memory_.reset();
    bytes_ = 0;
    void* memory = nullptr;
    const size_t more = bytes + bytes / 4;  // the next ones may need a little more
    if (cudaHostAlloc(&memory, more, cudaHostAllocDefault) != cudaSuccess) {
      cudaGetLastError();  // or the next launch would report it
      return nullptr;
    }
    memory_.reset(static_cast<std::byte*>(memory));
    bytes_ = more;
    return memory_.get();
  }

 private:
  std::unique_ptr<std::byte, cudaError_t (*)(void*)> memory_{nullptr, cudaFreeHost};
  size_t bytes_ = 0;
};

}  // namespace nasfast::cuda
