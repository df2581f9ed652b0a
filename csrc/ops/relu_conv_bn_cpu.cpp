// SPDX-License-Identifier: MIT
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <mutex>
#include <vector>

#include "engine/relu_conv_bn.h"
#include "ops/checks.h"

namespace nasfast::ops {
namespace {

Tensor relu_conv_bn_cpu(const Tensor& features, const Tensor& weight, int64_t stride, double eps) {
  const char* op = "relu_conv_bn";
  const ScalarType dtype = features.scalar_type();
  require(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
          std::string(op) + ": features: wanted dtype float32 or bfloat16, got " + name_of(dtype));
  check_dtype(op, "weight", weight, dtype, "that of features");
  check_shape(op, "features", features, {kAny, kAny, kAny, kAny});
  require(weight.dim() == 4,
          std::string(op) + ": weight: wanted 4 dimensions, got " + shape_of(weight));
  const int64_t kernel = weight.size(3);
  require(kernel % 2 == 1 && kernel <= kMaxKernel,
          std::string(op) + ": weight: wanted an odd kernel of 1..31, got " + shape_of(weight));
  check_shape(op, "weight", weight, {kAny, features.size(1), kernel, kernel});
  require(stride == 1 || stride == 2,
          std::string(op) + ": stride: wanted 1 or 2, got " + std::to_string(stride));
  require(features.size(2) <= kMaxSide && features.size(3) <= kMaxSide &&
              features.size(1) <= kMaxChannels && weight.size(0) <= kMaxChannels &&
              features.size(0) <= kMaxBatch,
          std::string(op) + ": features: too large, got " + shape_of(features));

  require(eps >= 0, std::string(op) + ": eps: wanted at least 0, got " + std::to_string(eps));

  // Allocate: channels-last memory, seen as [batch, channels, height, width].
  const int64_t height = (features.size(2) + stride - 1) / stride;
  const int64_t width = (features.size(3) + stride - 1) / stride;
  const Tensor memory =
      torch::stable::new_empty(features, {features.size(0), height, width, weight.size(0)});
  const Tensor out = torch::stable::transpose(torch::stable::transpose(memory, 2, 3), 1, 2);
  if (memory.numel() == 0) return out;
  require(features.numel() > 0, std::string(op) + ": features: wanted channels, got none");
  const Tensor weights = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));

  ReluConvBnParams params;
  params.features = features.const_data_ptr();
  for (int64_t i = 0; i < 4; ++i) params.strides[i] = features.stride(i);
  params.weight = weights.const_data_ptr<float>();
  params.out = memory.mutable_data_ptr();
  params.is_bfloat16 = dtype == ScalarType::BFloat16;
  params.batch = static_cast<int32_t>(features.size(0));
  params.in_channels = static_cast<int32_t>(features.size(1));
  params.height = static_cast<int32_t>(features.size(2));
  params.width = static_cast<int32_t>(features.size(3));
  params.out_channels = static_cast<int32_t>(weight.size(0));
  params.kernel = static_cast<int32_t>(kernel);
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
