// SPDX-License-Identifier: MIT
// Launches that are recorded once and repeated as one.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <type_traits>

#include "engine/cuda/error.h"

namespace nasfast::cuda {

class Graph {
 public:
  // Records what `work` puts into the stream that it is given; none of it runs. It must copy
  // nothing from the host. The stream is one of its own: a default stream cannot be recorded, and
  // other threads may go on allocating meanwhile. Throws Error.
  template <typename Work>
  explicit Graph(const Work& work) {
    cudaStream_t stream = nullptr;
    check("graph", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const Owner<cudaStream_t> owner(stream, cudaStreamDestroy);
    check("graph", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t recorded = nullptr;
    try {
      work(stream);
    } catch (...) {
      cudaStreamEndCapture(stream, &recorded);
      if (recorded != nullptr) cudaGraphDestroy(recorded);
      throw;
    }
    check("graph", cudaStreamEndCapture(stream, &recorded));
    const Owner<cudaGraph_t> graph(recorded, cudaGraphDestroy);
    cudaGraphExec_t ready = nullptr;
    check("graph", cudaGraphInstantiate(&ready, recorded, 0));
    ready_.reset(ready);
  }

  // It must be there until the device has done it.
  void launch(cudaStream_t stream) const { check("graph", cudaGraphLaunch(ready_.get(), stream)); }

 private:
  template <typename Handle>
  using Owner = std::unique_ptr<std::remove_pointer_t<Handle>, cudaError_t (*)(Handle)>;

  Owner<cudaGraphExec_t> ready_{nullptr, cudaGraphExecDestroy};
};

}  // namespace nasfast::cuda
