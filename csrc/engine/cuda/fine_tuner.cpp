// SPDX-License-Identifier: MIT
#include "engine/cuda/fine_tuner.h"

#include <algorithm>

#include "engine/cuda/error.h"
#include "engine/cuda/sgd_launch.h"
#include "engine/cuda/statistics.h"
#include "engine/cuda/tables.h"
#include "engine/trained_spans.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

FineTuner::FineTuner(const ProgramTable& table, std::span<const int32_t> lanes,
                     const Options& options, int32_t most_images)
    : table_(table), trainer_(table, lanes, Weights::kOwn, options, most_images) {
  const auto arena = static_cast<int64_t>(table.settings().arena_size);
  const auto count = static_cast<int64_t>(lanes.size());
  const TrainingPlacement& placement = trainer_.placement();
  for (int64_t k = 0; k < count; ++k) {
    const auto lane = static_cast<size_t>(k);
    const auto spans =
        trained_spans(table, placement.lanes()[lane].schedule, placement.backward(lane).reverse);
    for (const auto [offset, size] : spans) {
      trained_.push_back({k * arena + offset, size});
    }
  }
  int64_t end = trainer_.bytes();
  const auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += Placement::aligned(bytes);
    return begin;
  };
  gradients_ = take(count * arena * 4);
  marks_ = take(count * arena);
  spans_ = take(Uploader::bytes_of(trained_));
  rows_ =
      take(Uploader::bytes_of(statistics_rows(table, placement, most_images, nullptr, nullptr)));
  loss_ = take(count * most_images * 4);
  correct_ = take(count * most_images);
  partial_ = take(count * kSgdParts * 2 * 8);
  states_ = take(count * static_cast<int64_t>(sizeof(SgdState)));
  bytes_ = end;
}

void FineTuner::bind(std::byte* memory, const TrainedLanes& lanes, cudaStream_t stream) {
  memory_ = memory;
  lanes_ = lanes;
  images_ = 0;
  auto* gradients = reinterpret_cast<float*>(memory + gradients_);
  trainer_.bind(memory, {lanes.weights, gradients, nullptr, nullptr}, stream);
  auto* marks = reinterpret_cast<uint8_t*>(memory + marks_);
  const int64_t numbers = int64_t{trainer_.num_lanes()} * table_.settings().arena_size;
  check("marks", cudaMemsetAsync(marks, 0, static_cast<size_t>(numbers), stream));
  check("marks", launch_marks(Uploader(memory + spans_, stream).add(trained_),
                              static_cast<int32_t>(trained_.size()), kTrained, marks, stream));
}

void FineTuner::run(const Minibatch& minibatch, const Sgd& sgd, const Steplog& log, int32_t step,
                    int32_t first_step, cudaStream_t stream) {
  auto* loss = reinterpret_cast<float*>(memory_ + loss_);
  auto* correct = reinterpret_cast<uint8_t*>(memory_ + correct_);
  Minibatch own = minibatch;
  own.first = 0;
  trainer_.run(own, nullptr, {nullptr, loss, correct, minibatch.count}, stream);
  if (images_ != minibatch.count) {
    statistics_ =
        statistics_rows(table_, trainer_.placement(), minibatch.count, memory_, lanes_.weights);
    Uploader(memory_ + rows_, stream).add(statistics_);
    images_ = minibatch.count;
  }
  SgdLaunch launch = launch_of(sgd);
  launch.marks = reinterpret_cast<const uint8_t*>(memory_ + marks_);
  launch.gradients = reinterpret_cast<const float*>(memory_ + gradients_);
  launch.weights = lanes_.weights;
  launch.momenta = lanes_.momenta;
  launch.gradient_sums = lanes_.gradient_sums;
  launch.numbers = table_.settings().arena_size;
  launch.lanes = trainer_.num_lanes();
  launch.loss = loss;
  launch.correct = correct;
  launch.images = minibatch.count;
  launch.loss_record = log.loss;
  launch.correct_record = log.correct;
  launch.gradient_l1 = log.gradient_l1;
  launch.gradient_sum_l1 = log.gradient_sum_l1;
  launch.lr = log.lr;
  launch.steps = log.steps;
  launch.step = step;
  launch.first_step = first_step;
  launch.diverged_at = lanes_.diverged_at;
  launch.partial = reinterpret_cast<double*>(memory_ + partial_);
  launch.states = reinterpret_cast<SgdState*>(memory_ + states_);
  check("norms of gradients", launch_measure(launch, stream));
  check("running statistics",
        launch_statistics(reinterpret_cast<const StatisticsRow*>(memory_ + rows_),
                          static_cast<int32_t>(statistics_.size()), launch.states, stream));
  check("SGD", launch_updates(launch, stream));
}

}  // namespace nasfast::cuda
