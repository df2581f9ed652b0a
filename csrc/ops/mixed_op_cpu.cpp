// SPDX-License-Identifier: MIT
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "engine/mixed_op.h"
#include "ops/checks.h"

namespace nasfast::ops {
namespace {

MixedCandidates candidates_of(const char* op, int64_t channels, const std::vector<int64_t>& kinds,
                              const std::vector<int64_t>& kernels,
                              const std::vector<int64_t>& fields) {
  require(kinds.size() == kernels.size() && kinds.size() == fields.size(),
          std::string(op) + ": kinds, kernels, fields: wanted equally many, got " +
              std::to_string(kinds.size()) + ", " + std::to_string(kernels.size()) + ", " +
              std::to_string(fields.size()));
  require(channels >= 1 && channels <= kMaxChannels,
          std::string(op) + ": x: wanted 1..65536 channels, got " + std::to_string(channels));
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

// A tensor of features in channels-last memory, which is returned with it.
std::tuple<Features, Tensor> features_of(const char* op, const char* name, const Tensor& tensor) {
  check_cpu(op, name, tensor);
  const ScalarType dtype = tensor.scalar_type();
  require(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
      std::string(op) + ": " + name + ": wanted dtype float32 or bfloat16, got " + name_of(dtype));
  check_shape(op, name, tensor, {kAny, kAny, kAny, kAny});
  require(tensor.numel() > 0,
          std::string(op) + ": " + name + ": wanted features, got " + shape_of(tensor));
  require(tensor.size(0) <= kMaxBatch && tensor.size(2) <= kMaxSide && tensor.size(3) <= kMaxSide,
          std::string(op) + ": " + name + ": too large, got " + shape_of(tensor));
  const Tensor last = torch::stable::contiguous(
      torch::stable::transpose(torch::stable::transpose(tensor, 1, 2), 2, 3));
  return {Features{last.mutable_data_ptr(), dtype == ScalarType::BFloat16,
                   static_cast<int32_t>(tensor.size(0)), static_cast<int32_t>(tensor.size(2)),
                   static_cast<int32_t>(tensor.size(3)), static_cast<int32_t>(tensor.size(1))},
          last};
}

// Channels-last memory like that of `features`, seen as [batch, channels, height, width].
std::tuple<Features, Tensor> features_like(Features features, const Tensor& like) {
  const Tensor memory = torch::stable::new_empty(
      like, {features.batch, features.height, features.width, features.channels});
  features.data = memory.mutable_data_ptr();
  return {features, torch::stable::transpose(torch::stable::transpose(memory, 2, 3), 1, 2)};
}

void check_floats(const char* op, const char* name, const Tensor& tensor, int64_t count) {
  check_tensor(op, name, tensor, ScalarType::Float, {count});
}

// 0: PyTorch's own number, so that a compiled graph need not know it.
int32_t threads_of(const char* op, int64_t threads) {
  require(threads >= 0 && threads <= 4096,
          std::string(op) + ": threads: wanted 0..4096, got " + std::to_string(threads));
  return static_cast<int32_t>(threads > 0 ? threads : torch::stable::get_num_threads());
}

std::tuple<Tensor, Tensor, Tensor> mixed_op_cpu(const Tensor& x, const Tensor& weights,
                                                const Tensor& params, std::vector<int64_t> kinds,
                                                std::vector<int64_t> kernels,
                                                std::vector<int64_t> fields, int64_t threads) {
  const char* op = "mixed_op";
  const auto [features, memory] = features_of(op, "x", x);
  const MixedCandidates candidates = candidates_of(op, features.channels, kinds, kernels, fields);
  check_floats(op, "weights", weights, static_cast<int64_t>(kinds.size()));
  check_floats(op, "params", params, candidates.num_parameters());
  const int32_t num_threads = threads_of(op, threads);
  const auto isa = guarded(op, [] { return kernels::cpu::default_isa(); });
  const int64_t bytes = mixed_op_saved_bytes(candidates, features, isa);
  const auto [out_features, out] = features_like(features, x);
  const Tensor statistics =
      torch::stable::new_empty(params, {candidates.num_convolutions(), 2, features.channels});
  const Tensor saved = torch::stable::new_empty(params, {bytes}, ScalarType::Byte);
  guarded(op, [&] {
    mixed_op(candidates, features, weights.const_data_ptr<float>(), params.const_data_ptr<float>(),
             out_features, statistics.mutable_data_ptr<float>(),
             static_cast<std::byte*>(saved.mutable_data_ptr()), isa, num_threads);
  });
  return {out, statistics, saved};
}

std::tuple<Tensor, Tensor, Tensor> mixed_op_backward_cpu(
    const Tensor& grad, const Tensor& weights, const Tensor& params, const Tensor& statistics,
    const Tensor& saved, std::vector<int64_t> kinds, std::vector<int64_t> kernels,
    std::vector<int64_t> fields, bool needs_x, int64_t threads) {
  const char* op = "mixed_op_backward";
  const auto [features, memory] = features_of(op, "grad", grad);
  const MixedCandidates candidates = candidates_of(op, features.channels, kinds, kernels, fields);
  check_floats(op, "weights", weights, static_cast<int64_t>(kinds.size()));
  check_floats(op, "params", params, candidates.num_parameters());
  check_dtype(op, "statistics", statistics, ScalarType::Float, "float32");
  check_shape(op, "statistics", statistics, {candidates.num_convolutions(), 2, features.channels});
  check_contiguous(op, "statistics", statistics);
  const int32_t num_threads = threads_of(op, threads);
  const auto isa = guarded(op, [] { return kernels::cpu::default_isa(); });
  check_dtype(op, "saved", saved, ScalarType::Byte, "uint8");
  check_shape(op, "saved", saved, {mixed_op_saved_bytes(candidates, features, isa)});
  check_contiguous(op, "saved", saved);
  Features no_features = features;
  no_features.data = nullptr;
  const Tensor nothing = torch::stable::new_empty(grad, {0});
  const auto [grad_features, grad_x] =
      needs_x ? features_like(features, grad) : std::tuple<Features, Tensor>{no_features, nothing};
  const Tensor grad_weights = torch::stable::new_empty(weights, {weights.size(0)});
  const Tensor grad_params = torch::stable::new_empty(params, {params.size(0)});
  guarded(op, [&] {
    mixed_op_backward(candidates, features, weights.const_data_ptr<float>(),
                      params.const_data_ptr<float>(), statistics.const_data_ptr<float>(),
                      static_cast<std::byte*>(saved.mutable_data_ptr()), grad_features,
                      grad_weights.mutable_data_ptr<float>(), grad_params.mutable_data_ptr<float>(),
                      isa, num_threads);
  });
  return {grad_x, grad_weights, grad_params};
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CPU, m) {
  m.impl("mixed_op", TORCH_BOX(&nasfast::ops::mixed_op_cpu));
  m.impl("mixed_op_backward", TORCH_BOX(&nasfast::ops::mixed_op_backward_cpu));
}
