// SPDX-License-Identifier: MIT
#include "engine/engine.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "engine/checks.h"
#include "engine/executor.h"
#include "engine/loaded_images.h"
#include "engine/loss.h"
#include "engine/packed_weights.h"

namespace nasfast {

namespace {

using kernels::cpu::Kernels;
using kernels::cpu::Precision;
using kernels::cpu::Storage;

// Everything of a chunk that is there before its first minibatch.
class Chunk {
 public:
  Chunk(const ProgramTable& table, int32_t chunk, const float* arena, const RunOptions& options)
      : options_(options),
        kernels_(kernels::cpu::kernels_of(options.isa, options.precision)),
        geometry_(options.height, options.width, table.positions().back().halvings,
                  table.settings().padding),
        table_(table),
        modes_{static_cast<BatchNormMode>(table.settings().cell_mode), options.fixed, options.last},
        views_(table.units().size()),
        shared_schedule_(schedule_shared(table, chunk, views_)),
        weights_(table.units(), views_, kernels_, geometry_),
        context_{table.positions(), table.units(), kernels_, value_storage(),
                 geometry_,         arena,         {},       {modes_[0], modes_[1], modes_[2]}} {
    weights_.include(shared_schedule_.schedule);
    for (const int32_t lane : table.chunk(chunk)) {
      const int32_t network = table.lanes()[static_cast<size_t>(lane)].network;
      lanes_.push_back(
          schedule_lane(table, network, shared_schedule_, options.last != kRunning, views_));
      weights_.include(lanes_.back());
    }
    weights_.pack(arena);
    context_.packed = weights_.pointers();
    order_ = longest_first();
  }

  bool recalibrates() const { return std::find(modes_, modes_ + 3, kRecalibrate) != modes_ + 3; }
  size_t num_lanes() const { return lanes_.size(); }

  // Runs all lanes on minibatches that go through the network at the same time. `logits`: [lane]
  // rows of `lane_stride` floats; null while recording.
  void run(const float* images, std::span<const int64_t> sizes, bool recording, Team& team,
           float* logits, int64_t lane_stride);

  // Makes room for batches of these many blocks and minibatches.
  void reserve(int32_t blocks, int32_t minibatches, Team& team);
  int64_t bytes() const;

 private:
  Storage value_storage() const {
    return options_.precision == Precision::kBf16 ? Storage::kPair : Storage::kFloat;
  }
  std::vector<size_t> longest_first() const;
  SharedValues run_shared(const Batch& batch, bool recording, Team& team);

  const RunOptions& options_;
  const Kernels& kernels_;
  const Geometry geometry_;
  const ProgramTable& table_;
  const BatchNormMode modes_[3];
  WeightViews views_;
  const SharedSchedule shared_schedule_;
  std::vector<Schedule> lanes_;
  std::vector<size_t> order_;  // in which threads take the lanes
  PackedWeights weights_;
  Context context_;
  std::vector<Recorded> recorded_;
  Recorded shared_recorded_;
  Memory images_, shared_;
  std::vector<float> shared_scales_;
  std::vector<SharedValues::Place> places_;  // of shared tensors, by slot
  std::unique_ptr<Executor> shared_executor_;
  std::vector<std::unique_ptr<Executor>> executors_;
};

void Chunk::reserve(int32_t blocks, int32_t minibatches, Team& team) {
  images_ = Memory(blocks * image_block_bytes(table_, options_, kernels_));
  const auto slots = static_cast<int64_t>(shared_schedule_.expressions.size());
  int64_t end = 0;
  std::vector<int64_t> begins;
  for (int32_t slot = 0; slot < slots; ++slot) {
    const int32_t channels = shared_schedule_.tensor_of(slot).channels;
    places_.push_back({nullptr, geometry_.block_bytes(context_.value, 0, channels)});
    begins.push_back(end);
    end += places_.back().block_stride * blocks;
  }
  shared_ = Memory(end);
  for (size_t slot = 0; slot < places_.size(); ++slot) {
    places_[slot].data = shared_.data() + begins[slot];
  }
  Limits limits;
  limits.blocks = blocks;
  limits.minibatches = minibatches;
  Limits of_shared = limits;
  of_shared.include(shared_schedule_.schedule);
  for (const Schedule& lane : lanes_) limits.include(lane);
  // Lane by lane where there are enough of them, otherwise the threads share the blocks of a lane.
  const bool by_lane = num_lanes() >= static_cast<size_t>(team.size());
  shared_executor_ = std::make_unique<Executor>(context_, of_shared, team.size());
  for (int32_t i = 0; i < (by_lane ? team.size() : 1); ++i) {
    executors_.push_back(std::make_unique<Executor>(context_, limits, by_lane ? 1 : team.size()));
  }
  shared_scales_.resize(
      static_cast<size_t>(slots * minibatches * 2 * executors_[0]->channel_stride()));
  recorded_.resize(lanes_.size());
}

int64_t Chunk::bytes() const {
  int64_t total = images_.size() + shared_.size() + weights_.bytes() + shared_executor_->bytes();
  for (const auto& executor : executors_) total += executor->bytes();
  return total;
}

// The lanes by their arithmetic, so that no thread begins a long one when the others are done.
std::vector<size_t> Chunk::longest_first() const {
  std::vector<double> work(lanes_.size(), 0);
  for (size_t lane = 0; lane < lanes_.size(); ++lane) {
    for (const Pass& pass : lanes_[lane].passes) {
      for (const Consumer& consumer : pass.consumers) {
        if (consumer.use != Use::kConv) continue;
        const StoredTensor& out = lanes_[lane].tensors[static_cast<size_t>(consumer.out)];
        const auto [height, width] = geometry_[out.halvings];
        work[lane] +=
            1.0 * height * width * pass.channels * out.channels * consumer.kernel * consumer.kernel;
      }
    }
  }
  std::vector<size_t> order(lanes_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return work[a] > work[b]; });
  return order;
}

// Computes what the lanes share: all threads work on one expression after another.
SharedValues Chunk::run_shared(const Batch& batch, bool recording, Team& team) {
  SharedValues values;
  values.places = places_;
  shared_executor_->run(shared_schedule_.schedule, batch, values, images_.data(), &shared_recorded_,
                        recording, &team, nullptr);
  const int64_t stride = executors_[0]->channel_stride();
  values.channel_stride = stride;
  values.minibatches = batch.num_minibatches();
  values.scales = shared_scales_.data();
  // The shared executor's are wider where images have more channels than any stage.
  const int64_t own = shared_executor_->channel_stride(), count = std::min(own, stride);
  for (size_t slot = 0; slot < shared_schedule_.expressions.size(); ++slot) {
    const int32_t norm = shared_schedule_.tensor_of(static_cast<int32_t>(slot)).norm;
    for (int32_t m = 0; norm >= 0 && m < batch.num_minibatches(); ++m) {
      const float* from = shared_executor_->affine(norm, m);
      float* to = shared_scales_.data() + values.scale_offset(static_cast<int32_t>(slot), m);
      std::copy_n(from, count, to);
      std::copy_n(from + own, count, to + stride);
    }
  }
  return values;
}

void Chunk::run(const float* images, std::span<const int64_t> sizes, bool recording, Team& team,
                float* logits, int64_t lane_stride) {
  const Batch batch(sizes);
  load_images(table_, options_, kernels_, images, batch, images_.data(), team);
  const SharedValues shared = run_shared(batch, recording, team);
  std::vector<std::vector<float>> unwanted(executors_.size());
  const int64_t numbers =
      (batch.first_image.back() + batch.images.back()) * table_.positions().back().out_channels;
  for (auto& logits_of_thread : unwanted) {
    if (logits == nullptr) logits_of_thread.resize(static_cast<size_t>(numbers));
  }
  const auto run_lane = [&](int32_t thread, size_t lane, Team* share) {
    const auto t = static_cast<size_t>(thread);
    float* out =
        logits != nullptr ? logits + static_cast<int64_t>(lane) * lane_stride : unwanted[t].data();
    executors_[t]->run(lanes_[lane], batch, shared, nullptr, &recorded_[lane], recording, share,
                       out);
  };
  if (executors_.size() == static_cast<size_t>(team.size())) {
    team.run(static_cast<int64_t>(num_lanes()), [&](int32_t thread, int64_t lane) {
      run_lane(thread, order_[static_cast<size_t>(lane)], nullptr);
    });
  } else {
    for (size_t lane = 0; lane < num_lanes(); ++lane) run_lane(0, lane, &team);
  }
}

void check(const ProgramTable& table, int32_t chunk, const Images& images, const int64_t* labels,
           const Images& calibration, const RunOptions& options, const RunResults& results) {
  require(chunk >= 0 && chunk < table.num_chunks(), "chunk: wanted 0.." +
                                                        std::to_string(table.num_chunks() - 1) +
                                                        ", got " + std::to_string(chunk));
  check_threads(options);
  require(options.height >= 1 && options.height <= kMaxSide && options.width >= 1 &&
              options.width <= kMaxSide,
          "images: wanted 1x1 to 65536x65536, got " + std::to_string(options.height) + "x" +
              std::to_string(options.width));
  check_minibatches(images);
  check_sizes(calibration);
  table.check_modes(options.fixed, options.last);
  if (results.loss == nullptr && results.correct == nullptr) return;
  require(labels != nullptr, "labels: wanted for loss and correctness");
  check_labels(table, images, labels);
}

}  // namespace

int64_t run_chunk(const ProgramTable& table, int32_t chunk, const float* arena,
                  const Images& images, const int64_t* labels, const Images& calibration,
                  const RunOptions& options, const RunResults& results) {
  check(table, chunk, images, labels, calibration, options, results);
  Chunk work(table, chunk, arena, options);
  const Kernels& kernels = kernels::cpu::kernels_of(options.isa, options.precision);
  Team team(options.threads, kernels.enter_thread, kernels.leave_thread);
  const Images& measured = calibration.data != nullptr ? calibration : images;
  int32_t blocks = 0;
  for (const int64_t size : images.sizes) {
    blocks = std::max(blocks, Batch({&size, 1}).num_blocks());
  }
  if (work.recalibrates()) {
    const int32_t all = Batch(measured.sizes).num_blocks();
    work.reserve(std::max(blocks, all), static_cast<int32_t>(measured.sizes.size()), team);
    work.run(measured.data, measured.sizes, true, team, nullptr, 0);
  } else {
    work.reserve(blocks, 1, team);
  }
  const Position& stem = table.positions()[0];
  const int32_t classes = table.positions().back().out_channels;
  const int64_t image = int64_t{stem.in_channels} * options.height * options.width;
  const int64_t most = *std::max_element(images.sizes.begin(), images.sizes.end());
  std::vector<float> logits(work.num_lanes() * static_cast<size_t>(most * classes));
  const int64_t count = images.count();
  int64_t begin = 0;
  for (const int64_t size : images.sizes) {
    work.run(images.data + begin * image, {&size, 1}, false, team, logits.data(), most * classes);
    team.run(static_cast<int64_t>(work.num_lanes()), [&](int32_t, int64_t lane) {
      const float* rows = logits.data() + lane * most * classes;
      const int64_t at = lane * count + begin;
      if (results.logits != nullptr)
        std::copy_n(rows, size * classes, results.logits + at * classes);
      for (int64_t i = 0; i < size && labels != nullptr; ++i) {
        const CrossEntropy entropy = cross_entropy(rows + i * classes, classes, labels[begin + i]);
        if (results.loss != nullptr) results.loss[at + i] = static_cast<float>(entropy.loss);
        if (results.correct != nullptr) results.correct[at + i] = entropy.correct;
      }
    });
    begin += size;
  }
  return work.bytes();
}

}  // namespace nasfast
