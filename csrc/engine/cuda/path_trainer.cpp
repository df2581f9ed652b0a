// SPDX-License-Identifier: MIT
#include "engine/cuda/path_trainer.h"

#include <string>
#include <utility>

#include "engine/checks.h"
#include "engine/cuda/error.h"
#include "engine/cuda/sgd_launch.h"
#include "engine/cuda/statistics.h"
#include "engine/cuda/tables.h"
#include "kernels/cuda/paths.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

PathTrainer::PathTrainer(const ProgramTable& table, int32_t paths, int32_t most_steps,
                         const Options& options, const Budget& budget, Allocate allocate)
    : table_(table),
      paths_(paths),
      most_steps_(most_steps),
      options_(options),
      groups_(budget, std::move(allocate)) {
  require(paths >= 1, "paths: wanted at least 1, got " + std::to_string(paths));
  const auto take = [this](int64_t bytes) {
    const int64_t begin = bytes_;
    bytes_ += Placement::aligned(bytes);
    return begin;
  };
  const int64_t arena = table.settings().arena_size;
  const auto units = static_cast<int64_t>(table.units().size());
  constexpr int64_t kMostTrained = 4, kMostTracked = 2;  // of a unit
  total_ = take(arena * 4);
  running_ = take(arena * 4);
  marks_ = take(arena);
  trained_at_ = take(units * kMostTrained * static_cast<int64_t>(sizeof(SpanRow)));
  tracked_at_ = take(units * kMostTracked * static_cast<int64_t>(sizeof(SpanRow)));
  lr_ = take(int64_t{most_steps} * 8);
  partial_ = take(kSgdParts * 2 * 8);
  state_ = take(sizeof(SgdState));
  diverged_at_ = take(sizeof(int32_t));
}

int64_t PathTrainer::run(std::byte* memory, const TrainedRow& row, std::span<const int64_t> lanes,
                         const Images& images, const int64_t* labels, double lr, const Sgd& sgd,
                         cudaStream_t stream) {
  check_minibatches(images);
  check_running_statistics(table_, images, options_.height, options_.width);
  const auto steps = static_cast<int32_t>(images.sizes.size());
  require(steps <= most_steps_, "sizes: wanted up to " + std::to_string(most_steps_) +
                                    " minibatches, got " + std::to_string(steps));
  check_paths(table_, lanes, steps, paths_);
  const std::vector<int32_t> own(lanes.begin(), lanes.end());
  memory_ = memory;
  row_ = row;
  const std::vector<double> rates(static_cast<size_t>(steps), lr);
  Uploader(memory + lr_, stream).add(rates);
  check("steps", cudaMemsetAsync(memory + diverged_at_, 0xFF, sizeof(int32_t), stream));  // -1
  const int64_t image =
      int64_t{table_.positions()[0].in_channels} * options_.height * options_.width;
  const auto arena = static_cast<size_t>(table_.settings().arena_size);
  int64_t at = 0;
  for (int32_t step = 0; step < steps; ++step) {
    const Minibatch minibatch{images.data + at * image, labels + at,
                              static_cast<int32_t>(images.sizes[static_cast<size_t>(step)]), 0};
    check("running statistics", cudaMemcpyAsync(memory + running_, row.weights, arena * 4,
                                                cudaMemcpyDeviceToDevice, stream));
    trained_.clear();
    tracked_.clear();
    const auto of_step = std::span<const int32_t>(own).subspan(
        static_cast<size_t>(step) * static_cast<size_t>(paths_), static_cast<size_t>(paths_));
    for (int32_t first = 0; first < paths_;) {
      const Group group =
          next_group(of_step.subspan(static_cast<size_t>(first)), minibatch.count, stream);
      run_group(group, minibatch, step, first, stream);
      first += group.count;
    }
    update(sgd, step, stream);
    at += minibatch.count;
  }
  int32_t diverged_at = -1;
  check("steps", cudaMemcpyAsync(&diverged_at, memory + diverged_at_, sizeof diverged_at,
                                 cudaMemcpyDeviceToHost, stream));
  check("training", cudaStreamSynchronize(stream));
  return diverged_at >= 0 ? diverged_at : steps;
}

PathTrainer::Group PathTrainer::next_group(std::span<const int32_t> left, int32_t images,
                                           cudaStream_t stream) {
  Group group;
  const int64_t arena = table_.settings().arena_size;
  const auto prepare = [&](int32_t count) {
    group.trainer = std::make_unique<Trainer>(table_, left.first(static_cast<size_t>(count)),
                                              Weights::kShared, options_, images);
    const TrainingPlacement& placement = group.trainer->placement();
    const auto rows = statistics_rows(table_, placement, images, nullptr, nullptr);
    group.gradients = group.trainer->bytes();
    group.rows = group.gradients + Placement::aligned(count * arena * 4);
    group.loss = group.rows + Uploader::bytes_of(rows);
    group.correct = group.loss + Placement::aligned(int64_t{count} * images * 4);
    group.bytes = group.correct + Placement::aligned(int64_t{count} * images);
    return group.bytes;
  };
  const auto fitting =
      groups_.next(static_cast<int32_t>(left.size()),
                   {prepare, [&] { check("training", cudaStreamSynchronize(stream)); },
                    [&](int64_t bytes) { return needs_alone(left[0], bytes, images, options_); }});
  group.count = fitting.count;
  group.memory = fitting.memory;
  return group;
}

void PathTrainer::run_group(const Group& group, const Minibatch& minibatch, int32_t step,
                            int32_t first, cudaStream_t stream) {
  auto* gradients = reinterpret_cast<float*>(group.memory + group.gradients);
  auto* loss = reinterpret_cast<float*>(group.memory + group.loss);
  auto* correct = reinterpret_cast<uint8_t*>(group.memory + group.correct);
  group.trainer->bind(group.memory, {row_.weights, gradients, nullptr, nullptr}, stream);
  group.trainer->run(minibatch, nullptr, {nullptr, loss, correct, minibatch.count}, stream);
  const int64_t record = int64_t{step} * paths_ + first;
  PathsLaunch launch{};
  launch.gradients = gradients;
  launch.total = numbers(total_);
  launch.numbers = table_.settings().arena_size;
  launch.paths = group.count;
  launch.is_first = first == 0;
  launch.loss = loss;
  launch.correct = correct;
  launch.images = minibatch.count;
  launch.loss_record = row_.loss + record;
  launch.correct_record = row_.correct + record;
  check("gradients of paths", launch_paths(launch, stream));
  move_statistics(group, minibatch.count, stream);
  const TrainingPlacement& placement = group.trainer->placement();
  for (int32_t k = 0; k < group.count; ++k) {
    const auto lane = static_cast<size_t>(k);
    const auto spans =
        trained_spans(table_, placement.lanes()[lane].schedule, placement.backward(lane).reverse);
    trained_.insert(trained_.end(), spans.begin(), spans.end());
  }
}

// Paths may have batch norms in common: one after another.
void PathTrainer::move_statistics(const Group& group, int32_t images, cudaStream_t stream) {
  const float* running = numbers(running_);
  const auto rows =
      statistics_rows(table_, group.trainer->placement(), images, group.memory, numbers(running_));
  const StatisticsRow* on_device = Uploader(group.memory + group.rows, stream).add(rows);
  for (size_t begin = 0, end = 0; begin < rows.size(); begin = end) {
    while (end < rows.size() && rows[end].lane == rows[begin].lane) ++end;
    check("running statistics",
          launch_statistics(on_device + begin, static_cast<int32_t>(end - begin), nullptr, stream));
  }
  for (const StatisticsRow& row : rows) {
    tracked_.push_back({static_cast<int32_t>(row.mean - running), row.channels});
    tracked_.push_back({static_cast<int32_t>(row.variance - running), row.channels});
  }
}

void PathTrainer::mark(const std::vector<Span>& spans, int64_t at, uint8_t mark,
                       cudaStream_t stream) const {
  std::vector<SpanRow> rows;
  for (const auto [offset, size] : union_of(spans)) rows.push_back({offset, size});
  const SpanRow* on_device = Uploader(memory_ + at, stream).add(rows);
  check("marks", launch_marks(on_device, static_cast<int32_t>(rows.size()), mark,
                              reinterpret_cast<uint8_t*>(memory_ + marks_), stream));
}

void PathTrainer::update(const Sgd& sgd, int32_t step, cudaStream_t stream) {
  const int64_t arena = table_.settings().arena_size;
  check("marks", cudaMemsetAsync(memory_ + marks_, 0, static_cast<size_t>(arena), stream));
  mark(trained_, trained_at_, kTrained, stream);
  mark(tracked_, tracked_at_, kTracked, stream);
  SgdLaunch launch = launch_of(sgd);
  launch.marks = reinterpret_cast<const uint8_t*>(memory_ + marks_);
  launch.running = numbers(running_);
  launch.gradients = numbers(total_);
  launch.weights = row_.weights;
  launch.momenta = row_.momenta;
  launch.numbers = arena;
  launch.lanes = 1;
  launch.loss_record = row_.loss + int64_t{step} * paths_;
  launch.correct_record = row_.correct + int64_t{step} * paths_;
  launch.lr = reinterpret_cast<const double*>(memory_ + lr_);
  launch.steps = most_steps_;
  launch.step = step;
  launch.diverged_at = reinterpret_cast<int32_t*>(memory_ + diverged_at_);
  launch.partial = reinterpret_cast<double*>(memory_ + partial_);
  launch.states = reinterpret_cast<SgdState*>(memory_ + state_);
  check("norms of gradients", launch_measure_paths(launch, paths_, stream));
  check("SGD", launch_updates(launch, stream));
}

}  // namespace nasfast::cuda
