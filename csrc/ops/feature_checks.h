// SPDX-License-Identifier: MIT
// Checks that the operators between tensors of features have in common on all devices.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/mixed_schedule.h"
#include "ops/checks.h"

namespace nasfast::ops {

inline bool is_bfloat16(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::BFloat16;
}

// The sides of features are those of the engines.
inline void check_features(const char* op, const char* name, const Tensor& tensor, Place place) {
  check_place(op, name, tensor, place);
  const ScalarType dtype = tensor.scalar_type();
  require(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
      std::string(op) + ": " + name + ": wanted dtype float32 or bfloat16, got " + name_of(dtype));
  check_shape(op, name, tensor, {kAny, kAny, kAny, kAny});
  require(tensor.size(0) <= kMaxBatch && tensor.size(1) <= kMaxChannels &&
              tensor.size(2) <= kMaxSide && tensor.size(3) <= kMaxSide,
          std::string(op) + ": " + name + ": too large, got " + shape_of(tensor));
}

inline void check_some(const char* op, const char* name, const Tensor& features) {
  require(features.numel() > 0,
          std::string(op) + ": " + name + ": wanted features, got " + shape_of(features));
}

// Contiguous [batch, height, width, channels], seen as [batch, channels, height, width].
inline Tensor seen_as_features(const Tensor& memory) {
  return torch::stable::transpose(torch::stable::transpose(memory, 2, 3), 1, 2);
}

// Such memory, like features of so many channels.
inline Tensor new_memory(const Tensor& like, int64_t height, int64_t width, int64_t channels) {
  return torch::stable::new_empty(like, {like.size(0), height, width, channels});
}

// Candidates for the features `name`.
inline MixedCandidates candidates_of(const char* op, int64_t channels,
                                     const std::vector<int64_t>& kinds,
                                     const std::vector<int64_t>& kernels,
                                     const std::vector<int64_t>& fields) {
  require(kinds.size() == kernels.size() && kinds.size() == fields.size(),
          std::string(op) + ": kinds, kernels, fields: wanted equally many, got " +
              std::to_string(kinds.size()) + ", " + std::to_string(kernels.size()) + ", " +
              std::to_string(fields.size()));
  MixedCandidates candidates;
  candidates.channels = static_cast<int32_t>(channels);
  for (size_t k = 0; k < kinds.size(); ++k) {
    require(kinds[k] >= 0 && kinds[k] <= 4,
            std::string(op) + ": kinds: wanted 0..4, got " + std::to_string(kinds[k]));
    const bool has_kernel = kinds[k] >= 2;
    require(!has_kernel || (kernels[k] % 2 == 1 && kernels[k] >= 1 && kernels[k] <= kMaxKernel),
            std::string(op) + ": kernels: wanted an odd number of 1..31, got " +
                std::to_string(kernels[k]));
    require(fields[k] >= 0 && fields[k] <= 3,
            std::string(op) + ": fields: wanted 0..3, got " + std::to_string(fields[k]));
    candidates.all.push_back({static_cast<Candidate>(kinds[k]), static_cast<int32_t>(kernels[k]),
                              (fields[k] & 1) != 0, (fields[k] & 2) != 0});
  }
  return candidates;
}

inline void check_floats(const char* op, const char* name, const Tensor& tensor, int64_t count,
                         Place place) {
  check_tensor(op, name, tensor, ScalarType::Float, {count}, place);
}

// 0: PyTorch's own number, so that a compiled graph need not know it.
inline void check_mixed_threads(const char* op, int64_t threads) {
  require(threads >= 0 && threads <= 4096,
          std::string(op) + ": threads: wanted 0..4096, got " + std::to_string(threads));
}

// What the way forward left behind; `bytes` of it.
inline void check_saved(const char* op, const Tensor& statistics, const Tensor& saved,
                        const MixedCandidates& candidates, int64_t bytes, Place place,
                        size_t alignment) {
  check_tensor(op, "statistics", statistics, ScalarType::Float,
               {candidates.num_convolutions(), 2, candidates.channels}, place);
  check_place(op, "saved", saved, place);
  check_dtype(op, "saved", saved, ScalarType::Byte, "uint8");
  check_shape(op, "saved", saved, {bytes});
  check_contiguous(op, "saved", saved);
  require(reinterpret_cast<uintptr_t>(saved.const_data_ptr()) % alignment == 0,
          std::string(op) + ": saved: wanted the tensor that mixed_op returned, got a part of one");
}

// All but the engine's own limits; features may be empty.
inline void check_relu_conv_bn(const char* op, const Tensor& features, const Tensor& weight,
                               int64_t stride, double eps, Place place) {
  check_features(op, "features", features, place);
  check_place(op, "weight", weight, place);
  check_dtype(op, "weight", weight, features.scalar_type(), "that of features");
  require(weight.dim() == 4,
          std::string(op) + ": weight: wanted 4 dimensions, got " + shape_of(weight));
  const int64_t kernel = weight.size(3);
  require(kernel % 2 == 1 && kernel <= kMaxKernel,
          std::string(op) + ": weight: wanted an odd kernel of 1..31, got " + shape_of(weight));
  check_shape(op, "weight", weight, {kAny, features.size(1), kernel, kernel});
  require(weight.size(0) <= kMaxChannels,
          std::string(op) + ": weight: too large, got " + shape_of(weight));
  require(stride == 1 || stride == 2,
          std::string(op) + ": stride: wanted 1 or 2, got " + std::to_string(stride));
  require(eps >= 0, std::string(op) + ": eps: wanted at least 0, got " + std::to_string(eps));
}

}  // namespace nasfast::ops
