// SPDX-License-Identifier: MIT
#include "engine/cuda/chunk.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/checks.h"
#include "engine/cuda/error.h"
#include "kernels/cuda/launches.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

namespace {

template <typename Row>
int64_t bytes_of(const std::vector<Row>& rows) {
  return static_cast<int64_t>(rows.size() * sizeof(Row));
}

int64_t aligned(int64_t bytes) {
  return (bytes + Placement::kAlignment - 1) / Placement::kAlignment * Placement::kAlignment;
}

}  // namespace

Chunk::Chunk(const ProgramTable& table, const Lanes& lanes, const Options& options,
             int32_t most_images)
    : table_(table),
      options_(options),
      most_images_(most_images),
      placement_(table, lanes, options, most_images),
      view_inputs_(placement_.views()) {
  require(num_lanes() <= kMostRows, "lanes: wanted at most " + std::to_string(kMostRows) +
                                        " at a time on a CUDA device, got " +
                                        std::to_string(num_lanes()));
  const auto packed = std::count_if(placement_.packed().begin(), placement_.packed().end(),
                                    [](int64_t place) { return place >= 0; });
  packs_ = placement_.take(packed * static_cast<int64_t>(sizeof(WeightRow)));
  inputs_ = placement_.take(view_inputs_.bytes());
  const Steps steps = steps_of(table, placement_, options.precision, {}, most_images);
  const auto norms = static_cast<int64_t>(running_norms(table, placement_, {}).size());
  tables_ =
      placement_.take(std::max(table_bytes(steps), norms * static_cast<int64_t>(sizeof(NormRow))));
  moments_ = placement_.take(steps.moments_bytes);
  bytes_ = placement_.bytes();
}

int64_t Chunk::table_bytes(const Steps& steps) {
  return aligned(bytes_of(steps.terms)) + aligned(bytes_of(steps.consumers)) +
         aligned(bytes_of(steps.passes)) + aligned(bytes_of(steps.norms)) +
         aligned(bytes_of(steps.heads));
}

template <typename Row>
const Row* Chunk::upload(const std::vector<Row>& rows, int64_t& at, cudaStream_t stream) const {
  std::byte* to = addresses_.memory + at;
  at += aligned(bytes_of(rows));
  if (!rows.empty()) {
    check("tables", cudaMemcpyAsync(to, rows.data(), rows.size() * sizeof(Row),
                                    cudaMemcpyHostToDevice, stream));
  }
  return reinterpret_cast<const Row*>(to);
}

void Chunk::bind(std::byte* memory, const float* arena, cudaStream_t stream) {
  addresses_ = {memory, memory + moments_, arena, nullptr};
  images_ = 0;
  pack_weights(stream);
  finish_running_norms(stream);
}

void Chunk::pack_weights(cudaStream_t stream) {
  int64_t at = inputs_;
  const int32_t* inputs = upload(view_inputs_.all(), at, stream);
  std::vector<WeightRow> rows;
  for (size_t view = 0; view < placement_.packed().size(); ++view) {
    const int64_t packed = placement_.packed()[view];
    if (packed < 0) continue;
    const int32_t index = placement_.views().all()[view].unit;
    const Unit& unit = table_.units()[static_cast<size_t>(index)];
    rows.push_back(weight_row(unit, view_inputs_, view, inputs, addresses_.arena + unit.weight,
                              addresses_.memory + packed));
  }
  at = packs_;
  const WeightRow* uploaded = upload(rows, at, stream);
  check("weights", launch_pack_weights(options_.precision, uploaded,
                                       static_cast<int32_t>(rows.size()), stream));
}

void Chunk::finish_running_norms(cudaStream_t stream) {
  const std::vector<NormRow> norms = running_norms(table_, placement_, addresses_);
  int32_t most = 1;
  for (const NormRow& norm : norms) most = std::max(most, norm.channels);
  int64_t at = tables_;
  const NormRow* rows = upload(norms, at, stream);
  check("batch norms", launch_norms(rows, static_cast<int32_t>(norms.size()), most, stream));
}

void Chunk::upload_steps(int32_t images, cudaStream_t stream) {
  steps_ = steps_of(table_, placement_, options_.precision, addresses_, images);
  int64_t at = tables_;
  terms_ = upload(steps_.terms, at, stream);
  consumers_ = upload(steps_.consumers, at, stream);
  passes_ = upload(steps_.passes, at, stream);
  norms_ = upload(steps_.norms, at, stream);
  heads_ = upload(steps_.heads, at, stream);
  images_ = images;
}

void Chunk::run(const Minibatch& minibatch, const Results& results, cudaStream_t stream) {
  require(minibatch.count >= 1 && minibatch.count <= most_images_,
          "images: wanted 1.." + std::to_string(most_images_) + " a minibatch, got " +
              std::to_string(minibatch.count));
  if (images_ != minibatch.count) upload_steps(minibatch.count, stream);
  const Position& stem = table_.positions()[0];
  const Sides sides = placement_.sides_of(0, minibatch.count);
  check("images", launch_load_images(options_.precision, minibatch.images, sides, stem.in_channels,
                                     addresses_.memory + placement_.images(), stream));
  for (const Step& step : steps_.steps) {
    for (const PassesStep& passes : step.passes) {
      const PassLaunch launch{passes_ + passes.first, terms_,           consumers_, passes.count,
                              passes.most_tiles,      passes.most_bytes};
      check("pass", launch_passes(options_.precision, passes.columns, launch, stream));
    }
    if (step.norms.count > 0) {
      check("batch norm", launch_norms(norms_ + step.norms.first, step.norms.count,
                                       step.norms.most_channels, stream));
    }
    if (step.heads.count == 0) continue;
    HeadLaunch launch{};
    launch.heads = heads_ + step.heads.first;
    launch.terms = terms_;
    launch.labels = minibatch.labels;
    launch.num_heads = step.heads.count;
    launch.classes = table_.positions().back().out_channels;
    launch.most_channels = step.heads.most_channels;
    launch.most_terms = step.heads.most_terms;
    launch.sides = step.heads.sides;
    launch.num_images = results.num_images;
    launch.first_image = minibatch.first;
    launch.logits = results.logits;
    launch.loss = results.loss;
    launch.correct = results.correct;
    check("classifier", launch_heads(options_.precision, launch, stream));
  }
}

}  // namespace nasfast::cuda
