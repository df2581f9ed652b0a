// SPDX-License-Identifier: MIT
// Where everything of a chunk lies in the memory of a device.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "kernels/cuda/layout.h"
#include "program/program_table.h"
#include "program/schedule.h"

namespace nasfast::cuda {

// Whose weights lanes have.
enum class Weights { kOwn, kShared };

// Lanes that run side by side: of a chunk, or of the whole table, each with weights of its own.
struct Lanes {
  int32_t chunk = 0;
  int32_t first = 0, count = 0;  // among the chunk's, or the table's
  Weights weights = Weights::kShared;

  int32_t id(const ProgramTable& table, int32_t index) const {
    if (weights == Weights::kOwn) return first + index;
    return table.chunk(chunk)[static_cast<size_t>(first + index)];
  }
};

inline Lanes lanes_of_chunk(const ProgramTable& table, int32_t chunk) {
  return {chunk, 0, static_cast<int32_t>(table.chunk(chunk).size())};
}
inline Lanes lanes_with_own_weights(const ProgramTable& table) {
  return {0, 0, static_cast<int32_t>(table.lanes().size()), Weights::kOwn};
}

struct Options {
  kernels::cuda::Precision precision = kernels::cuda::Precision::kFp32;
  int32_t height = 0, width = 0;  // of images
  BatchNormMode fixed = kBatch;   // of stem and reductions
  BatchNormMode last = kBatch;    // of the batch norm before the classifier
};

// What lanes compute with, whether a program table says it or an operator of its own.
struct Model {
  std::span<const Unit> units;
  Geometry geometry;
  std::array<BatchNormMode, 3> modes = {kBatch, kBatch, kBatch};  // by Part
};

// A schedule, and where what it computes with lies, in bytes from the memory's beginning.
struct Network {
  Schedule schedule;
  std::vector<int64_t> tensors;     // [tensors] values; -1: nobody reads it
  std::vector<int64_t> affine;      // [norms] [2][depth_of(channels)] floats: scale, shift
  std::vector<int64_t> statistics;  // [norms] [3][depth_of(channels)] doubles, as NormRow says;
                                    // empty: nobody wants them
  std::vector<int64_t> packed;      // [views] weights; -1: it reads them not
  // Its weight set, and the gradients of that, in floats from the first ones.
  int64_t weights = 0, gradients = 0;
};

// Lanes run side by side: each has buffers of its own, as large as its tensors, that a pass may
// write once all tiles of the one before are done.
class Placement {
 public:
  static constexpr int64_t kAlignment = 256;
  static constexpr int64_t aligned(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  Placement(const ProgramTable& table, const Lanes& lanes, const Options& options,
            int32_t most_images);

  // What the lanes have in common; null: nothing.
  const Network* shared() const { return shared_.tensors.empty() ? nullptr : &shared_; }
  const std::vector<Network>& lanes() const { return lanes_; }
  const Unit& unit(int32_t index) const { return model_.units[static_cast<size_t>(index)]; }
  const WeightViews& views() const { return views_; }
  // Where the weights of a view lie that all lanes read, by view; -1: nobody does. Empty where each
  // lane has its own.
  const std::vector<int64_t>& packed() const { return packed_; }
  int64_t images() const { return images_; }  // the minibatch, as a value
  int64_t bytes() const { return bytes_; }
  int64_t take(int64_t bytes);

  // Scale and shift of a tensor of a network, -1 where it has no batch norm.
  int64_t affine_of(const Network& network, const StoredTensor& tensor) const;
  // Whether a batch norm takes its statistics from the minibatch.
  bool measures(const Network& network, int32_t norm) const;
  kernels::cuda::Sides sides_of(int32_t halvings, int32_t images) const;
  int32_t padding() const { return model_.geometry.padding; }

 protected:
  // With nothing yet.
  Placement(const Model& model, kernels::cuda::Precision precision, int32_t most_images);
  // With nothing but room for the images.
  Placement(const ProgramTable& table, const Options& options, int32_t most_images);

  int64_t take_value(int32_t halvings, int32_t channels);
  int64_t value_bytes(int32_t halvings, int32_t channels) const;
  int64_t packed_bytes(const Unit& unit, int32_t inputs) const;
  // A lane's own weights, in the layout of the kernels.
  void place_packed(Network& lane);

  const Model model_;
  const kernels::cuda::Precision precision_;
  const int32_t most_images_;
  WeightViews views_;
  std::vector<Network> lanes_;

 private:
  void place_chunk(const ProgramTable& table, const Lanes& lanes, const Options& options);
  void place_own(const ProgramTable& table, const Lanes& lanes, const Options& options);
  void place(Network& network, bool is_shared);
  void place_weights(Network& network);

  SharedSchedule shared_schedule_;
  Network shared_;
  std::vector<int64_t> packed_;  // [views] -1: nobody reads it
  int64_t images_ = 0, bytes_ = 0;
};

}  // namespace nasfast::cuda
