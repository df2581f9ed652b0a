// SPDX-License-Identifier: MIT
// What a reverse pass over a training schedule must know: who reads what, and where gradients lie.
//
// The gradient of a pass is that of the value it sums; a tensor's is the sum, by mixing weight, of
// the gradients of the passes that read it, and is nowhere stored.
#pragma once

#include <cstdint>
#include <vector>

#include "program/schedule.h"

namespace nasfast {

// A pass that reads a tensor, as one of its terms.
struct Reader {
  int32_t pass, term;
  int32_t weight;  // mixing weight, -1: none
};

struct Reverse {
  std::vector<std::vector<Reader>> readers;  // [tensors] those that the loss depends on
  std::vector<int32_t> gradient;             // [passes] buffer of its gradient; -1: nobody wants it
  int32_t num_buffers = 0;

  // Whether the loss depends on what a consumer computes.
  bool is_live(const Consumer& consumer) const {
    return consumer.use == Use::kClassify ||
           (consumer.out >= 0 && !readers[static_cast<size_t>(consumer.out)].empty());
  }
  const std::vector<Reader>& readers_of(int32_t tensor) const {
    return readers[static_cast<size_t>(tensor)];
  }
};

Reverse reverse_of(const Schedule& schedule);

}  // namespace nasfast
