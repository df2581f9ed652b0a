// SPDX-License-Identifier: MIT
// Operators of lanes with private weights on CUDA devices.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/cuda/lane_trainer.h"
#include "engine/cuda/scorer.h"
#include "ops/device.h"
#include "ops/train_checks.h"

namespace nasfast::ops {
namespace {

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
    const cuda::Budget budget = device.budget(memory);
    for (int32_t k = 0; k < program.num_chunks(); ++k) {
      const int64_t lane = program.chunk(k)[0];
      cuda::Scorer scorer(program, k, options, budget,
                          [&](int64_t bytes) { return device.allocate(bytes); });
      scorer.run(
          weights.const_data_ptr<float>() + lane * arena, {images.const_data_ptr<float>(), sizes},
          labels.const_data_ptr<int64_t>(),
          {nullptr, loss.mutable_data_ptr<float>() + lane * count,
           reinterpret_cast<uint8_t*>(correct.mutable_data_ptr<bool>()) + lane * count, count},
          device.stream());
    }
  });
  return {loss, correct};
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CUDA, m) {
  m.impl("score_lanes", TORCH_BOX(&nasfast::ops::score_lanes_cuda));
  m.impl("train_lanes", TORCH_BOX(&nasfast::ops::train_lanes_cuda));
}
