// SPDX-License-Identifier: MIT
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "ops/checks.h"

namespace nasfast::ops {
namespace {

ProgramTable parse(const char* op, const Tensor& table) {
  check_cpu(op, "table", table);
  check_dtype(op, "table", table, ScalarType::Int, "int32");
  check_shape(op, "table", table, {kAny});
  check_contiguous(op, "table", table);
  return guarded(op, [&] {
    return ProgramTable({table.const_data_ptr<int32_t>(), static_cast<size_t>(table.numel())});
  });
}

const float* arena_of(const char* op, const Tensor& arenas, const ProgramTable& table,
                      int32_t chunk) {
  check_cpu(op, "arenas", arenas);
  check_dtype(op, "arenas", arenas, ScalarType::Float, "float32");
  check_shape(op, "arenas", arenas, {kAny, table.settings().arena_size});
  check_contiguous(op, "arenas", arenas);
  const int32_t lane = table.chunk(chunk)[0];
  const int32_t set = table.lanes()[static_cast<size_t>(lane)].weight_set;
  require(set < arenas.size(0), std::string(op) + ": arenas: the lanes name weight set " +
                                    std::to_string(set) + ", got " + shape_of(arenas));
  return arenas.const_data_ptr<float>() + int64_t{set} * table.settings().arena_size;
}

// Images that the chunks of the table were made for.
void check_images(const char* op, const char* name, const Tensor& images, const ProgramTable& table,
                  int64_t count) {
  check_cpu(op, name, images);
  check_dtype(op, name, images, ScalarType::Float, "float32");
  check_shape(op, name, images, {count, table.positions()[0].in_channels, kAny, kAny});
  check_contiguous(op, name, images);
  require(images.numel() > 0, std::string(op) + ": " + name + ": wanted images, got none");
  const Settings& made_for = table.settings();
  require(images.size(2) <= made_for.height && images.size(3) <= made_for.width,
          std::string(op) + ": " + name + ": the table was made for images of at most " +
              std::to_string(made_for.height) + "x" + std::to_string(made_for.width) + ", got " +
              shape_of(images));
}

// Images of all minibatches.
int64_t sum(const char* op, const char* name, const std::vector<int64_t>& sizes) {
  int64_t total = 0;
  for (const int64_t size : sizes) {
    require(size >= 1 && size <= kMaxBatch,
            std::string(op) + ": " + name + ": wanted minibatches of 1 to 16777216 images, got " +
                std::to_string(size));
    total += size;
  }
  return total;
}

RunOptions options_of(const char* op, const Tensor& images, const std::string& precision,
                      const std::string& fixed, const std::string& last, int64_t threads) {
  RunOptions options;
  options.precision = precision_of(op, precision);
  options.isa = guarded(op, [] { return kernels::cpu::default_isa(); });
  require(threads >= 1 && threads <= 4096,
          std::string(op) + ": threads: wanted 1..4096, got " + std::to_string(threads));
  options.threads = static_cast<int32_t>(threads);
  require(images.dim() == 4 && images.size(2) <= kMaxSide && images.size(3) <= kMaxSide,
          std::string(op) +
              ": images: wanted 4 dimensions, height and width of at most 65536, got " +
              shape_of(images));
  options.height = static_cast<int32_t>(images.size(2));
  options.width = static_cast<int32_t>(images.size(3));
  options.fixed = mode_of(op, "fixed", fixed);
  options.last = mode_of(op, "last", last);
  return options;
}

std::tuple<Tensor, Tensor> run_program_cpu(const Tensor& table, const Tensor& arenas,
                                           const Tensor& images, const Tensor& labels,
                                           std::vector<int64_t> sizes,
                                           std::optional<Tensor> calibration,
                                           std::vector<int64_t> calibration_sizes, int64_t chunk,
                                           int64_t lanes, std::string precision, std::string fixed,
                                           std::string last, int64_t threads) {
  const char* op = "run_program";
  const ProgramTable program = parse(op, table);
  require(chunk >= 0 && chunk < program.num_chunks(), std::string(op) + ": chunk: wanted 0.." +
                                                          std::to_string(program.num_chunks() - 1) +
                                                          ", got " + std::to_string(chunk));
  const auto k = static_cast<int32_t>(chunk);
  require(lanes == static_cast<int64_t>(program.chunk(k).size()),
          std::string(op) + ": lanes: the chunk has " + std::to_string(program.chunk(k).size()) +
              ", got " + std::to_string(lanes));
  const RunOptions options = options_of(op, images, precision, fixed, last, threads);
  check_images(op, "images", images, program, sum(op, "sizes", sizes));
  check_cpu(op, "labels", labels);
  check_dtype(op, "labels", labels, ScalarType::Long, "int64");
  check_shape(op, "labels", labels, {images.size(0)});
  check_contiguous(op, "labels", labels);
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
  const int64_t has_lanes = static_cast<int64_t>(program.lanes().size());
  require(lanes == has_lanes, std::string(op) + ": lanes: the table has " +
                                  std::to_string(has_lanes) + ", got " + std::to_string(lanes));
  const int32_t has_classes = program.positions().back().out_channels;
  require(classes == has_classes, std::string(op) + ": classes: the table has " +
                                      std::to_string(has_classes) + ", got " +
                                      std::to_string(classes));
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
