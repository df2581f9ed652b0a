// SPDX-License-Identifier: MIT
#include "engine/cuda/chunk.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/checks.h"
#include "engine/cuda/error.h"
#include "engine/cuda/shared_memory.h"
#include "kernels/cuda/launches.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

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
  require(table.mixing_width() == 0,
          "mixing: wanted a table without mixed operations, as its weights have no place here");
  const auto packed = std::count_if(placement_.packed().begin(), placement_.packed().end(),
                                    [](int64_t place) { return place >= 0; });
  packs_ = placement_.take(packed * static_cast<int64_t>(sizeof(WeightRow)));
  inputs_ = placement_.take(view_inputs_.bytes());
  const Steps steps = steps_of(placement_, options.precision, {}, most_images);
  const auto norms = static_cast<int64_t>(running_norms(placement_, {}).size());
  tables_ = placement_.take(
      std::max(DeviceSteps::bytes_of(steps), norms * static_cast<int64_t>(sizeof(NormRow))));
  moments_ = placement_.take(steps.moments_bytes);
  most_shared_ = steps.most_shared();
  bytes_ = placement_.bytes();
}

void Chunk::bind(std::byte* memory, const float* arena, cudaStream_t stream) {
  require_shared_memory(most_shared_);
  addresses_ = {memory, memory + moments_, arena, nullptr};
  images_ = 0;
  pack_weights(stream);
  finish_running_norms(stream);
}

void Chunk::pack_weights(cudaStream_t stream) {
  const int32_t* inputs = Uploader(addresses_.memory + inputs_, stream).add(view_inputs_.all());
  std::vector<WeightRow> rows;
  for (size_t view = 0; view < placement_.packed().size(); ++view) {
    const int64_t packed = placement_.packed()[view];
    if (packed < 0) continue;
    const int32_t index = placement_.views().all()[view].unit;
    const Unit& unit = table_.units()[static_cast<size_t>(index)];
    rows.push_back(weight_row(unit, view_inputs_, view, inputs, addresses_.arena + unit.weight,
                              addresses_.memory + packed));
  }
  const WeightRow* uploaded = Uploader(addresses_.memory + packs_, stream).add(rows);
  check("weights", launch_pack_weights(options_.precision, uploaded,
                                       static_cast<int32_t>(rows.size()), stream));
}

void Chunk::finish_running_norms(cudaStream_t stream) {
  const std::vector<NormRow> norms = running_norms(placement_, addresses_);
  int32_t most = 1;
  for (const NormRow& norm : norms) most = std::max(most, norm.channels);
  const NormRow* rows = Uploader(addresses_.memory + tables_, stream).add(norms);
  check("batch norms", launch_norms(rows, static_cast<int32_t>(norms.size()), most, stream));
}

void Chunk::upload_steps(int32_t images, cudaStream_t stream) {
  steps_ = steps_of(placement_, options_.precision, addresses_, images);
  Uploader uploader(addresses_.memory + tables_, stream);
  rows_ = DeviceSteps::upload(steps_, uploader);
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
  const int32_t classes = table_.positions().back().out_channels;
  for (const Step& step : steps_.steps) {
    rows_.run(step, options_.precision, stream);
    if (step.heads.count == 0) continue;
    const HeadLaunch heads = rows_.heads_of(step, classes, minibatch, results);
    check("classifier", launch_heads(options_.precision, heads, stream));
  }
}

}  // namespace nasfast::cuda
