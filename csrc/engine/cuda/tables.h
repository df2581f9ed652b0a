// SPDX-License-Identifier: MIT
// Tables in device memory, and the launches that read them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/cuda/error.h"
#include "engine/cuda/minibatch.h"
#include "engine/cuda/steps.h"
#include "engine/cuda/training_steps.h"
#include "kernels/cuda/gradient_launches.h"
#include "kernels/cuda/launches.h"

namespace nasfast::cuda {

// Copies tables to a place in device memory, one behind the other.
class Uploader {
 public:
  Uploader(std::byte* to, cudaStream_t stream) : to_(to), stream_(stream) {}
  virtual ~Uploader() = default;

  template <typename Row>
  const Row* add(const std::vector<Row>& rows) {
    auto* at = reinterpret_cast<Row*>(to_);
    to_ += bytes_of(rows);
    if (rows.empty()) return at;
    put(reinterpret_cast<std::byte*>(at), rows.data(), rows.size() * sizeof(Row));
    return at;
  }

  // That rows take there.
  template <typename Row>
  static int64_t bytes_of(const std::vector<Row>& rows) {
    const auto bytes = static_cast<int64_t>(rows.size() * sizeof(Row));
    return Placement::aligned(bytes);
  }

 protected:
  // A replay would read what lay here when it was recorded, which is gone by then.
  virtual void put(std::byte* to, const void* rows, size_t bytes) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check("tables", cudaStreamIsCapturing(stream_, &status));
    if (status != cudaStreamCaptureStatusNone) {
      throw std::runtime_error("stream: wanted one that is not being recorded, as tables of " +
                               std::to_string(bytes) + " bytes come from the host");
    }
    check("tables", cudaMemcpyAsync(to, rows, bytes, cudaMemcpyHostToDevice, stream_));
  }

  std::byte* to_;
  cudaStream_t stream_;
};

// Copies them all at once, when it is told: many small copies take longer than what they are for.
class Gatherer : public Uploader {
 public:
  // `host`: room for all of them until they are copied; null: it has its own.
  explicit Gatherer(std::byte* to, std::byte* host = nullptr)
      : Uploader(to, nullptr), begin_(to), host_(host) {}

  // Before any kernel that reads a table.
  void copy(cudaStream_t stream) {
    stream_ = stream;
    if (size_ > 0) Uploader::put(begin_, from(), size_);
  }
  // The same for few bytes, also into a stream that is being recorded.
  void copy_few(cudaStream_t stream) {
    constexpr size_t kFew = 64 * 1024;
    if (size_ > kFew) return copy(stream);
    check("tables", kernels::cuda::launch_store_table(from(), size_, begin_, stream));
  }

 private:
  void put(std::byte* to, const void* rows, size_t bytes) override {
    const auto at = static_cast<size_t>(to - begin_);
    size_ = at + bytes;
    if (host_ == nullptr) own_.resize(size_);
    std::memcpy((host_ != nullptr ? host_ : own_.data()) + at, rows, bytes);
  }

  const std::byte* from() const { return host_ != nullptr ? host_ : own_.data(); }

  std::byte* const begin_;
  std::byte* const host_;
  std::vector<std::byte> own_;
  size_t size_ = 0;
};

// The tables of a way forward.
struct DeviceSteps {
  const kernels::cuda::TermRow* terms = nullptr;
  const kernels::cuda::ConsumerRow* consumers = nullptr;
  const kernels::cuda::PassRow* passes = nullptr;
  const kernels::cuda::NormRow* norms = nullptr;
  const kernels::cuda::HeadRow* heads = nullptr;

  static int64_t bytes_of(const Steps& steps);
  static DeviceSteps upload(const Steps& steps, Uploader& uploader);
  // Passes and batch norms of a step.
  void run(const Step& step, kernels::cuda::Precision precision, cudaStream_t stream) const;
  kernels::cuda::HeadLaunch heads_of(const Step& step, int32_t classes, const Minibatch& minibatch,
                                     const Results& results) const;
};

// The tables of a way back.
struct DeviceBackwardSteps {
  const kernels::cuda::TermRow* terms = nullptr;
  const kernels::cuda::ReaderRow* readers = nullptr;
  const kernels::cuda::ResultRow* results = nullptr;
  const kernels::cuda::ShareRow* shares = nullptr;
  const kernels::cuda::GradientRow* gradients = nullptr;
  const kernels::cuda::SumRow* sums = nullptr;
  const kernels::cuda::MixingRow* mixing = nullptr;
  const kernels::cuda::WeightGradientRow* weights = nullptr;
  const kernels::cuda::WeightSumRow* weight_sums = nullptr;
  const kernels::cuda::HeadGradientRow* heads = nullptr;

  static int64_t bytes_of(const BackwardSteps& steps);
  static DeviceBackwardSteps upload(const BackwardSteps& steps, Uploader& uploader);
  // `forward`: the classifiers of the same step, if it has some.
  void run(const BackwardStep& step, const kernels::cuda::HeadLaunch& forward,
           const float* logit_gradient, kernels::cuda::Precision precision,
           cudaStream_t stream) const;
};

}  // namespace nasfast::cuda
