// SPDX-License-Identifier: MIT
// Included before all else by the operators' CUDA files, so that they are compiled for tensors of
// the CPU: their device is the emulator, their library nasfast_emulated.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstring>
#include <optional>

namespace torch::stable::emulated {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

}  // namespace torch::stable::emulated

namespace torch::stable {

// Bytes begin at addresses like those of a card's memory, which are rounder than the CPU's; and,
// as there, nothing is to be expected in them.
inline Tensor emulated_empty(const Tensor& like, headeronly::IntHeaderOnlyArrayRef size,
                             std::optional<headeronly::ScalarType> dtype = std::nullopt) {
  constexpr int64_t kAlignment = 512;
  if (dtype != headeronly::ScalarType::Byte) return new_empty(like, size, dtype);
  const int64_t bytes = size[0];
  Tensor all = new_empty(like, {bytes + kAlignment}, dtype);
  auto* begin = static_cast<unsigned char*>(all.mutable_data_ptr());
  std::memset(begin, 0xFF, static_cast<size_t>(bytes + kAlignment));
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % kAlignment);
  return narrow(all, 0, kAlignment - past, bytes);
}

}  // namespace torch::stable

inline AOTITorchError emulated_current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

#define accelerator emulated
#define aoti_torch_get_current_cuda_stream emulated_current_stream
#define is_cuda is_cpu
#define new_empty emulated_empty

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(nasfast_emulated, CPU, m, C10_UID)

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(library, m)                                                     \
  static void define_emulated(torch::stable::detail::StableLibrary&);                        \
  static const torch::stable::detail::StableTorchLibraryInit emulated_library(               \
      torch::stable::detail::StableLibrary::Kind::DEF, &define_emulated, "nasfast_emulated", \
      nullptr, __FILE__, __LINE__);                                                          \
  void define_emulated(torch::stable::detail::StableLibrary& m)
