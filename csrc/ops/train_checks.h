// SPDX-License-Identifier: MIT
// Checks that the operators of training on all devices have in common.
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/training.h"
#include "ops/program_checks.h"

namespace nasfast::ops {

using OptionalTensor = std::optional<Tensor>;

// The numbers of an optional tensor like `weights`; null where it is left out.
inline float* numbers_like(const char* op, const char* name, const OptionalTensor& tensor,
                           const Tensor& weights, Place place = Place::kCpu) {
  if (!tensor.has_value()) return nullptr;
  check_place(op, name, *tensor, place);
  check_dtype(op, name, *tensor, ScalarType::Float, "float32");
  check_contiguous(op, name, *tensor);
  if (weights.dim() == 2) {
    check_shape(op, name, *tensor, {weights.size(0), weights.size(1)});
  } else {
    check_shape(op, name, *tensor, {weights.size(0)});
  }
  return tensor->mutable_data_ptr<float>();
}

inline void check_single_paths(const char* op, const ProgramTable& table) {
  require(table.mixing_width() == 0,
          std::string(op) + ": table: wanted single paths, got mixed operations");
}

inline Sgd sgd_of(const char* op, double momentum, bool nesterov, double weight_decay, double clip,
                  bool has_momentum) {
  for (const auto& [name, value] :
       {std::pair{"momentum", momentum}, std::pair{"weight_decay", weight_decay},
        std::pair{"clip", clip}}) {
    require(std::isfinite(value) && value >= 0, std::string(op) + ": " + name +
                                                    ": wanted a finite number of at least 0, got " +
                                                    std::to_string(value));
  }
  require((momentum > 0) == has_momentum,
          std::string(op) + ": momenta: wanted exactly where momentum is above 0");
  return {momentum, nesterov, weight_decay, clip};
}

// What train_lanes takes, but for how it computes.
struct LaneArguments {
  const Tensor& weights;
  const OptionalTensor& momenta;
  const OptionalTensor& gradient_sums;
  const Tensor& diverged_at;
  const Tensor& images;
  const Tensor& labels;
  const std::vector<int64_t>& sizes;
  const Tensor& lr;
};

// All of a chunk's lanes, where they belong. Labels are not read.
inline void check_train_lanes(const char* op, const ProgramTable& table, int32_t chunk,
                              const LaneArguments& given, Place place) {
  check_single_paths(op, table);
  const auto lanes = static_cast<int64_t>(table.chunk(chunk).size());
  const auto steps = static_cast<int64_t>(given.sizes.size());
  check_tensor(op, "weights", given.weights, ScalarType::Float,
               {lanes, table.settings().arena_size}, place);
  check_tensor(op, "diverged_at", given.diverged_at, ScalarType::Int, {lanes}, place);
  check_tensor(op, "lr", given.lr, ScalarType::Double, {lanes, steps}, place);
  check_images(op, "images", given.images, table, sum(op, "sizes", given.sizes), place);
  check_labels(op, given.labels, given.images, place);
  numbers_like(op, "momenta", given.momenta, given.weights, place);
  numbers_like(op, "gradient_sums", given.gradient_sums, given.weights, place);
}

inline void check_one_lane_a_chunk(const char* op, const ProgramTable& table) {
  const int32_t chunks = table.num_chunks();
  require(static_cast<size_t>(chunks) == table.lanes().size(),
          std::string(op) + ": table: wanted one lane a chunk, got " + std::to_string(chunks) +
              " chunks of " + std::to_string(table.lanes().size()) + " lanes");
}

}  // namespace nasfast::ops
