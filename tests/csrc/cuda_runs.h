// SPDX-License-Identifier: MIT
// Runs of chunks on the emulated device.
#pragma once

#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "engine/cuda/chunk.h"
#include "engine/cuda/lane_groups.h"
#include "engine_runs.h"

namespace cuda_runs {

using engine_runs::Data;
using engine_runs::Scores;
using nasfast::ProgramTable;
using nasfast::kernels::cuda::Precision;

// Device memory of exactly this size; at first no number in it is one.
class DeviceMemory {
 public:
  explicit DeviceMemory(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)),
        data_(static_cast<std::byte*>(std::aligned_alloc(256, (bytes_ + 255) / 256 * 256)),
              std::free) {
    std::memset(data_.get(), 0xFF, (bytes_ + 255) / 256 * 256);
  }
  std::byte* get() const { return data_.get(); }

 private:
  size_t bytes_;
  std::unique_ptr<std::byte, void (*)(void*)> data_;
};

constexpr int64_t kMuch = std::numeric_limits<int64_t>::max();

// A device of some size, and what was asked of it.
struct Device {
  int64_t bytes = kMuch;
  std::vector<int64_t> asked;
  std::unique_ptr<DeviceMemory> memory;

  nasfast::cuda::Allocate allocator() {
    return [this](int64_t wanted) {
      asked.push_back(wanted);
      memory.reset();
      if (wanted > bytes) return static_cast<std::byte*>(nullptr);
      memory = std::make_unique<DeviceMemory>(wanted);
      return memory->get();
    };
  }
};

template <typename Work>
std::string refusal(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing";
}

inline bool has(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

inline nasfast::cuda::Options options_of(const Data& data, Precision precision,
                                         nasfast::BatchNormMode fixed = nasfast::kBatch,
                                         nasfast::BatchNormMode last = nasfast::kBatch) {
  return {precision, data.height, data.width, fixed, last};
}

inline Scores run(const ProgramTable& table, int32_t k, const float* arena, const Data& data,
                  const nasfast::cuda::Options& options) {
  const auto most = static_cast<int32_t>(*std::max_element(data.sizes.begin(), data.sizes.end()));
  const auto lanes = static_cast<int32_t>(table.chunk(k).size());
  nasfast::cuda::Chunk chunk(table, {k, 0, lanes}, options, most, {});
  const DeviceMemory memory(chunk.bytes());
  chunk.bind({memory.get(), arena}, nullptr);
  chunk.upload(nullptr);
  const auto rows = static_cast<size_t>(chunk.num_lanes() * data.count());
  const auto classes = static_cast<size_t>(table.positions().back().out_channels);
  Scores scores{std::vector<float>(rows * classes), std::vector<float>(rows),
                std::vector<uint8_t>(rows, 2)};
  const int64_t image = int64_t{data.channels} * data.height * data.width;
  int64_t first = 0;
  for (const int64_t size : data.sizes) {
    // Of its own size, so that reads behind it are seen.
    const std::vector<float> images(data.images.begin() + first * image,
                                    data.images.begin() + (first + size) * image);
    chunk.run({images.data(), data.labels.data() + first, static_cast<int32_t>(size), first},
              {scores.logits.data(), scores.loss.data(), scores.correct.data(), data.count()},
              nullptr);
    first += size;
  }
  return scores;
}

}  // namespace cuda_runs
