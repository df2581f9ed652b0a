// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "engine/cuda/error.h"
#include "engine/cuda/scorer.h"
#include "ops/device.h"
#include "ops/program_checks.h"

namespace nasfast::ops {
namespace {

const float* device_arena_of(const char* op, const Tensor& arenas, const ProgramTable& program,
                             int32_t chunk, const Tensor& images) {
  const float* arena = arena_of(op, arenas, program, chunk, Place::kCuda);
  check_together(op, "arenas", arenas, images);
  return arena;
}

std::tuple<Tensor, Tensor> run_program_cuda(const Tensor& table, const Tensor& arenas,
                                            const Tensor& images, const Tensor& labels,
                                            std::vector<int64_t> sizes,
                                            std::optional<Tensor> calibration,
                                            std::vector<int64_t> calibration_sizes, int64_t chunk,
                                            int64_t lanes, std::string precision, std::string fixed,
                                            std::string last, int64_t threads, int64_t memory) {
  const char* op = "run_program";
  const ProgramTable program = parse(op, table);
  const int32_t k = check_chunk(op, program, chunk);
  check_lanes(op, "chunk", program.chunk(k).size(), lanes);
  check_threads(op, threads);
  check_memory(op, memory);
  check_images(op, "images", images, program, sum(op, "sizes", sizes), Place::kCuda);
  check_together(op, "images", images, images);
  const cuda::Options options = cuda_options_of(op, images, precision, fixed, last);
  check_labels(op, labels, images, Place::kCuda);
  check_together(op, "labels", labels, images);
  require(!calibration.has_value() && calibration_sizes.empty(),
          std::string(op) + ": calibration: wanted none, as no part recalibrates on a CUDA device");
  const float* arena = device_arena_of(op, arenas, program, k, images);
  Device device(images);
  guarded(op, [&] {
    device.check();
    check_device_labels(program, labels, sizes, device.stream());
  });
  Tensor loss = torch::stable::new_empty(images, {lanes, images.size(0)});
  Tensor correct = torch::stable::new_empty(images, {lanes, images.size(0)}, ScalarType::Bool);
  guarded(op, [&] {
    cuda::Scorer scorer(program, cuda::lanes_of_chunk(program, k), options, device.budget(memory),
                        [&](int64_t bytes) { return device.allocate(bytes); });
    scorer.run(arena, {images.const_data_ptr<float>(), sizes}, labels.const_data_ptr<int64_t>(),
               {nullptr, loss.mutable_data_ptr<float>(),
                reinterpret_cast<uint8_t*>(correct.mutable_data_ptr<bool>()), images.size(0)},
               device.stream());
  });
  return {loss, correct};
}

Tensor subnet_forward_cuda(const Tensor& table, const Tensor& arenas, const Tensor& images,
                           int64_t lanes, int64_t classes, std::string precision, std::string fixed,
                           std::string last, int64_t threads) {
  const char* op = "subnet_forward";
  const ProgramTable program = parse(op, table);
  check_lanes(op, "table", program.lanes().size(), lanes);
  check_classes(op, program, classes);
  check_threads(op, threads);
  check_images(op, "images", images, program, kAny, Place::kCuda);
  check_together(op, "images", images, images);
  const cuda::Options options = cuda_options_of(op, images, precision, fixed, last);
  Device device(images);
  guarded(op, [&] { device.check(); });
  const std::vector<int64_t> sizes = {images.size(0)};
  const int64_t row = images.size(0) * classes;
  Tensor logits = torch::stable::new_empty(images, {lanes, images.size(0), classes});
  for (int32_t k = 0; k < program.num_chunks(); ++k) {
    const auto members = program.chunk(k);
    const float* arena = device_arena_of(op, arenas, program, k, images);
    Tensor rows = torch::stable::new_empty(images, {static_cast<int64_t>(members.size()), row});
    guarded(op, [&] {
      cuda::Scorer scorer(program, cuda::lanes_of_chunk(program, k), options, device.budget(0),
                          [&](int64_t bytes) { return device.allocate(bytes); });
      scorer.run(arena, {images.const_data_ptr<float>(), sizes}, nullptr,
                 {rows.mutable_data_ptr<float>(), nullptr, nullptr, images.size(0)},
                 device.stream());
      for (size_t i = 0; i < members.size(); ++i) {
        const float* from = rows.const_data_ptr<float>() + static_cast<int64_t>(i) * row;
        cuda::check("logits", cudaMemcpyAsync(logits.mutable_data_ptr<float>() + members[i] * row,
                                              from, static_cast<size_t>(row) * sizeof(float),
                                              cudaMemcpyDeviceToDevice, device.stream()));
      }
    });
  }
  return logits;
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CUDA, m) {
  m.impl("run_program", TORCH_BOX(&nasfast::ops::run_program_cuda));
  m.impl("subnet_forward", TORCH_BOX(&nasfast::ops::subnet_forward_cuda));
}
