// SPDX-License-Identifier: MIT
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "engine/mixed_op.h"
#include "ops/feature_checks.h"

namespace nasfast::ops {
namespace {

// Features in channels-last memory, which is returned with them.
std::tuple<Features, Tensor> features_of(const char* op, const char* name, const Tensor& tensor) {
  check_features(op, name, tensor, Place::kCpu);
  check_some(op, name, tensor);
  const Tensor last = torch::stable::contiguous(
      torch::stable::transpose(torch::stable::transpose(tensor, 1, 2), 2, 3));
  return {Features{last.mutable_data_ptr(), is_bfloat16(tensor),
                   static_cast<int32_t>(tensor.size(0)), static_cast<int32_t>(tensor.size(2)),
                   static_cast<int32_t>(tensor.size(3)), static_cast<int32_t>(tensor.size(1))},
          last};
}

// New ones like `features`.
std::tuple<Features, Tensor> features_like(Features features, const Tensor& like) {
  const Tensor memory = new_memory(like, features.height, features.width, features.channels);
  features.data = memory.mutable_data_ptr();
  return {features, seen_as_features(memory)};
}

int32_t threads_of(const char* op, int64_t threads) {
  check_mixed_threads(op, threads);
  return static_cast<int32_t>(threads > 0 ? threads : torch::stable::get_num_threads());
}

std::tuple<Tensor, Tensor, Tensor> mixed_op_cpu(const Tensor& x, const Tensor& weights,
                                                const Tensor& params, std::vector<int64_t> kinds,
                                                std::vector<int64_t> kernels,
                                                std::vector<int64_t> fields, int64_t threads) {
  const char* op = "mixed_op";
  const auto [features, memory] = features_of(op, "x", x);
  const MixedCandidates candidates = candidates_of(op, features.channels, kinds, kernels, fields);
  check_floats(op, "weights", weights, static_cast<int64_t>(kinds.size()), Place::kCpu);
  check_floats(op, "params", params, candidates.num_parameters(), Place::kCpu);
  const int32_t num_threads = threads_of(op, threads);
  const auto isa = guarded(op, [] { return kernels::cpu::default_isa(); });
  const int64_t bytes =
      guarded(op, [&] { return mixed_op_saved_bytes(candidates, features, isa); });
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
  check_floats(op, "weights", weights, static_cast<int64_t>(kinds.size()), Place::kCpu);
  check_floats(op, "params", params, candidates.num_parameters(), Place::kCpu);
  const int32_t num_threads = threads_of(op, threads);
  const auto isa = guarded(op, [] { return kernels::cpu::default_isa(); });
  const int64_t bytes =
      guarded(op, [&] { return mixed_op_saved_bytes(candidates, features, isa); });
  check_saved(op, statistics, saved, candidates, bytes, Place::kCpu, kernels::cpu::kLineBytes);
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
