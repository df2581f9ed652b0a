// SPDX-License-Identifier: MIT
// The loss of one image.
#pragma once

#include <cstdint>

namespace nasfast {

// Cross-entropy of logits in double precision, and what its gradient is made of.
struct CrossEntropy {
  double loss;
  double most;   // the largest logit
  double sum;    // of exp(logit - most) over the classes
  bool correct;  // the first of the largest logits is the label's, and the loss is finite

  // What softmax gives to a class with this logit.
  double share(float logit) const;
};
CrossEntropy cross_entropy(const float* logits, int32_t classes, int64_t label);

}  // namespace nasfast
