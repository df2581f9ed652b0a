// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace nasfast::cuda {

// Where results go, in device memory: rows of `num_images` images in the order of the lanes. Null:
// not wanted.
struct Results {
  float* logits = nullptr;     // [lanes, num_images, classes]
  float* loss = nullptr;       // [lanes, num_images] cross-entropy
  uint8_t* correct = nullptr;  // [lanes, num_images] 1 where the largest logit, the first of equal
                               // ones, is the label's and the loss is finite
  int64_t num_images = 0;
};

// A minibatch in device memory.
struct Minibatch {
  const float* images = nullptr;    // [count, channels, height, width]
  const int64_t* labels = nullptr;  // [count]; null where only logits are wanted
  int32_t count = 0;
  int64_t first = 0;  // its first image among those of the results
};

}  // namespace nasfast::cuda
