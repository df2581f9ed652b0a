// SPDX-License-Identifier: MIT
// Checks that all operators over program tables have in common.
#pragma once

#include <string>
#include <vector>

#include "ops/checks.h"

namespace nasfast::ops {

inline ProgramTable parse(const char* op, const Tensor& table) {
  check_tensor(op, "table", table, ScalarType::Int, {kAny});
  return guarded(op, [&] {
    return ProgramTable({table.const_data_ptr<int32_t>(), static_cast<size_t>(table.numel())});
  });
}

inline const float* arena_of(const char* op, const Tensor& arenas, const ProgramTable& table,
                             int32_t chunk, Place place = Place::kCpu) {
  check_tensor(op, "arenas", arenas, ScalarType::Float, {kAny, table.settings().arena_size}, place);
  const int32_t lane = table.chunk(chunk)[0];
  const int32_t set = table.lanes()[static_cast<size_t>(lane)].weight_set;
  require(set < arenas.size(0), std::string(op) + ": arenas: the lanes name weight set " +
                                    std::to_string(set) + ", got " + shape_of(arenas));
  return arenas.const_data_ptr<float>() + int64_t{set} * table.settings().arena_size;
}

// Images that the chunks of the table were made for.
inline void check_images(const char* op, const char* name, const Tensor& images,
                         const ProgramTable& table, int64_t count, Place place = Place::kCpu) {
  check_tensor(op, name, images, ScalarType::Float,
               {count, table.positions()[0].in_channels, kAny, kAny}, place);
  require(images.numel() > 0, std::string(op) + ": " + name + ": wanted images, got none");
  const Settings& made_for = table.settings();
  require(images.size(2) <= made_for.height && images.size(3) <= made_for.width,
          std::string(op) + ": " + name + ": the table was made for images of at most " +
              std::to_string(made_for.height) + "x" + std::to_string(made_for.width) + ", got " +
              shape_of(images));
}

inline void check_labels(const char* op, const Tensor& labels, const Tensor& images,
                         Place place = Place::kCpu) {
  check_tensor(op, "labels", labels, ScalarType::Long, {images.size(0)}, place);
}

inline int32_t check_chunk(const char* op, const ProgramTable& table, int64_t chunk) {
  require(chunk >= 0 && chunk < table.num_chunks(), std::string(op) + ": chunk: wanted 0.." +
                                                        std::to_string(table.num_chunks() - 1) +
                                                        ", got " + std::to_string(chunk));
  return static_cast<int32_t>(chunk);
}

inline void check_lanes(const char* op, const char* of, size_t has, int64_t lanes) {
  require(lanes == static_cast<int64_t>(has), std::string(op) + ": lanes: the " + of + " has " +
                                                  std::to_string(has) + ", got " +
                                                  std::to_string(lanes));
}

inline void check_memory(const char* op, int64_t memory) {
  require(memory >= 0, std::string(op) + ": memory: wanted bytes, or 0 for what is free, got " +
                           std::to_string(memory));
}

inline void check_classes(const char* op, const ProgramTable& table, int64_t classes) {
  const int32_t wanted = table.positions().back().out_channels;
  require(classes == wanted, std::string(op) + ": classes: the table has " +
                                 std::to_string(wanted) + ", got " + std::to_string(classes));
}

// Images of all minibatches.
inline int64_t sum(const char* op, const char* name, const std::vector<int64_t>& sizes) {
  int64_t total = 0;
  for (const int64_t size : sizes) {
    require(size >= 1 && size <= kMaxBatch,
            std::string(op) + ": " + name + ": wanted minibatches of 1 to 16777216 images, got " +
                std::to_string(size));
    total += size;
  }
  return total;
}

// Sides that fit the engines' numbers.
inline void check_sides(const char* op, const Tensor& images) {
  require(images.dim() == 4 && images.size(2) <= kMaxSide && images.size(3) <= kMaxSide,
          std::string(op) +
              ": images: wanted 4 dimensions, height and width of at most 65536, got " +
              shape_of(images));
}

inline int32_t check_threads(const char* op, int64_t threads) {
  require(threads >= 1 && threads <= 4096,
          std::string(op) + ": threads: wanted 1..4096, got " + std::to_string(threads));
  return static_cast<int32_t>(threads);
}

inline RunOptions options_of(const char* op, const Tensor& images, const std::string& precision,
                             const std::string& fixed, const std::string& last, int64_t threads) {
  RunOptions options;
  options.precision = precision_of(op, precision);
  options.isa = guarded(op, [] { return kernels::cpu::default_isa(); });
  options.threads = check_threads(op, threads);
  check_sides(op, images);
  options.height = static_cast<int32_t>(images.size(2));
  options.width = static_cast<int32_t>(images.size(3));
  options.fixed = mode_of(op, "fixed", fixed);
  options.last = mode_of(op, "last", last);
  return options;
}

}  // namespace nasfast::ops
