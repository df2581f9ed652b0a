// SPDX-License-Identifier: MIT
// Operators of lanes with private weights and of training on CUDA devices.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/cuda/lane_gradients.h"
#include "engine/cuda/lane_trainer.h"
#include "engine/cuda/path_trainer.h"
#include "engine/cuda/scorer.h"
#include "ops/device.h"
#include "ops/train_checks.h"

namespace nasfast::ops {
namespace {

constexpr int64_t kMostPaths = 65535;  // of a step

std::tuple<Tensor, Tensor, Tensor, Tensor> train_lanes_cuda(
    const Tensor& table, const Tensor& weights, OptionalTensor momenta,
    OptionalTensor gradient_sums, const Tensor& diverged_at, const Tensor& images,
    const Tensor& labels, std::vector<int64_t> sizes, const Tensor& lr, int64_t chunk,
    int64_t first_step, double momentum, bool nesterov, double weight_decay, double clip,
    std::string precision, int64_t threads, int64_t memory) {
  const char* op = "train_lanes";
  const ProgramTable program = parse(op, table);
  const int32_t k = check_chunk(op, program, chunk);
  check_threads(op, threads);
  check_memory(op, memory);
  const cuda::Options options = cuda_options_of(op, images, precision, "batch", "batch");
  check_train_lanes(op, program, k,
                    {weights, momenta, gradient_sums, diverged_at, images, labels, sizes, lr},
                    Place::kCuda);
  for (const auto& [name, tensor] :
       {std::pair{"weights", &weights}, std::pair{"diverged_at", &diverged_at},
        std::pair{"images", &images}, std::pair{"labels", &labels}, std::pair{"lr", &lr}}) {
    check_together(op, name, *tensor, images);
  }
  if (momenta.has_value()) check_together(op, "momenta", *momenta, images);
  if (gradient_sums.has_value()) check_together(op, "gradient_sums", *gradient_sums, images);
  const Sgd sgd = sgd_of(op, momentum, nesterov, weight_decay, clip, momenta.has_value());
  Device device(images);
  guarded(op, [&] {
    device.check();
    check_device_labels(program, labels, sizes, device.stream());
  });
  const cuda::TrainedLanes trained = {
      weights.mutable_data_ptr<float>(),
      numbers_like(op, "momenta", momenta, weights, Place::kCuda),
      numbers_like(op, "gradient_sums", gradient_sums, weights, Place::kCuda),
      diverged_at.mutable_data_ptr<int32_t>()};
  const int64_t lanes = lr.size(0), steps = lr.size(1);
  Tensor loss = torch::stable::new_empty(lr, {lanes, steps});
  Tensor correct = torch::stable::new_empty(lr, {lanes, steps}, ScalarType::Long);
  Tensor l1 = torch::stable::new_empty(lr, {lanes, steps});
  Tensor sum_l1 = torch::stable::new_empty(lr, {gradient_sums.has_value() ? lanes : 0, steps});
  guarded(op, [&] {
    cuda::LaneTrainer trainer(program, k, options, device.budget(memory),
                              [&](int64_t bytes) { return device.allocate(bytes); });
    trainer.run(
        trained, {images.const_data_ptr<float>(), sizes}, labels.const_data_ptr<int64_t>(), sgd,
        {static_cast<int32_t>(steps), lr.const_data_ptr<double>(), loss.mutable_data_ptr<double>(),
         correct.mutable_data_ptr<int64_t>(), l1.mutable_data_ptr<double>(),
         gradient_sums.has_value() ? sum_l1.mutable_data_ptr<double>() : nullptr},
        static_cast<int32_t>(first_step), device.stream());
  });
  return {loss, correct, l1, sum_l1};
}

std::tuple<Tensor, Tensor, Tensor> train_paths_cuda(
    const Tensor& table, const Tensor& weights, OptionalTensor momenta, const Tensor& images,
    const Tensor& labels, std::vector<int64_t> sizes, std::vector<int64_t> lanes, int64_t paths,
    double lr, double momentum, bool nesterov, double weight_decay, double clip,
    std::string precision, int64_t threads) {
  const char* op = "train_paths";
  const ProgramTable program = parse(op, table);
  check_threads(op, threads);
  const cuda::Options options = cuda_options_of(op, images, precision, "batch", "batch");
  check_train_paths(op, program, weights, momenta, images, labels, sizes, Place::kCuda);
  check_together(op, "weights", weights, images);
  check_together(op, "images", images, images);
  check_together(op, "labels", labels, images);
  if (momenta.has_value()) check_together(op, "momenta", *momenta, images);
  const Sgd sgd = sgd_of(op, momentum, nesterov, weight_decay, clip, momenta.has_value());
  require(paths >= 1 && paths <= kMostPaths, std::string(op) + ": paths: wanted 1.." +
                                                 std::to_string(kMostPaths) + ", got " +
                                                 std::to_string(paths));
  Device device(images);
  guarded(op, [&] {
    device.check();
    check_device_labels(program, labels, sizes, device.stream());
  });
  const auto count = static_cast<int64_t>(lanes.size());
  Tensor loss = torch::stable::new_empty(weights, {count}, ScalarType::Double);
  Tensor correct = torch::stable::new_empty(weights, {count}, ScalarType::Long);
  int64_t taken = 0;
  guarded(op, [&] {
    cuda::PathTrainer trainer(program, static_cast<int32_t>(paths),
                              static_cast<int32_t>(sizes.size()), options, device.budget(0),
                              [&](int64_t bytes) { return device.allocate(bytes); });
    Tensor kept = torch::stable::new_empty(images, {trainer.bytes()}, ScalarType::Byte);
    taken = trainer.run(static_cast<std::byte*>(kept.mutable_data_ptr()),
                        {weights.mutable_data_ptr<float>(),
                         numbers_like(op, "momenta", momenta, weights, Place::kCuda),
                         loss.mutable_data_ptr<double>(), correct.mutable_data_ptr<int64_t>()},
                        lanes, {images.const_data_ptr<float>(), sizes},
                        labels.const_data_ptr<int64_t>(), lr, sgd, device.stream());
  });
  Tensor steps = torch::stable::new_empty(weights, {1}, ScalarType::Long);
  return {loss, correct, torch::stable::fill_(steps, static_cast<double>(taken))};
}

std::tuple<Tensor, Tensor, Tensor> program_gradients_cuda(
    const Tensor& table, const Tensor& arena, const Tensor& images, OptionalTensor labels,
    OptionalTensor grad_logits, OptionalTensor mixing, int64_t lane, int64_t classes,
    std::string precision, int64_t threads, OptionalTensor running) {
  const char* op = "program_gradients";
  const ProgramTable program = parse(op, table);
  check_threads(op, threads);
  const cuda::Options options = cuda_options_of(op, images, precision, "batch", "batch");
  const GradientArguments given{arena, images, labels, grad_logits, mixing, running};
  check_program_gradients(op, program, lane, classes, given, Place::kCuda);
  check_together(op, "arena", arena, images);
  check_together(op, "images", images, images);
  for (const auto& [name, tensor] :
       {std::pair{"labels", &labels}, std::pair{"grad_logits", &grad_logits},
        std::pair{"mixing", &mixing}, std::pair{"running", &running}}) {
    if (tensor->has_value()) check_together(op, name, **tensor, images);
  }
  Device device(images);
  guarded(op, [&] {
    device.check();
    const std::vector<int64_t> sizes = {images.size(0)};
    if (labels.has_value()) check_device_labels(program, *labels, sizes, device.stream());
  });
  GradientTensors out(program, classes, given);
  guarded(op, [&] {
    cuda::lane_gradients(
        program, static_cast<int32_t>(lane), options, device.budget(0),
        [&](int64_t bytes) { return device.allocate(bytes); },
        {arena.const_data_ptr<float>(), data_of<float>(mixing), data_of<float>(grad_logits)},
        {images.const_data_ptr<float>(), data_of<int64_t>(labels),
         static_cast<int32_t>(images.size(0)), 0},
        {out.logits.mutable_data_ptr<float>(), out.of_arena, out.of_mixing,
         numbers_like(op, "running", running, arena, Place::kCuda)},
        device.stream());
  });
  return {out.logits, out.arena, out.mixing};
}

// Lanes that share no weights share no packed ones either: one after another.
std::tuple<Tensor, Tensor> score_lanes_cuda(const Tensor& table, const Tensor& weights,
                                            const Tensor& images, const Tensor& labels,
                                            std::vector<int64_t> sizes, std::string precision,
                                            std::string fixed, std::string last, int64_t threads,
                                            int64_t memory) {
  const char* op = "score_lanes";
  const ProgramTable program = parse(op, table);
  check_one_lane_a_chunk(op, program);
  check_threads(op, threads);
  check_memory(op, memory);
  const int64_t lanes = program.num_chunks(), arena = program.settings().arena_size;
  check_tensor(op, "weights", weights, ScalarType::Float, {lanes, arena}, Place::kCuda);
  const cuda::Options options = cuda_options_of(op, images, precision, fixed, last);
  check_images(op, "images", images, program, sum(op, "sizes", sizes), Place::kCuda);
  check_labels(op, labels, images, Place::kCuda);
  check_together(op, "weights", weights, images);
  check_together(op, "images", images, images);
  check_together(op, "labels", labels, images);
  Device device(images);
  guarded(op, [&] {
    device.check();
    check_device_labels(program, labels, sizes, device.stream());
  });
  const int64_t count = images.size(0);
  Tensor loss = torch::stable::new_empty(images, {lanes, count});
  Tensor correct = torch::stable::new_empty(images, {lanes, count}, ScalarType::Bool);
  guarded(op, [&] {
    cuda::Scorer scorer(program, cuda::lanes_with_own_weights(program), options,
                        device.budget(memory),
                        [&](int64_t bytes) { return device.allocate(bytes); });
    scorer.run(weights.const_data_ptr<float>(), {images.const_data_ptr<float>(), sizes},
               labels.const_data_ptr<int64_t>(),
               {nullptr, loss.mutable_data_ptr<float>(),
                reinterpret_cast<uint8_t*>(correct.mutable_data_ptr<bool>()), count},
               device.stream());
  });
  return {loss, correct};
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CUDA, m) {
  m.impl("score_lanes", TORCH_BOX(&nasfast::ops::score_lanes_cuda));
  m.impl("train_lanes", TORCH_BOX(&nasfast::ops::train_lanes_cuda));
  m.impl("train_paths", TORCH_BOX(&nasfast::ops::train_paths_cuda));
  m.impl("program_gradients", TORCH_BOX(&nasfast::ops::program_gradients_cuda));
}
