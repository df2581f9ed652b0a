// SPDX-License-Identifier: MIT
#include "engine/checks.h"

#include <algorithm>
#include <stdexcept>

#include "engine/batch.h"

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

void check_running_statistics(const ProgramTable& table, const Images& images, int32_t height,
                              int32_t width) {
  const int64_t fewest = *std::min_element(images.sizes.begin(), images.sizes.end());
  const Geometry geometry(height, width, table.positions().back().halvings,
                          table.settings().padding);
  for (const Position& p : table.positions()) {
    const auto [rows, columns] = geometry[p.halvings + halves(p.kind)];
    if (fewest * rows * columns > 1) continue;
    for (const Unit& unit : table.units_of(p)) {
      require(unit.mean < 0,
              "images: running statistics need more than one element a channel, got " +
                  std::to_string(fewest) + "x" + std::to_string(rows) + "x" +
                  std::to_string(columns));
    }
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

void check_paths(const ProgramTable& table, std::span<const int64_t> lanes, int64_t steps,
                 int64_t paths) {
  require(paths >= 1 && static_cast<int64_t>(lanes.size()) == steps * paths,
          "lanes: wanted " + std::to_string(steps) + " minibatches times paths, got " +
              std::to_string(lanes.size()));
  const auto count = static_cast<int64_t>(table.lanes().size());
  for (const int64_t lane : lanes) {
    require(lane >= 0 && lane < count,
            "lanes: wanted 0.." + std::to_string(count - 1) + ", got " + std::to_string(lane));
  }
}

}  // namespace nasfast
