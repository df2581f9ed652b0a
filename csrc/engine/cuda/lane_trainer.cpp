// SPDX-License-Identifier: MIT
#include "engine/cuda/lane_trainer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/checks.h"
#include "engine/cuda/error.h"

namespace nasfast::cuda {

namespace {

template <typename Number>
Number* row_of(Number* rows, int64_t row, int64_t width) {
  return rows != nullptr ? rows + row * width : nullptr;
}

}  // namespace

LaneTrainer::LaneTrainer(const ProgramTable& table, int32_t chunk, const Options& options,
                         const Budget& budget, Allocate allocate)
    : table_(table), chunk_(chunk), options_(options), groups_(budget, std::move(allocate)) {}

LaneTrainer::Group LaneTrainer::next_group(int32_t first, int32_t most_images,
                                           cudaStream_t stream) {
  const auto left = table_.chunk(chunk_).subspan(static_cast<size_t>(first));
  Group group{first, 0, nullptr, nullptr};
  const auto prepare = [&](int32_t count) {
    group.tuner = std::make_unique<FineTuner>(table_, left.first(static_cast<size_t>(count)),
                                              options_, most_images);
    return group.tuner->bytes();
  };
  const auto fitting = groups_.next(
      static_cast<int32_t>(left.size()),
      {prepare, [&] { check("training", cudaStreamSynchronize(stream)); },
       [&](int64_t bytes) { return needs_alone(left[0], bytes, most_images, options_); }});
  group.count = fitting.count;
  group.memory = fitting.memory;
  return group;
}

void LaneTrainer::run(const TrainedLanes& lanes, const Images& images, const int64_t* labels,
                      const Sgd& sgd, const Steplog& log, int32_t first_step, cudaStream_t stream) {
  check_minibatches(images);
  check_running_statistics(table_, images, options_.height, options_.width);
  const auto most_images =
      static_cast<int32_t>(*std::max_element(images.sizes.begin(), images.sizes.end()));
  const auto count = static_cast<int32_t>(table_.chunk(chunk_).size());
  const auto arena = static_cast<int64_t>(table_.settings().arena_size);
  const int64_t image =
      int64_t{table_.positions()[0].in_channels} * options_.height * options_.width;
  groups_.restart();
  for (int32_t first = 0; first < count;) {
    const Group group = next_group(first, most_images, stream);
    group.tuner->bind(group.memory,
                      {row_of(lanes.weights, first, arena), row_of(lanes.momenta, first, arena),
                       row_of(lanes.gradient_sums, first, arena), lanes.diverged_at + first},
                      stream);
    const Steplog records = {log.steps,
                             row_of(log.lr, first, log.steps),
                             row_of(log.loss, first, log.steps),
                             row_of(log.correct, first, log.steps),
                             row_of(log.gradient_l1, first, log.steps),
                             row_of(log.gradient_sum_l1, first, log.steps)};
    int64_t at = 0;
    for (size_t step = 0; step < images.sizes.size(); ++step) {
      const int64_t size = images.sizes[step];
      group.tuner->run({images.data + at * image, labels + at, static_cast<int32_t>(size), at}, sgd,
                       records, static_cast<int32_t>(step), first_step, stream);
      at += size;
    }
    first += group.count;
  }
  check("training", cudaStreamSynchronize(stream));
}

}  // namespace nasfast::cuda
