// SPDX-License-Identifier: MIT
// Between tensors of features, [batch, height, width, channels], and blocks of values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernels.h"

namespace nasfast {

// Contiguous, float32 or bfloat16; blocks are values of precision fp32 or bf16.
struct Features {
  void* data;
  bool is_bfloat16;
  int32_t batch, height, width, channels;

  int64_t block_bytes() const {
    const auto storage = is_bfloat16 ? kernels::cpu::Storage::kPair : kernels::cpu::Storage::kFloat;
    return int64_t{height} * width * kernels::cpu::lines(storage, channels) *
           kernels::cpu::kLineBytes;
  }
  // Images that a block lacks are zeros.
  void load(int32_t block, std::byte* to) const;
  void store(int32_t block, const std::byte* from) const;

 private:
  int32_t images_of(int32_t block) const;
};

}  // namespace nasfast
