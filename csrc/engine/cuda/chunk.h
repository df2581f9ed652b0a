// SPDX-License-Identifier: MIT
// Scores the lanes of a chunk on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "engine/cuda/packing.h"
#include "engine/cuda/placement.h"
#include "engine/cuda/tables.h"
#include "program/program_table.h"

namespace nasfast::cuda {

// Lanes of a chunk of a program table; outlived by the table. It allocates nothing on the device:
// its memory is one piece that the caller has. A lane's results do not depend on what else is
// there.
class Chunk {
 public:
  // For minibatches of up to `most_images`. Throws std::invalid_argument where an option does not
  // fit the table, or the network does not fit a device.
  Chunk(const ProgramTable& table, const Lanes& lanes, const Options& options, int32_t most_images);

  int64_t bytes() const { return bytes_; }
  int32_t num_lanes() const { return static_cast<int32_t>(placement_.lanes().size()); }

  // Says where that memory is (aligned to 256 bytes) and where the weight set lies on the device,
  // and brings the weights into the layout of the kernels. Throws Error, as run() does.
  void bind(std::byte* memory, const float* arena, cudaStream_t stream);

  // Scores all lanes. Returns once everything is launched; the minibatch and the results must stay
  // until it is done.
  void run(const Minibatch& minibatch, const Results& results, cudaStream_t stream);

 private:
  void pack_weights(cudaStream_t stream);
  void finish_running_norms(cudaStream_t stream);
  void upload_steps(int32_t images, cudaStream_t stream);
  const ProgramTable& table_;
  const Options options_;
  const int32_t most_images_;
  Placement placement_;
  const ViewInputs view_inputs_;
  int32_t most_shared_ = 0;  // bytes of a block
  // Where these lie, and the end.
  int64_t packs_ = 0, inputs_ = 0, tables_ = 0, moments_ = 0, bytes_ = 0;

  Addresses addresses_;
  int32_t images_ = 0;  // that the tables on the device are for
  Steps steps_;
  DeviceSteps rows_;
};

}  // namespace nasfast::cuda
