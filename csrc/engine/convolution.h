// SPDX-License-Identifier: MIT
// A convolution of one shape by whichever kernels it goes to: row by row, or two rows at a time.
#pragma once

#include <cstdint>

#include "kernels/cpu/kernels.h"

namespace nasfast {

class Convolution {
 public:
  Convolution(const kernels::cpu::Kernels& kernels, int32_t in, int32_t out, int32_t kernel,
              int32_t stride, int32_t in_width)
      : kernels_(kernels),
        pairs_(kernels.pairs_for(in, out, kernel, stride, in_width)),
        in_(in),
        out_(out),
        kernel_(kernel) {}

  // Rows of results of one call; it reads `kernel` rows and one more for each further result.
  int32_t rows_at_once() const { return pairs_ != nullptr ? 2 : 1; }

  int64_t scratch_bytes() const { return pairs_ != nullptr ? pairs_->scratch_bytes(in_, out_) : 0; }
  int64_t packed_bytes() const {
    return pairs_ != nullptr ? pairs_->packed_bytes(in_, out_)
                             : kernels_.packed_bytes(in_, out_, kernel_);
  }
  void pack_weight(const float* weight, void* packed) const {
    if (pairs_ != nullptr) {
      pairs_->pack_weight(weight, in_, out_, packed);
    } else {
      kernels_.pack_weight(weight, in_, out_, kernel_, packed);
    }
  }
  void run(const kernels::cpu::ConvRow& row) const {
    (pairs_ != nullptr ? pairs_->convolve : kernels_.convolve)(row);
  }

 private:
  const kernels::cpu::Kernels& kernels_;
  const kernels::cpu::PairKernels* pairs_;
  int32_t in_, out_, kernel_;
};

}  // namespace nasfast
