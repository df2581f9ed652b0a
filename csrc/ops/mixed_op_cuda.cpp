// SPDX-License-Identifier: MIT
// Operators between tensors of features on CUDA devices.
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "engine/cuda/mixed_op.h"
#include "engine/cuda/relu_conv_bn.h"
#include "ops/device.h"
#include "ops/feature_checks.h"

namespace nasfast::ops {
namespace {

cuda::FeatureShape shape_of_features(const Tensor& features) {
  return {is_bfloat16(features) ? kernels::cuda::Precision::kBf16 : kernels::cuda::Precision::kFp32,
          {static_cast<int32_t>(features.size(0)), static_cast<int32_t>(features.size(2)),
           static_cast<int32_t>(features.size(3))}};
}

kernels::cuda::FeatureTensor feature_tensor(const Tensor& features) {
  return {features.const_data_ptr(),
          {features.stride(0), features.stride(1), features.stride(2), features.stride(3)}};
}

// Working memory that is taken back once what is launched has run.
std::byte* allocate(const char* op, Device& device, int64_t bytes) {
  std::byte* memory = guarded(op, [&] { return device.allocate(bytes); });
  require(memory != nullptr,
          std::string(op) + ": out of memory: wanted " + std::to_string(bytes) + " bytes");
  return memory;
}

std::tuple<Tensor, Tensor, Tensor> mixed_op_cuda(const Tensor& x, const Tensor& weights,
                                                 const Tensor& params, std::vector<int64_t> kinds,
                                                 std::vector<int64_t> kernels,
                                                 std::vector<int64_t> fields, int64_t threads) {
  const char* op = "mixed_op";
  check_features(op, "x", x, Place::kCuda);
  check_some(op, "x", x);
  check_together(op, "x", x, x, "x");
  const MixedCandidates candidates = candidates_of(op, x.size(1), kinds, kernels, fields);
  check_floats(op, "weights", weights, static_cast<int64_t>(kinds.size()), Place::kCuda);
  check_together(op, "weights", weights, x, "x");
  check_floats(op, "params", params, candidates.num_parameters(), Place::kCuda);
  check_together(op, "params", params, x, "x");
  check_mixed_threads(op, threads);
  Device device(x);
  guarded(op, [&] { device.check(); });
  const cuda::MixedForward forward =
      guarded(op, [&] { return cuda::MixedForward(candidates, shape_of_features(x)); });
  const Tensor memory = new_memory(x, x.size(2), x.size(3), x.size(1));
  const Tensor statistics =
      torch::stable::new_empty(params, {candidates.num_convolutions(), 2, x.size(1)});
  const Tensor saved = torch::stable::new_empty(params, {forward.saved_bytes()}, ScalarType::Byte);
  std::byte* working = allocate(op, device, forward.bytes());
  guarded(op, [&] {
    forward.run({feature_tensor(x), weights.const_data_ptr<float>(), params.const_data_ptr<float>(),
                 memory.mutable_data_ptr(), statistics.mutable_data_ptr<float>(),
                 static_cast<std::byte*>(saved.mutable_data_ptr())},
                working, device.stream());
  });
  return {seen_as_features(memory), statistics, saved};
}

std::tuple<Tensor, Tensor, Tensor> mixed_op_backward_cuda(
    const Tensor& grad, const Tensor& weights, const Tensor& params, const Tensor& statistics,
    const Tensor& saved, std::vector<int64_t> kinds, std::vector<int64_t> kernels,
    std::vector<int64_t> fields, bool needs_x, int64_t threads) {
  const char* op = "mixed_op_backward";
  check_features(op, "grad", grad, Place::kCuda);
  check_some(op, "grad", grad);
  check_together(op, "grad", grad, grad, "grad");
  const MixedCandidates candidates = candidates_of(op, grad.size(1), kinds, kernels, fields);
  check_floats(op, "weights", weights, static_cast<int64_t>(kinds.size()), Place::kCuda);
  check_together(op, "weights", weights, grad, "grad");
  check_floats(op, "params", params, candidates.num_parameters(), Place::kCuda);
  check_together(op, "params", params, grad, "grad");
  check_mixed_threads(op, threads);
  const cuda::MixedBackward backward = guarded(
      op, [&] { return cuda::MixedBackward(candidates, shape_of_features(grad), needs_x); });
  // Statistics are those of the CPU's way back; here they are saved in double precision.
  check_saved(op, statistics, saved, candidates, backward.saved_bytes(), Place::kCuda,
              cuda::Placement::kAlignment);
  check_together(op, "saved", saved, grad, "grad");
  Device device(grad);
  guarded(op, [&] { device.check(); });
  const Tensor memory = needs_x ? new_memory(grad, grad.size(2), grad.size(3), grad.size(1))
                                : torch::stable::new_empty(grad, {0});
  const Tensor grad_weights = torch::stable::new_empty(weights, {weights.size(0)});
  const Tensor grad_params = torch::stable::new_empty(params, {params.size(0)});
  std::byte* working = allocate(op, device, backward.bytes());
  guarded(op, [&] {
    backward.run({feature_tensor(grad), weights.const_data_ptr<float>(),
                  params.const_data_ptr<float>(), static_cast<std::byte*>(saved.mutable_data_ptr()),
                  needs_x ? memory.mutable_data_ptr() : nullptr,
                  grad_weights.mutable_data_ptr<float>(), grad_params.mutable_data_ptr<float>()},
                 working, device.stream());
  });
  return {needs_x ? seen_as_features(memory) : memory, grad_weights, grad_params};
}

// What a device does not take follows from sides and channels, whatever the batch.
std::string mixed_op_refusal(int64_t channels, int64_t height, int64_t width, bool bfloat16,
                             std::vector<int64_t> kinds, std::vector<int64_t> kernels) {
  const char* op = "mixed_op_refusal";
  for (const auto& [name, size, most] : {std::tuple{"channels", channels, int64_t{kMaxChannels}},
                                         std::tuple{"height", height, int64_t{kMaxSide}},
                                         std::tuple{"width", width, int64_t{kMaxSide}}}) {
    require(size >= 1 && size <= most, std::string(op) + ": " + name + ": wanted 1.." +
                                           std::to_string(most) + ", got " + std::to_string(size));
  }
  const std::vector<int64_t> fields(kinds.size(), 0);
  const MixedCandidates candidates = candidates_of(op, channels, kinds, kernels, fields);
  const auto precision =
      bfloat16 ? kernels::cuda::Precision::kBf16 : kernels::cuda::Precision::kFp32;
  const cuda::FeatureShape shape = {precision,
                                    {1, static_cast<int32_t>(height), static_cast<int32_t>(width)}};
  try {
    cuda::require_mixed_op_fits(candidates, shape);
  } catch (const std::invalid_argument& error) {
    return error.what();
  } catch (const std::exception& error) {
    fail(std::string(op) + ": " + error.what());
  }
  return "";
}

Tensor relu_conv_bn_cuda(const Tensor& features, const Tensor& weight, int64_t stride, double eps) {
  const char* op = "relu_conv_bn";
  check_relu_conv_bn(op, features, weight, stride, eps, Place::kCuda);
  check_together(op, "features", features, features, "features");
  check_together(op, "weight", weight, features, "features");
  const int64_t height = (features.size(2) + stride - 1) / stride;
  const int64_t width = (features.size(3) + stride - 1) / stride;
  Device device(features);
  guarded(op, [&] { device.check(); });
  const Tensor memory = new_memory(features, height, width, weight.size(0));
  const Tensor out = seen_as_features(memory);
  if (memory.numel() == 0) return out;
  require(features.numel() > 0, std::string(op) + ": features: wanted channels, got none");
  const Tensor weights = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));
  const cuda::NormalisedConvolution wanted = {
      static_cast<int32_t>(features.size(1)), static_cast<int32_t>(weight.size(0)),
      static_cast<int32_t>(weight.size(3)), static_cast<int32_t>(stride), eps};
  const cuda::ReluConvBn convolution =
      guarded(op, [&] { return cuda::ReluConvBn(wanted, shape_of_features(features)); });
  std::byte* working = allocate(op, device, convolution.bytes());
  guarded(op, [&] {
    convolution.run(feature_tensor(features), weights.const_data_ptr<float>(),
                    memory.mutable_data_ptr(), working, device.stream());
  });
  return out;
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CUDA, m) {
  m.impl("mixed_op", TORCH_BOX(&nasfast::ops::mixed_op_cuda));
  m.impl("mixed_op_backward", TORCH_BOX(&nasfast::ops::mixed_op_backward_cuda));
  m.impl("relu_conv_bn", TORCH_BOX(&nasfast::ops::relu_conv_bn_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(nasfast, CompositeExplicitAutograd, m) {
  m.impl("mixed_op_refusal", TORCH_BOX(&nasfast::ops::mixed_op_refusal));
}
