// SPDX-License-Identifier: MIT
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <mutex>
#include <vector>

#include "engine/relu_conv_bn.h"
#include "ops/feature_checks.h"

namespace nasfast::ops {
namespace {

Tensor relu_conv_bn_cpu(const Tensor& features, const Tensor& weight, int64_t stride, double eps) {
  const char* op = "relu_conv_bn";
  check_relu_conv_bn(op, features, weight, stride, eps, Place::kCpu);
  const int64_t height = (features.size(2) + stride - 1) / stride;
  const int64_t width = (features.size(3) + stride - 1) / stride;
  const Tensor memory = new_memory(features, height, width, weight.size(0));
  const Tensor out = seen_as_features(memory);
  if (memory.numel() == 0) return out;
  require(features.numel() > 0, std::string(op) + ": features: wanted channels, got none");
  const Tensor weights = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));

  ReluConvBnParams params;
  params.features = features.const_data_ptr();
  for (int64_t i = 0; i < 4; ++i) params.strides[i] = features.stride(i);
  params.weight = weights.const_data_ptr<float>();
  params.out = memory.mutable_data_ptr();
  params.is_bfloat16 = is_bfloat16(features);
  params.batch = static_cast<int32_t>(features.size(0));
  params.in_channels = static_cast<int32_t>(features.size(1));
  params.height = static_cast<int32_t>(features.size(2));
  params.width = static_cast<int32_t>(features.size(3));
  params.out_channels = static_cast<int32_t>(weight.size(0));
  params.kernel = static_cast<int32_t>(weight.size(3));
  params.stride = static_cast<int32_t>(stride);
  params.eps = eps;
  const auto parallel_for = [](int64_t count, const std::function<void(int64_t)>& work) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work(i);
    });
  };
  guarded(op, [&] {
    relu_conv_bn(params, kernels::cpu::default_isa(), parallel_for);
    return 0;
  });
  return out;
}

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CPU, m) {
  m.impl("relu_conv_bn", TORCH_BOX(&nasfast::ops::relu_conv_bn_cpu));
}
