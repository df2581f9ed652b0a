// SPDX-License-Identifier: MIT
#include "engine/loaded_images.h"

#include <algorithm>

namespace nasfast {

using kernels::cpu::Kernels;

int64_t image_block_bytes(const ProgramTable& table, const RunOptions& options,
                          const Kernels& kernels) {
  const Geometry geometry(options.height, options.width, 0, 0);
  return geometry.block_bytes(kernels.operand, 0, table.positions()[0].in_channels);
}

void load_images(const ProgramTable& table, const RunOptions& options, const Kernels& kernels,
                 const float* images, const Batch& batch, std::byte* out, Team& team) {
  const int32_t channels = table.positions()[0].in_channels;
  const int64_t image = int64_t{channels} * options.height * options.width;
  const int64_t bytes = image_block_bytes(table, options, kernels);
  team.run(batch.num_blocks(), [&](int32_t, int64_t block) {
    const auto b = static_cast<size_t>(block);
    kernels.load_images(images + batch.first_image[b] * image, batch.images[b], channels,
                        options.height, options.width, out + block * bytes);
  });
}

LoadedImages::LoadedImages(const ProgramTable& table, const Images& images,
                           const RunOptions& options, const Kernels& kernels, Team& team) {
  const Batch all(images.sizes);
  const int64_t block_bytes = image_block_bytes(table, options, kernels);
  int64_t first = 0;
  for (size_t m = 0; m < images.sizes.size(); ++m) {
    batches_.emplace_back(images.sizes.subspan(m, 1));
    begins_.push_back(all.first_block[m] * block_bytes);
    first_images_.push_back(first);
    first += images.sizes[m];
  }
  memory_ = Memory(all.num_blocks() * block_bytes);
  load_images(table, options, kernels, images.data, all, memory_.data(), team);
}

int32_t LoadedImages::most_blocks() const {
  int32_t most = 0;
  for (const Batch& batch : batches_) most = std::max(most, batch.num_blocks());
  return most;
}

}  // namespace nasfast
