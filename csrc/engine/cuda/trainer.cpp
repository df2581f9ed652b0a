// SPDX-License-Identifier: MIT
#include "engine/cuda/trainer.h"

#include <algorithm>
#include <string>
#include <vector>

#include "engine/checks.h"
#include "engine/cuda/error.h"
#include "engine/cuda/shared_memory.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

namespace {

int64_t count_packs(const std::vector<int64_t>& packed) {
  return std::count_if(packed.begin(), packed.end(), [](int64_t place) { return place >= 0; });
}

}  // namespace

Trainer::Trainer(const ProgramTable& table, std::span<const int32_t> lanes, Weights weights,
                 const Options& options, int32_t most_images)
    : table_(table),
      options_(options),
      most_images_(most_images),
      placement_(table, lanes, weights, options, most_images),
      view_inputs_(placement_.views()) {
  require(!lanes.empty() && num_lanes() <= kMostRows,
          "lanes: wanted 1.." + std::to_string(kMostRows) + " at a time on a CUDA device, got " +
              std::to_string(lanes.size()));
  int64_t packs = 0;
  for (size_t lane = 0; lane < lanes.size(); ++lane) {
    packs += count_packs(placement_.lanes()[lane].packed);
    packs += count_packs(placement_.backward(lane).packed);
  }
  packs_ = placement_.take(packs * static_cast<int64_t>(sizeof(WeightRow)));
  inputs_ = placement_.take(view_inputs_.bytes());
  const Steps forward = steps_of(placement_, options.precision, {}, most_images);
  float any = 0;  // rows of mixing weights are made where their gradients are wanted
  BackwardAddresses nowhere;
  nowhere.mixing_gradient = &any;
  const BackwardSteps backward =
      backward_steps(placement_, placement_.backward_places(), view_inputs_, options.precision,
                     nowhere, most_images);
  tables_ =
      placement_.take(DeviceSteps::bytes_of(forward) + DeviceBackwardSteps::bytes_of(backward));
  moments_ = placement_.take(forward.moments_bytes);
  partial_ = placement_.take(backward.partial_bytes);
  most_shared_ = std::max(forward.most_shared(), backward.most_shared());
  bytes_ = placement_.bytes();
}

void Trainer::bind(std::byte* memory, const TrainingArrays& arrays, cudaStream_t stream) {
  require(arrays.mixing != nullptr || table_.mixing_width() == 0,
          "mixing: wanted weights, as the table has mixed operations");
  require(arrays.mixing_gradient == nullptr || num_lanes() == 1,
          "mixing: wanted one lane for its gradients, got " + std::to_string(num_lanes()));
  require_shared_memory(most_shared_);
  addresses_.forward = {memory, memory + moments_, arrays.weights, arrays.mixing};
  addresses_.partial = memory + partial_;
  addresses_.gradients = arrays.gradients;
  addresses_.mixing_gradient = arrays.mixing_gradient;
  addresses_.inputs = Uploader(memory + inputs_, stream).add(view_inputs_.all());
  images_ = 0;
  std::vector<WeightRow> rows;
  for (size_t lane = 0; lane < placement_.lanes().size(); ++lane) {
    const Network& network = placement_.lanes()[lane];
    const auto add = [&](const std::vector<int64_t>& packed, bool is_turned) {
      add_weight_rows(placement_, addresses_.forward, view_inputs_, addresses_.inputs, network,
                      packed, is_turned, rows);
    };
    add(network.packed, false);
    add(placement_.backward(lane).packed, true);
  }
  num_packs_ = static_cast<int32_t>(rows.size());
  pack_rows_ = Uploader(memory + packs_, stream).add(rows);
}

void Trainer::upload_steps(int32_t images, cudaStream_t stream) {
  forward_ = steps_of(placement_, options_.precision, addresses_.forward, images);
  backward_ = backward_steps(placement_, placement_.backward_places(), view_inputs_,
                             options_.precision, addresses_, images);
  Uploader uploader(addresses_.forward.memory + tables_, stream);
  forward_rows_ = DeviceSteps::upload(forward_, uploader);
  backward_rows_ = DeviceBackwardSteps::upload(backward_, uploader);
  images_ = images;
}

void Trainer::run(const Minibatch& minibatch, const float* logit_gradient, const Results& results,
                  cudaStream_t stream) {
  require(minibatch.count >= 1 && minibatch.count <= most_images_,
          "images: wanted 1.." + std::to_string(most_images_) + " a minibatch, got " +
              std::to_string(minibatch.count));
  if (images_ != minibatch.count) upload_steps(minibatch.count, stream);
  const bool goes_back = addresses_.gradients != nullptr;
  if (goes_back) {
    const int64_t numbers = int64_t{num_lanes()} * table_.settings().arena_size;
    check("gradients", cudaMemsetAsync(addresses_.gradients, 0,
                                       static_cast<size_t>(numbers) * sizeof(float), stream));
  }
  check("weights", launch_pack_weights(options_.precision, pack_rows_, num_packs_, stream));
  const Position& stem = table_.positions()[0];
  check("images", launch_load_images(options_.precision, minibatch.images,
                                     placement_.sides_of(0, minibatch.count), stem.in_channels,
                                     addresses_.forward.memory + placement_.images(), stream));
  const int32_t classes = table_.positions().back().out_channels;
  for (const Step& step : forward_.steps) {
    forward_rows_.run(step, options_.precision, stream);
    if (goes_back || step.heads.count == 0) continue;
    const HeadLaunch heads = forward_rows_.heads_of(step, classes, minibatch, results);
    check("classifier", launch_heads(options_.precision, heads, stream));
  }
  if (!goes_back) return;
  // Steps of the way back are those of the way forward in reverse; classifiers run in theirs.
  const size_t count = forward_.steps.size();
  for (size_t i = 0; i < count; ++i) {
    const HeadLaunch heads =
        forward_rows_.heads_of(forward_.steps[count - 1 - i], classes, minibatch, results);
    backward_rows_.run(backward_.steps[i], heads, logit_gradient, options_.precision, stream);
  }
}

}  // namespace nasfast::cuda
