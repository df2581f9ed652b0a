// SPDX-License-Identifier: MIT
// The CUDA device of an operator, and checks of what lies there.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "engine/checks.h"
#include "engine/cuda/error.h"
#include "engine/cuda/lane_groups.h"
#include "ops/program_checks.h"

namespace nasfast::ops {

// Lanes side by side fill a card long before this; what is free bounds it further.
constexpr int64_t kMostWanted = int64_t{4} << 30, kLeastWanted = int64_t{256} << 20;

// On one device, at addresses that the kernels can read.
inline void check_together(const char* op, const char* name, const Tensor& tensor,
                           const Tensor& images, const char* whose = "images") {
  require(tensor.get_device_index() == images.get_device_index(),
          std::string(op) + ": " + name + ": wanted a tensor on the device of " + whose +
              ", cuda:" + std::to_string(images.get_device_index()) +
              ", got cuda:" + std::to_string(tensor.get_device_index()));
  require(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % tensor.element_size() == 0,
          std::string(op) + ": " + name + ": wanted an address aligned to its numbers");
}

// The device that the current stream and all calls are of, as long as it lives.
class Device {
 public:
  explicit Device(const Tensor& images)
      : index_(images.get_device_index()), guard_(index_), like_(images) {}

  // Throws if the kernels do not run there.
  void check() const {
    int major = 0, minor = 0;
    cuda::check("device",
                cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_));
    cuda::check("device",
                cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index_));
    nasfast::require(major >= 8, "device: wanted compute capability 8.0 or later, got " +
                                     std::to_string(major) + "." + std::to_string(minor));
  }

  cudaStream_t stream() const {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

  // What the caller allows; or so much of what is free that others have room too. Memory that torch
  // keeps for later counts as taken, so there is a least: allocate() says what there really is.
  cuda::Budget budget(int64_t memory) const {
    if (memory > 0) return {memory, memory};
    size_t free = 0, total = 0;
    cuda::check("memory", cudaMemGetInfo(&free, &total));
    const auto half = static_cast<int64_t>(free / 2);
    return {std::clamp(half, kLeastWanted, kMostWanted), std::numeric_limits<int64_t>::max()};
  }

  // From torch's allocator, which gives what it got back to whoever asks next on the stream.
  std::byte* allocate(int64_t bytes) {
    memory_.reset();
    try {
      memory_ = torch::stable::new_empty(like_, {bytes}, ScalarType::Byte);
    } catch (const std::exception&) {
      // There is no telling why. A device that still answers is out of memory.
      size_t free = 0, total = 0;
      cuda::check("memory", cudaMemGetInfo(&free, &total));
      return nullptr;
    }
    auto* begin = static_cast<std::byte*>(memory_->mutable_data_ptr());
    cuda::check("memory", reinterpret_cast<uintptr_t>(begin) % cuda::Placement::kAlignment == 0
                              ? cudaSuccess
                              : cudaErrorMisalignedAddress);
    return begin;
  }

 private:
  const int32_t index_;
  const torch::stable::accelerator::DeviceGuard guard_;
  const Tensor like_;
  std::optional<Tensor> memory_;
};

inline kernels::cuda::Precision device_precision_of(const char* op, const std::string& name) {
  require(name == "fp32" || name == "bf16" || name == "tf32",
          std::string(op) + ": precision: wanted fp32, bf16 or tf32, got " + name);
  if (name == "tf32") return kernels::cuda::Precision::kTf32;
  return name == "bf16" ? kernels::cuda::Precision::kBf16 : kernels::cuda::Precision::kFp32;
}

inline cuda::Options cuda_options_of(const char* op, const Tensor& images,
                                     const std::string& precision, const std::string& fixed,
                                     const std::string& last) {
  check_sides(op, images);
  cuda::Options options;
  options.precision = device_precision_of(op, precision);
  options.height = static_cast<int32_t>(images.size(2));
  options.width = static_cast<int32_t>(images.size(3));
  options.fixed = mode_of(op, "fixed", fixed);
  options.last = mode_of(op, "last", last);
  return options;
}

// A label that names no class would be read as an address by a kernel. Labels come from anyone, and
// are few beside what is computed: they are copied back and looked at.
inline void check_device_labels(const ProgramTable& program, const Tensor& labels,
                                const std::vector<int64_t>& sizes, cudaStream_t stream) {
  std::vector<int64_t> host(static_cast<size_t>(labels.numel()));
  cuda::check("labels",
              cudaMemcpyAsync(host.data(), labels.const_data_ptr<int64_t>(),
                              host.size() * sizeof(int64_t), cudaMemcpyDeviceToHost, stream));
  cuda::check("labels", cudaStreamSynchronize(stream));
  nasfast::check_labels(program, {nullptr, sizes}, host.data());
}

}  // namespace nasfast::ops
