// SPDX-License-Identifier: MIT
// Scores the lanes of a chunk on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/cuda/host_buffer.h"
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
  // Its memory (aligned to 256 bytes) and the weight set, on the device.
  struct Where {
    std::byte* memory = nullptr;
    const float* arena = nullptr;
    bool operator==(const Where&) const = default;
  };

  // For minibatches of up to `most_images`. `expected`: where it will probably be; tables are made
  // for that. Throws std::invalid_argument where an option does not fit the table, or the network
  // does not fit a device.
  Chunk(const ProgramTable& table, const Lanes& lanes, const Options& options, int32_t most_images,
        const Where& expected);

  int64_t bytes() const { return bytes_; }
  int32_t num_lanes() const { return static_cast<int32_t>(placement_.lanes().size()); }

  // Says where it is, and makes the tables of the largest minibatch; `host`: room for them until
  // they are uploaded, null: it takes its own. Nothing on the device is touched.
  void bind(const Where& where, HostBuffer* host);

  // Brings tables to the device, and the weights into the layout of the kernels: once, before
  // run(). Both throw Error.
  void upload(cudaStream_t stream);

  // Scores all lanes. Returns once everything is launched; the minibatch and the results must stay
  // until it is done.
  void run(const Minibatch& minibatch, const Results& results, cudaStream_t stream);

 private:
  // Tables beside those of the steps, and the rows that they have.
  struct Preparation {
    const int32_t* inputs;
    const kernels::cuda::WeightRow* packs;
    const kernels::cuda::NormRow* norms;
    int32_t num_packs, num_norms, most_channels;
  };

  Where where() const { return {addresses_.memory, addresses_.arena}; }
  void make_steps(const Where& where, int32_t images);
  std::vector<kernels::cuda::WeightRow> pack_rows(const int32_t* inputs) const;

  const ProgramTable& table_;
  const Options options_;
  const int32_t most_images_;
  Placement placement_;
  const ViewInputs view_inputs_;
  int32_t most_shared_ = 0;  // bytes of a block
  // Where these lie, and the end.
  int64_t moments_ = 0, tables_ = 0, steps_begin_ = 0, bytes_ = 0;

  Addresses addresses_;
  std::optional<Gatherer> gathered_;  // for the device
  Preparation preparation_{};
  int32_t images_ = 0;  // of a minibatch that the steps are for
  Steps steps_;
  DeviceSteps rows_;
};

}  // namespace nasfast::cuda
