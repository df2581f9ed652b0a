// SPDX-License-Identifier: MIT
#include "engine/cuda/placement.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/checks.h"

namespace nasfast::cuda {

using namespace kernels::cuda;

namespace {

Model model_of(const ProgramTable& table, const Options& options) {
  table.check_modes(options.fixed, options.last);
  return {table.units(),
          Geometry(options.height, options.width, table.positions().back().halvings,
                   table.settings().padding),
          {static_cast<BatchNormMode>(table.settings().cell_mode), options.fixed, options.last}};
}

}  // namespace

Placement::Placement(const Model& model, Precision precision, int32_t most_images)
    : model_(model), precision_(precision), most_images_(most_images), views_(model.units.size()) {
  require(std::ranges::find(model.modes, kRecalibrate) == model.modes.end(),
          "batch norm: wanted statistics of the minibatch or running ones on a CUDA device, got "
          "recalibrate");
}

Placement::Placement(const ProgramTable& table, const Options& options, int32_t most_images)
    : Placement(model_of(table, options), options.precision, most_images) {
  images_ = take_value(0, table.positions()[0].in_channels);
}

Placement::Placement(const ProgramTable& table, const Lanes& lanes, const Options& options,
                     int32_t most_images)
    : Placement(table, options, most_images) {
  const Lanes all = lanes.weights == Weights::kOwn ? lanes_with_own_weights(table)
                                                   : lanes_of_chunk(table, lanes.chunk);
  require(lanes.first >= 0 && lanes.count >= 1 && lanes.first + int64_t{lanes.count} <= all.count,
          "lanes: wanted some of " + std::to_string(all.count) + ", got " +
              std::to_string(lanes.count) + " from " + std::to_string(lanes.first) + " on");
  if (lanes.weights == Weights::kOwn) {
    place_own(table, lanes, options);
  } else {
    place_chunk(table, lanes, options);
  }
}

void Placement::place_chunk(const ProgramTable& table, const Lanes& lanes, const Options& options) {
  shared_schedule_ = schedule_shared(table, lanes.chunk, views_);
  shared_.schedule = shared_schedule_.schedule;
  for (int32_t k = 0; k < lanes.count; ++k) {
    const int32_t network = table.lanes()[static_cast<size_t>(lanes.id(table, k))].network;
    lanes_.emplace_back().schedule = schedule_lane(
        table, network, shared_schedule_, options.last != kRunning, views_, Reuse::kBetweenPasses);
  }
  packed_.assign(views_.all().size(), -1);
  place(shared_, true);
  place_weights(shared_);
  for (Network& lane : lanes_) {
    place(lane, false);
    place_weights(lane);
  }
}

void Placement::place_own(const ProgramTable& table, const Lanes& lanes, const Options& options) {
  for (int32_t k = 0; k < lanes.count; ++k) {
    const int32_t lane = lanes.id(table, k);
    const int32_t network = table.lanes()[static_cast<size_t>(lane)].network;
    Network& own = lanes_.emplace_back();
    own.schedule =
        schedule_alone(table, network, options.last != kRunning, views_, Reuse::kBetweenPasses);
    own.weights = int64_t{lane} * table.settings().arena_size;
  }
  for (Network& lane : lanes_) {
    place(lane, false);
    place_packed(lane);
  }
}

int64_t Placement::take(int64_t bytes) {
  const int64_t begin = bytes_;
  bytes_ += aligned(bytes);
  return begin;
}

Sides Placement::sides_of(int32_t halvings, int32_t images) const {
  const Geometry::Size& size = model_.geometry[halvings];
  return {images, size.height, size.width};
}

int64_t Placement::value_bytes(int32_t halvings, int32_t channels) const {
  const Sides sides = sides_of(halvings, most_images_);
  return int64_t{sides.images} * sides.height * sides.width * pitch_of(channels) *
         number_bytes(precision_);
}

int64_t Placement::take_value(int32_t halvings, int32_t channels) {
  return take(value_bytes(halvings, channels));
}

void Placement::place(Network& network, bool is_shared) {
  const Schedule& schedule = network.schedule;
  const auto buffer_of = [&](const StoredTensor& tensor) {
    return static_cast<size_t>(tensor.is_wide ? schedule.num_buffers + tensor.buffer
                                              : tensor.buffer);
  };
  std::vector<int64_t> buffers(
      static_cast<size_t>(schedule.num_buffers + schedule.num_wide_buffers));
  for (const StoredTensor& tensor : schedule.tensors) {
    if (tensor.buffer < 0) continue;
    int64_t& size = buffers[buffer_of(tensor)];
    size = std::max(size, value_bytes(tensor.halvings, tensor.channels));
  }
  for (int64_t& buffer : buffers) buffer = take(buffer);
  for (const StoredTensor& tensor : schedule.tensors) {
    if (tensor.buffer >= 0) {
      network.tensors.push_back(buffers[buffer_of(tensor)]);
    } else if (tensor.external < 0) {
      network.tensors.push_back(-1);  // a value that need not be kept after all
    } else if (is_shared) {
      network.tensors.push_back(take_value(tensor.halvings, tensor.channels));
    } else {
      const auto slot = static_cast<size_t>(tensor.external);
      const auto of_shared = static_cast<size_t>(shared_schedule_.tensor_of_slot[slot]);
      network.tensors.push_back(shared_.tensors[of_shared]);
    }
  }
  for (const Norm& norm : schedule.norms) {
    network.affine.push_back(take(int64_t{2} * depth_of(norm.channels) * 4));
  }
}

int64_t Placement::packed_bytes(const Unit& unit, int32_t inputs) const {
  return int64_t{unit.kernel} * unit.kernel * depth_of(unit.out_channels) * depth_of(inputs) *
         number_bytes(precision_);
}

void Placement::place_weights(Network& network) {
  network.packed.assign(views_.all().size(), -1);
  for (const Pass& pass : network.schedule.passes) {
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.use != Use::kConv && consumer.use != Use::kShortcut) continue;
      int64_t& packed = packed_[static_cast<size_t>(consumer.view)];
      if (packed < 0) packed = take(packed_bytes(unit(consumer.unit), pass.channels));
      network.packed[static_cast<size_t>(consumer.view)] = packed;
    }
  }
}

void Placement::place_packed(Network& lane) {
  lane.packed.assign(views_.all().size(), -1);
  for (const Pass& pass : lane.schedule.passes) {
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.use != Use::kConv && consumer.use != Use::kShortcut) continue;
      lane.packed[static_cast<size_t>(consumer.view)] =
          take(packed_bytes(unit(consumer.unit), pass.channels));
    }
  }
}

int64_t Placement::affine_of(const Network& network, const StoredTensor& tensor) const {
  if (tensor.norm < 0) return -1;
  if (tensor.external < 0) return network.affine[static_cast<size_t>(tensor.norm)];
  const StoredTensor& shared = shared_schedule_.tensor_of(tensor.external);
  return shared_.affine[static_cast<size_t>(shared.norm)];
}

bool Placement::measures(const Network& network, int32_t norm) const {
  if (norm < 0) return false;
  const Part part = network.schedule.norms[static_cast<size_t>(norm)].part;
  return model_.modes[static_cast<size_t>(part)] == kBatch;
}

}  // namespace nasfast::cuda
