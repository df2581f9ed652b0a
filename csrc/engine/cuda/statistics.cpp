// SPDX-License-Identifier: MIT
#include "engine/cuda/statistics.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

std::vector<StatisticsRow> statistics_rows(const ProgramTable& table,
                                           const TrainingPlacement& placement, int32_t images,
                                           const std::byte* memory, float* running) {
  std::vector<StatisticsRow> rows;
  for (size_t lane = 0; lane < placement.lanes().size(); ++lane) {
    const Network& network = placement.lanes()[lane];
    for (const Pass& pass : network.schedule.passes) {
      for (const Consumer& consumer : pass.consumers) {
        if (consumer.norm < 0 || consumer.use == Use::kClassify) continue;
        const auto index = static_cast<size_t>(consumer.norm);
        const Norm& norm = network.schedule.norms[index];
        const Unit& unit = table.units()[static_cast<size_t>(norm.unit)];
        if (unit.mean < 0) continue;
        StatisticsRow row{};
        if (memory != nullptr) {
          float* arena = running + network.weights;
          row.statistics = reinterpret_cast<const double*>(memory + network.statistics[index]);
          row.mean = arena + unit.mean;
          row.variance = arena + unit.variance;
          row.bias = unit.bias >= 0 ? arena + unit.bias : nullptr;
        }
        row.channels = norm.channels;
        row.lane = static_cast<int32_t>(lane);
        const Sides sides = placement.sides_of(pass.halvings + (consumer.stride == 2), images);
        row.count = static_cast<double>(sides.images) * sides.height * sides.width;
        row.momentum = unit.momentum / 1e6;
        rows.push_back(row);
      }
    }
  }
  return rows;
}

}  // namespace nasfast::cuda
