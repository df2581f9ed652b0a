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
             int32_t most_images, const Where& expected)
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
  // Rows hold the address of the moments, so these come first: how many there are, steps tell.
  moments_ = placement_.bytes();
  make_steps(expected, most_images);
  placement_.take(steps_.moments_bytes);
  tables_ = placement_.take(Uploader::bytes_of(view_inputs_.all()) +
                            Uploader::bytes_of(pack_rows(nullptr)) +
                            Uploader::bytes_of(running_norms(placement_, {})));
  steps_begin_ = placement_.take(DeviceSteps::bytes_of(steps_));
  most_shared_ = steps_.most_shared();
  bytes_ = placement_.bytes();
}

void Chunk::make_steps(const Where& where, int32_t images) {
  images_ = images;
  addresses_ = {where.memory, where.memory != nullptr ? where.memory + moments_ : nullptr,
                where.arena, nullptr};
  steps_ = steps_of(placement_, options_.precision, addresses_, images);
}

// How weights get into the layout of the kernels; `inputs`: where those of views lie.
std::vector<WeightRow> Chunk::pack_rows(const int32_t* inputs) const {
  std::vector<WeightRow> rows;
  const auto add = [&](const std::vector<int64_t>& packed, const Network& network) {
    add_weight_rows(placement_, addresses_, view_inputs_, inputs, network, packed, false, rows);
  };
  add(placement_.packed(), {});
  if (!placement_.packed().empty()) return rows;
  for (const Network& lane : placement_.lanes()) add(lane.packed, lane);
  return rows;
}

void Chunk::bind(const Where& where, HostBuffer* host) {
  require_shared_memory(most_shared_);
  if (where != this->where() || images_ != most_images_) make_steps(where, most_images_);
  const auto size = static_cast<size_t>(bytes_ - tables_);
  gathered_.emplace(where.memory + tables_, host != nullptr ? host->reserve(size) : nullptr);
  const int32_t* inputs = gathered_->add(view_inputs_.all());
  const std::vector<WeightRow> packs = pack_rows(inputs);
  const std::vector<NormRow> norms = running_norms(placement_, addresses_);
  preparation_ = {inputs,
                  gathered_->add(packs),
                  gathered_->add(norms),
                  static_cast<int32_t>(packs.size()),
                  static_cast<int32_t>(norms.size()),
                  1};
  for (const NormRow& norm : norms) {
    preparation_.most_channels = std::max(preparation_.most_channels, norm.channels);
  }
  rows_ = DeviceSteps::upload(steps_, *gathered_);
}

void Chunk::upload(cudaStream_t stream) {
  gathered_->copy(stream);
  check("weights", launch_pack_weights(options_.precision, preparation_.packs,
                                       preparation_.num_packs, stream));
  check("batch norms", launch_norms(preparation_.norms, preparation_.num_norms,
                                    preparation_.most_channels, stream));
}

void Chunk::run(const Minibatch& minibatch, const Results& results, cudaStream_t stream) {
  require(minibatch.count >= 1 && minibatch.count <= most_images_,
          "images: wanted 1.." + std::to_string(most_images_) + " a minibatch, got " +
              std::to_string(minibatch.count));
  if (images_ != minibatch.count) {
    make_steps(where(), minibatch.count);
    Uploader uploader(addresses_.memory + steps_begin_, stream);
    rows_ = DeviceSteps::upload(steps_, uploader);
  }
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
