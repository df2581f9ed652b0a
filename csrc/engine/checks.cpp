// SPDX-License-Identifier: MIT
#include "engine/checks.h"

#include <stdexcept>

namespace nasfast {

void require(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument(message);
}

void check_threads(const RunOptions& options) {
  require(options.threads >= 1,
          "threads: wanted at least 1, got " + std::to_string(options.threads));
}

void check_minibatches(const Images& images) {
  require(!images.sizes.empty(), "sizes: wanted at least one minibatch");
  check_sizes(images);
}

void check_sizes(const Images& images) {
  for (const int64_t size : images.sizes) {
    require(size >= 1 && size <= kMaxBatch,
            "sizes: wanted minibatches of 1 to 16777216 images, got " + std::to_string(size));
  }
}

void check_labels(const ProgramTable& table, const Images& images, const int64_t* labels) {
  const int32_t classes = table.positions().back().out_channels;
  const int64_t count = images.count();
  for (int64_t i = 0; i < count; ++i) {
    require(
        labels[i] >= 0 && labels[i] < classes,
        "labels: wanted 0.." + std::to_string(classes - 1) + ", got " + std::to_string(labels[i]));
  }
}

}  // namespace nasfast
