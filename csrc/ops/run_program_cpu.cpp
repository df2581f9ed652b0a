// SPDX-License-Identifier: MIT
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "ops/program_checks.h"

namespace nasfast::ops {
namespace {

std::tuple<Tensor, Tensor> run_program_cpu(const Tensor& table, const Tensor& arenas,
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
  check_memory(op, memory);  // the table's chunks are made for it
  const RunOptions options = options_of(op, images, precision, fixed, last, threads);
  check_images(op, "images", images, program, sum(op, "sizes", sizes));
  check_labels(op, labels, images);
  Images measured;
  const bool recalibrates = program.settings().cell_mode == kRecalibrate ||
                            options.fixed == kRecalibrate || options.last == kRecalibrate;
  require(recalibrates || !calibration.has_value(),
          std::string(op) + ": calibration: wanted none, as no part recalibrates");
  require(calibration.has_value() || calibration_sizes.empty(),
          std::string(op) + ": calibration_sizes: wanted none without calibration, got " +
              std::to_string(calibration_sizes.size()));
  if (calibration.has_value()) {
    check_images(op, "calibration", *calibration, program,
                 sum(op, "calibration_sizes", calibration_sizes));
    check_shape(op, "calibration", *calibration, {kAny, kAny, images.size(2), images.size(3)});
    measured = {calibration->const_data_ptr<float>(), calibration_sizes};
  }
  const float* arena = arena_of(op, arenas, program, k);
  Tensor loss = torch::stable::new_empty(images, {lanes, images.size(0)});
  Tensor correct = torch::stable::new_empty(images, {lanes, images.size(0)}, ScalarType::Bool);
  guarded(op, [&] {
    return run_chunk(program, k, arena, {images.const_data_ptr<float>(), sizes},
                     labels.const_data_ptr<int64_t>(), measured, options,
                     {nullptr, loss.mutable_data_ptr<float>(),
                      reinterpret_cast<uint8_t*>(correct.mutable_data_ptr<bool>())});
  });
  return {loss, correct};
}

Tensor subnet_forward_cpu(const Tensor& table, const Tensor& arenas, const Tensor& images,
                          int64_t lanes, int64_t classes, std::string precision, std::string fixed,
                          std::string last, int64_t threads) {
  const char* op = "subnet_forward";
  const ProgramTable program = parse(op, table);
  check_lanes(op, "table", program.lanes().size(), lanes);
  check_classes(op, program, classes);
  const RunOptions options = options_of(op, images, precision, fixed, last, threads);
  check_images(op, "images", images, program, kAny);
  const std::vector<int64_t> sizes = {images.size(0)};
  const int64_t row = images.size(0) * classes;
  Tensor logits = torch::stable::new_empty(images, {lanes, images.size(0), classes});
  std::vector<float> rows;
  for (int32_t k = 0; k < program.num_chunks(); ++k) {
    const auto members = program.chunk(k);
    rows.resize(members.size() * static_cast<size_t>(row));
    const float* arena = arena_of(op, arenas, program, k);
    guarded(op, [&] {
      return run_chunk(program, k, arena, {images.const_data_ptr<float>(), sizes}, nullptr, {},
                       options, {rows.data(), nullptr, nullptr});
    });
    for (size_t i = 0; i < members.size(); ++i) {
      std::copy_n(rows.data() + static_cast<int64_t>(i) * row, row,
                  logits.mutable_data_ptr<float>() + members[i] * row);
    }
  }
  return logits;
}

std::string cpu_info() {
  std::string text;
  for (int32_t i = 0; i < kernels::cpu::kNumIsas; ++i) {
    const auto isa = static_cast<kernels::cpu::Isa>(i);
    std::string reason;
    const bool supported = kernels::cpu::is_supported(isa, &reason);
    text += std::string(kernels::cpu::name_of(isa)) + "\t" + (supported ? "" : reason) + "\n";
  }
  text += "chosen\t" +
          guarded("cpu_info",
                  [] { return std::string(kernels::cpu::name_of(kernels::cpu::default_isa())); }) +
          "\n";
  return text;
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CPU, m) {
  m.impl("run_program", TORCH_BOX(&nasfast::ops::run_program_cpu));
  m.impl("subnet_forward", TORCH_BOX(&nasfast::ops::subnet_forward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(nasfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_info", TORCH_BOX(&nasfast::ops::cpu_info));
}
