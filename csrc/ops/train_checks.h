// SPDX-License-Identifier: MIT
// Checks that the operators of training on all devices have in common.
#pragma once

#include <torch/csrc/stable/ops.h>

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

// What train_paths takes, but for how it computes. Labels are not read.
inline void check_train_paths(const char* op, const ProgramTable& table, const Tensor& weights,
                              const OptionalTensor& momenta, const Tensor& images,
                              const Tensor& labels, const std::vector<int64_t>& sizes,
                              Place place) {
  check_single_paths(op, table);
  check_tensor(op, "weights", weights, ScalarType::Float, {table.settings().arena_size}, place);
  check_images(op, "images", images, table, sum(op, "sizes", sizes), place);
  check_labels(op, labels, images, place);
  numbers_like(op, "momenta", momenta, weights, place);
}

// What program_gradients takes, but for how it computes.
struct GradientArguments {
  const Tensor& arena;
  const Tensor& images;
  const OptionalTensor& labels;
  const OptionalTensor& grad_logits;
  const OptionalTensor& mixing;
  const OptionalTensor& running;
};

// Labels are not read.
inline void check_program_gradients(const char* op, const ProgramTable& table, int64_t lane,
                                    int64_t classes, const GradientArguments& given, Place place) {
  const auto lanes = static_cast<int64_t>(table.lanes().size());
  require(lane >= 0 && lane < lanes, std::string(op) + ": lane: wanted 0.." +
                                         std::to_string(lanes - 1) + ", got " +
                                         std::to_string(lane));
  check_classes(op, table, classes);
  check_tensor(op, "arena", given.arena, ScalarType::Float, {table.settings().arena_size}, place);
  check_images(op, "images", given.images, table, kAny, place);
  if (given.labels.has_value()) check_labels(op, *given.labels, given.images, place);
  if (given.grad_logits.has_value()) {
    check_tensor(op, "grad_logits", *given.grad_logits, ScalarType::Float,
                 {given.images.size(0), classes}, place);
  }
  if (given.mixing.has_value()) {
    check_tensor(op, "mixing", *given.mixing, ScalarType::Float,
                 {table.num_cells(), table.mixing_width()}, place);
  }
  numbers_like(op, "running", given.running, given.arena, place);
}

// Results of program_gradients, and the gradients' numbers; null where there are none.
struct GradientTensors {
  Tensor logits, arena, mixing;
  float* of_arena;
  float* of_mixing;

  GradientTensors(const ProgramTable& table, int64_t classes, const GradientArguments& given)
      : GradientTensors(classes, table.num_cells(), table.mixing_width(),
                        given.labels.has_value() || given.grad_logits.has_value(), given) {}

 private:
  GradientTensors(int64_t classes, int64_t cells, int64_t width, bool has_gradient,
                  const GradientArguments& given)
      : logits(torch::stable::new_empty(given.images, {given.images.size(0), classes})),
        arena(torch::stable::new_empty(given.arena, {has_gradient ? given.arena.size(0) : 0})),
        mixing(torch::stable::new_empty(
            given.arena, {has_gradient && given.mixing.has_value() ? cells : 0, width})),
        of_arena(has_gradient ? arena.mutable_data_ptr<float>() : nullptr),
        of_mixing(mixing.numel() > 0 ? mixing.mutable_data_ptr<float>() : nullptr) {}
};

// The numbers of an optional tensor; null where it is left out.
template <typename T>
const T* data_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<T>() : nullptr;
}

inline void check_one_lane_a_chunk(const char* op, const ProgramTable& table) {
  const int32_t chunks = table.num_chunks();
  require(static_cast<size_t>(chunks) == table.lanes().size(),
          std::string(op) + ": table: wanted one lane a chunk, got " + std::to_string(chunks) +
              " chunks of " + std::to_string(table.lanes().size()) + " lanes");
}

}  // namespace nasfast::ops
