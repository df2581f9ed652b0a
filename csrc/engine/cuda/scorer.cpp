// SPDX-License-Identifier: MIT
#include "engine/cuda/scorer.h"

#include <algorithm>
#include <utility>

#include "engine/checks.h"
#include "engine/cuda/error.h"

namespace nasfast::cuda {

namespace {

// Copies rows of a minibatch to where they belong among those of all images.
template <typename Number>
void unstage(const Number* from, Number* to, int64_t per_image, int64_t first, int64_t size,
             int64_t num_images, int32_t rows, cudaStream_t stream) {
  if (to == nullptr) return;
  const auto bytes = static_cast<size_t>(per_image) * sizeof(Number);
  const auto pitch = static_cast<size_t>(num_images) * bytes;
  const auto width = static_cast<size_t>(size) * bytes;
  check("results", cudaMemcpy2DAsync(to + first * per_image, pitch, from, width, width,
                                     static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, stream));
}

}  // namespace

Scorer::Scorer(const ProgramTable& table, const Lanes& lanes, const Options& options,
               const Budget& budget, Allocate allocate, size_t least_replays)
    : table_(table),
      lanes_(lanes),
      options_(options),
      least_replays_(std::max<size_t>(least_replays, 2)),
      groups_(budget, std::move(allocate)) {}

void Scorer::run(const float* arena, const Images& images, const int64_t* labels,
                 const Results& results, cudaStream_t stream) {
  check_minibatches(images);
  minibatches_.clear();
  int64_t first_image = 0;
  for (const int64_t size : images.sizes) {
    minibatches_[static_cast<int32_t>(size)].push_back(first_image);
    first_image += size;
  }
  most_images_ = minibatches_.rbegin()->first;
  most_replayed_ = 0;
  for (const auto& [size, firsts] : minibatches_) {
    if (firsts.size() >= least_replays_) most_replayed_ = size;
  }
  groups_.restart();
  for (int32_t first = 0, number = 0; first < lanes_.count; ++number) {
    // Made ready while the device is at the group before it, unless it gets other memory.
    const Group group = next_group(first, results, arena, stream);
    const bool is_all = group.lanes->num_lanes() == lanes_.count;
    group.lanes->bind({group.memory, arena}, is_all ? nullptr : &tables_[number % 2]);
    finish(stream);
    score({group, images, labels, results, stream});
    first += group.lanes->num_lanes();
  }
  finish(stream);
}

Scorer::Group Scorer::next_group(int32_t first, const Results& wanted, const float* arena,
                                 cudaStream_t stream) {
  Group group{first, nullptr, nullptr};
  const auto prepare = [&](int32_t count) {
    Lanes lanes = lanes_;
    lanes.first += first;
    lanes.count = count;
    group.lanes = std::make_unique<Chunk>(table_, lanes, options_, most_images_,
                                          Chunk::Where{groups_.memory(), arena});
    return group.lanes->bytes() + stage(count, wanted, nullptr, nullptr);
  };
  const auto fitting =
      groups_.next(lanes_.count - first, {prepare, [&] { finish(stream); },
                                          [&](int64_t bytes) {
                                            return needs_alone(lanes_.id(table_, first), bytes,
                                                               most_images_, options_);
                                          }});
  group.memory = fitting.memory;
  return group;
}

int64_t Scorer::image_numbers() const {
  return int64_t{table_.positions()[0].in_channels} * options_.height * options_.width;
}

int64_t Scorer::stage(int32_t lanes, const Results& wanted, std::byte* memory,
                      Staging* staging) const {
  const int64_t images = most_replayed_, rows = lanes * images;
  if (images == 0) return 0;
  int64_t end = 0;
  const auto take = [&]<typename Number>(Number*& place, int64_t numbers) {
    if (staging != nullptr) place = reinterpret_cast<Number*>(memory + end);
    const int64_t bytes = numbers * static_cast<int64_t>(sizeof(Number));
    end += Placement::aligned(bytes);
  };
  Staging unused{};
  Staging& to = staging != nullptr ? *staging : unused;
  take(to.images, images * image_numbers());
  take(to.labels, images);
  if (wanted.logits != nullptr) {
    take(to.results.logits, rows * table_.positions().back().out_channels);
  }
  if (wanted.loss != nullptr) take(to.results.loss, rows);
  if (wanted.correct != nullptr) take(to.results.correct, rows);
  return end;
}

Minibatch Scorer::minibatch_of(const Call& call, int64_t first, int32_t size) const {
  return {call.images.data + first * image_numbers(),
          call.labels != nullptr ? call.labels + first : nullptr, size, first};
}

Results Scorer::results_of(const Call& call) const {
  Results rows = call.results;
  const int64_t before = call.group.first * rows.num_images;
  if (rows.logits != nullptr) rows.logits += before * table_.positions().back().out_channels;
  if (rows.loss != nullptr) rows.loss += before;
  if (rows.correct != nullptr) rows.correct += before;
  return rows;
}

void Scorer::score(const Call& call) {
  Chunk& lanes = *call.group.lanes;
  lanes.upload(call.stream);
  // The largest first, as its tables are there.
  for (auto at = minibatches_.rbegin(); at != minibatches_.rend(); ++at) {
    const auto& [size, firsts] = *at;
    if (firsts.size() >= least_replays_) {
      replay(call, firsts, size);
      continue;
    }
    for (const int64_t first : firsts) {
      lanes.run(minibatch_of(call, first, size), results_of(call), call.stream);
    }
  }
}

void Scorer::replay(const Call& call, const std::vector<int64_t>& minibatches, int32_t size) {
  Chunk& lanes = *call.group.lanes;
  // The first is run as it stands: tables of this size and kernels are on the device then, which
  // nothing that is recorded could bring there.
  lanes.run(minibatch_of(call, minibatches[0], size), results_of(call), call.stream);
  Staging staging{};
  stage(lanes.num_lanes(), call.results, call.group.memory + lanes.bytes(), &staging);
  staging.results.num_images = size;
  const int64_t* labels = call.labels != nullptr ? staging.labels : nullptr;
  graphs_.emplace_back([&](cudaStream_t stream) {
    lanes.run({staging.images, labels, size, 0}, staging.results, stream);
  });
  const Results to = results_of(call);
  const auto image_bytes = static_cast<size_t>(image_numbers()) * sizeof(float);
  const auto copies = static_cast<size_t>(size);
  for (size_t k = 1; k < minibatches.size(); ++k) {
    const int64_t first = minibatches[k];
    const Minibatch from = minibatch_of(call, first, size);
    check("images", cudaMemcpyAsync(staging.images, from.images, copies * image_bytes,
                                    cudaMemcpyDeviceToDevice, call.stream));
    if (labels != nullptr) {
      check("labels", cudaMemcpyAsync(staging.labels, from.labels, copies * sizeof(int64_t),
                                      cudaMemcpyDeviceToDevice, call.stream));
    }
    graphs_.back().launch(call.stream);
    const int32_t rows = lanes.num_lanes(), classes = table_.positions().back().out_channels;
    const int64_t images = to.num_images;
    unstage(staging.results.logits, to.logits, classes, first, size, images, rows, call.stream);
    unstage(staging.results.loss, to.loss, 1, first, size, images, rows, call.stream);
    unstage(staging.results.correct, to.correct, 1, first, size, images, rows, call.stream);
  }
}

void Scorer::finish(cudaStream_t stream) {
  check("scores", cudaStreamSynchronize(stream));
  graphs_.clear();
}

}  // namespace nasfast::cuda
