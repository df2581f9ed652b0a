// SPDX-License-Identifier: MIT
#include "engine/cuda/lane_gradients.h"

#include <memory>
#include <utility>
#include <vector>

#include "engine/checks.h"
#include "engine/cuda/error.h"
#include "engine/cuda/statistics.h"
#include "engine/cuda/tables.h"
#include "engine/cuda/trainer.h"

namespace nasfast::cuda {

void lane_gradients(const ProgramTable& table, int32_t lane, const Options& options,
                    const Budget& budget, Allocate allocate, const GradientInputs& inputs,
                    const Minibatch& minibatch, const GradientResults& results,
                    cudaStream_t stream) {
  const std::vector<int64_t> sizes = {minibatch.count};
  const Images images{minibatch.images, sizes};
  check_minibatches(images);
  check_running_statistics(table, images, options.height, options.width);
  Trainer trainer(table, {&lane, 1}, Weights::kShared, options, minibatch.count);
  const auto rows_of = [&](const std::byte* memory) {
    return statistics_rows(table, trainer.placement(), minibatch.count, memory, results.running);
  };
  const int64_t end = trainer.bytes(), bytes = end + Uploader::bytes_of(rows_of(nullptr));
  LaneGroups groups(budget, std::move(allocate));
  const auto [count, memory] = groups.next(
      1, {[&](int32_t) { return bytes; }, [] {},
          [&](int64_t wanted) { return needs_alone(lane, wanted, minibatch.count, options); }});
  const bool goes_back = minibatch.labels != nullptr || inputs.logit_gradient != nullptr;
  float* mixing_gradient = goes_back ? results.mixing_gradient : nullptr;
  if (mixing_gradient != nullptr) {
    const int64_t numbers = int64_t{table.num_cells()} * table.mixing_width();
    check("mixing", cudaMemsetAsync(mixing_gradient, 0,
                                    static_cast<size_t>(numbers) * sizeof(float), stream));
  }
  trainer.bind(
      memory,
      {inputs.arena, goes_back ? results.gradient : nullptr, inputs.mixing, mixing_gradient},
      stream);
  trainer.run(minibatch, minibatch.labels != nullptr ? nullptr : inputs.logit_gradient,
              {results.logits, nullptr, nullptr, minibatch.count}, stream);
  if (results.running != nullptr) {
    const auto rows = rows_of(memory);
    const auto* on_device = Uploader(memory + end, stream).add(rows);
    check("running statistics", kernels::cuda::launch_statistics(
                                    on_device, static_cast<int32_t>(rows.size()), nullptr, stream));
  }
  check("gradients", cudaStreamSynchronize(stream));
}

}  // namespace nasfast::cuda
