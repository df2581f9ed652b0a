// SPDX-License-Identifier: MIT
// Checks of operator arguments: the message names operator, argument, what was wanted and what
// came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "engine/engine.h"

namespace nasfast::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAny = -1;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + "]";
}

[[noreturn]] inline void fail(const std::string& message) {
  STD_TORCH_CHECK(false, message);
  __builtin_unreachable();
}
inline void require(bool ok, const std::string& message) {
  if (!ok) fail(message);
}

enum class Place { kCpu, kCuda };

inline void check_place(const char* op, const char* name, const Tensor& tensor, Place wanted) {
  const bool is_cpu = wanted == Place::kCpu;
  require(is_cpu ? tensor.is_cpu() : tensor.is_cuda(),
          std::string(op) + ": " + name + ": wanted a " + (is_cpu ? "CPU" : "CUDA") +
              " tensor, got one of another device");
}
inline void check_cpu(const char* op, const char* name, const Tensor& tensor) {
  check_place(op, name, tensor, Place::kCpu);
}

inline std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another";
  }
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType wanted,
                        const char* wanted_name) {
  require(tensor.scalar_type() == wanted, std::string(op) + ": " + name + ": wanted dtype " +
                                              wanted_name + ", got " +
                                              name_of(tensor.scalar_type()));
}

// kAny accepts every size.
inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        std::initializer_list<int64_t> wanted) {
  bool fits = tensor.dim() == static_cast<int64_t>(wanted.size());
  std::string text = "[";
  int64_t i = 0;
  for (const int64_t size : wanted) {
    fits = fits && (size == kAny || tensor.size(i) == size);
    text += (i ? ", " : "") + (size == kAny ? std::string("any") : std::to_string(size));
    ++i;
  }
  require(fits,
          std::string(op) + ": " + name + ": wanted shape " + text + "], got " + shape_of(tensor));
}

inline void check_contiguous(const char* op, const char* name, const Tensor& tensor) {
  require(tensor.is_contiguous(),
          std::string(op) + ": " + name + ": wanted a contiguous tensor, got strides");
}

// A contiguous tensor.
inline void check_tensor(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                         std::initializer_list<int64_t> shape, Place place = Place::kCpu) {
  check_place(op, name, tensor, place);
  check_dtype(op, name, tensor, dtype, name_of(dtype).c_str());
  check_shape(op, name, tensor, shape);
  check_contiguous(op, name, tensor);
}

inline kernels::cpu::Precision precision_of(const char* op, const std::string& name) {
  require(name == "fp32" || name == "bf16",
          std::string(op) + ": precision: wanted fp32 or bf16, got " + name);
  return name == "fp32" ? kernels::cpu::Precision::kFp32 : kernels::cpu::Precision::kBf16;
}

inline BatchNormMode mode_of(const char* op, const char* name, const std::string& mode) {
  require(mode == "batch" || mode == "running" || mode == "recalibrate",
          std::string(op) + ": " + name + ": wanted batch, running or recalibrate, got " + mode);
  return mode == "batch" ? kBatch : mode == "running" ? kRunning : kRecalibrate;
}

// Runs `work`, turning the engine's exceptions into errors of the operator.
template <typename Work>
auto guarded(const char* op, const Work& work) {
  try {
    return work();
  } catch (const std::invalid_argument& error) {
    fail(std::string(op) + ": " + error.what());
  } catch (const std::bad_alloc&) {
    fail(std::string(op) + ": out of memory; a smaller memory budget makes smaller chunks");
  } catch (const std::exception& error) {
    fail(std::string(op) + ": " + error.what());
  }
}

}  // namespace nasfast::ops
