// SPDX-License-Identifier: MIT
// Operators of lanes with private weights and of training.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "engine/team.h"
#include "engine/training.h"
#include "ops/train_checks.h"

namespace nasfast::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> train_lanes_cpu(
    const Tensor& table, const Tensor& weights, OptionalTensor momenta,
    OptionalTensor gradient_sums, const Tensor& diverged_at, const Tensor& images,
    const Tensor& labels, std::vector<int64_t> sizes, const Tensor& lr, int64_t chunk,
    int64_t first_step, double momentum, bool nesterov, double weight_decay, double clip,
    std::string precision, int64_t threads, int64_t memory) {
  const char* op = "train_lanes";
  const ProgramTable program = parse(op, table);
  const int32_t k = check_chunk(op, program, chunk);
  check_memory(op, memory);  // the table's chunks are made for it
  const RunOptions options = options_of(op, images, precision, "batch", "batch", threads);
  check_train_lanes(op, program, k,
                    {weights, momenta, gradient_sums, diverged_at, images, labels, sizes, lr},
                    Place::kCpu);
  const int64_t lanes = lr.size(0), steps = lr.size(1);
  const TrainedWeights trained = {weights.mutable_data_ptr<float>(),
                                  numbers_like(op, "momenta", momenta, weights),
                                  numbers_like(op, "gradient_sums", gradient_sums, weights)};
  const Sgd sgd = sgd_of(op, momentum, nesterov, weight_decay, clip, momenta.has_value());
  Tensor loss = torch::stable::new_empty(lr, {lanes, steps});
  Tensor correct = torch::stable::new_empty(lr, {lanes, steps}, ScalarType::Long);
  Tensor l1 = torch::stable::new_empty(lr, {lanes, steps});
  Tensor sum_l1 = torch::stable::new_empty(lr, {gradient_sums.has_value() ? lanes : 0, steps});
  guarded(op, [&] {
    train_lanes(program, k, trained, {images.const_data_ptr<float>(), sizes},
                labels.const_data_ptr<int64_t>(), lr.const_data_ptr<double>(), sgd, options,
                static_cast<int32_t>(first_step), diverged_at.mutable_data_ptr<int32_t>(),
                {loss.mutable_data_ptr<double>(), correct.mutable_data_ptr<int64_t>(),
                 l1.mutable_data_ptr<double>(),
                 gradient_sums.has_value() ? sum_l1.mutable_data_ptr<double>() : nullptr});
  });
  return {loss, correct, l1, sum_l1};
}

std::tuple<Tensor, Tensor, Tensor> train_paths_cpu(const Tensor& table, const Tensor& weights,
                                                   OptionalTensor momenta, const Tensor& images,
                                                   const Tensor& labels, std::vector<int64_t> sizes,
                                                   std::vector<int64_t> lanes, int64_t paths,
                                                   double lr, double momentum, bool nesterov,
                                                   double weight_decay, double clip,
                                                   std::string precision, int64_t threads) {
  const char* op = "train_paths";
  const ProgramTable program = parse(op, table);
  const RunOptions options = options_of(op, images, precision, "batch", "batch", threads);
  check_train_paths(op, program, weights, momenta, images, labels, sizes, Place::kCpu);
  const TrainedWeights trained = {weights.mutable_data_ptr<float>(),
                                  numbers_like(op, "momenta", momenta, weights), nullptr};
  const Sgd sgd = sgd_of(op, momentum, nesterov, weight_decay, clip, momenta.has_value());
  const auto count = static_cast<int64_t>(lanes.size());
  Tensor loss = torch::stable::new_empty(weights, {count}, ScalarType::Double);
  Tensor correct = torch::stable::new_empty(weights, {count}, ScalarType::Long);
  // Of paths behind one that diverges nothing is known.
  std::fill_n(loss.mutable_data_ptr<double>(), count, std::numeric_limits<double>::quiet_NaN());
  std::fill_n(correct.mutable_data_ptr<int64_t>(), count, int64_t{0});
  std::vector<double> l1(sizes.size());
  Tensor taken = torch::stable::new_empty(weights, {1}, ScalarType::Long);
  *taken.mutable_data_ptr<int64_t>() = guarded(op, [&] {
    return train_paths(
        program, lanes, paths, trained, {images.const_data_ptr<float>(), sizes},
        labels.const_data_ptr<int64_t>(), lr, sgd, options,
        {loss.mutable_data_ptr<double>(), correct.mutable_data_ptr<int64_t>(), l1.data(), nullptr});
  });
  return {loss, correct, taken};
}

std::tuple<Tensor, Tensor> score_lanes_cpu(const Tensor& table, const Tensor& weights,
                                           const Tensor& images, const Tensor& labels,
                                           std::vector<int64_t> sizes, std::string precision,
                                           std::string fixed, std::string last, int64_t threads,
                                           int64_t memory) {
  const char* op = "score_lanes";
  const ProgramTable program = parse(op, table);
  check_one_lane_a_chunk(op, program);
  check_memory(op, memory);
  const int32_t lanes = program.num_chunks();
  check_tensor(op, "weights", weights, ScalarType::Float, {lanes, program.settings().arena_size});
  RunOptions options = options_of(op, images, precision, fixed, last, threads);
  check_images(op, "images", images, program, sum(op, "sizes", sizes));
  check_labels(op, labels, images);
  Tensor loss = torch::stable::new_empty(images, {lanes, images.size(0)});
  Tensor correct = torch::stable::new_empty(images, {lanes, images.size(0)}, ScalarType::Bool);
  guarded(op, [&] {
    // A thread takes a lane, or all of them share one.
    Team team(lanes >= options.threads ? options.threads : 1, [] {}, [] {});
    if (team.size() > 1) options.threads = 1;
    team.run(lanes, [&](int32_t, int64_t k) {
      const auto lane = program.chunk(static_cast<int32_t>(k))[0];
      run_chunk(
          program, static_cast<int32_t>(k),
          weights.const_data_ptr<float>() + int64_t{lane} * program.settings().arena_size,
          {images.const_data_ptr<float>(), sizes}, labels.const_data_ptr<int64_t>(), {}, options,
          {nullptr, loss.mutable_data_ptr<float>() + lane * images.size(0),
           reinterpret_cast<uint8_t*>(correct.mutable_data_ptr<bool>()) + lane * images.size(0)});
    });
  });
  return {loss, correct};
}

std::tuple<Tensor, Tensor, Tensor> program_gradients_cpu(
    const Tensor& table, const Tensor& arena, const Tensor& images, OptionalTensor labels,
    OptionalTensor grad_logits, OptionalTensor mixing, int64_t lane, int64_t classes,
    std::string precision, int64_t threads, OptionalTensor running) {
  const char* op = "program_gradients";
  const ProgramTable program = parse(op, table);
  const RunOptions options = options_of(op, images, precision, "batch", "batch", threads);
  const GradientArguments given{arena, images, labels, grad_logits, mixing, running};
  check_program_gradients(op, program, lane, classes, given, Place::kCpu);
  GradientTensors out(program, classes, given);
  const std::vector<int64_t> sizes = {images.size(0)};
  guarded(op, [&] {
    program_gradients(program, static_cast<int32_t>(lane), arena.const_data_ptr<float>(),
                      {images.const_data_ptr<float>(), sizes}, data_of<int64_t>(labels),
                      data_of<float>(grad_logits), data_of<float>(mixing), options,
                      {out.logits.mutable_data_ptr<float>(), out.of_arena, out.of_mixing,
                       numbers_like(op, "running", running, arena)});
  });
  return {out.logits, out.arena, out.mixing};
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CPU, m) {
  m.impl("score_lanes", TORCH_BOX(&nasfast::ops::score_lanes_cpu));
  m.impl("train_lanes", TORCH_BOX(&nasfast::ops::train_lanes_cpu));
  m.impl("train_paths", TORCH_BOX(&nasfast::ops::train_paths_cpu));
  m.impl("program_gradients", TORCH_BOX(&nasfast::ops::program_gradients_cpu));
}
