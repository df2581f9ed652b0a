// SPDX-License-Identifier: MIT
// Images as the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/batch.h"
#include "engine/engine.h"
#include "engine/memory.h"
#include "engine/team.h"
#include "kernels/cpu/kernels.h"
#include "program/program_table.h"

namespace nasfast {

// Bytes of a block of the images that a table takes.
int64_t image_block_bytes(const ProgramTable& table, const RunOptions& options,
                          const kernels::cpu::Kernels& kernels);

// Writes the blocks of a batch one after another; `images` are those of the batch.
void load_images(const ProgramTable& table, const RunOptions& options,
                 const kernels::cpu::Kernels& kernels, const float* images, const Batch& batch,
                 std::byte* out, Team& team);

// Minibatches that are loaded once and read many times.
class LoadedImages {
 public:
  LoadedImages(const ProgramTable& table, const Images& images, const RunOptions& options,
               const kernels::cpu::Kernels& kernels, Team& team);
  const Batch& batch(size_t minibatch) const { return batches_[minibatch]; }
  const std::byte* data(size_t minibatch) const { return memory_.data() + begins_[minibatch]; }
  int64_t first_image(size_t minibatch) const { return first_images_[minibatch]; }
  size_t size() const { return batches_.size(); }
  int32_t most_blocks() const;
  int64_t bytes() const { return memory_.size(); }

 private:
  std::vector<Batch> batches_;
  std::vector<int64_t> begins_, first_images_;
  Memory memory_;
};

}  // namespace nasfast
