// SPDX-License-Identifier: MIT
#include "engine/loss.h"

#include <algorithm>
#include <cmath>

namespace nasfast {

double CrossEntropy::share(float logit) const { return std::exp(double{logit} - most) / sum; }

CrossEntropy cross_entropy(const float* logits, int32_t classes, int64_t label) {
  double most = logits[0];
  int32_t best = 0;
  for (int32_t k = 1; k < classes; ++k) {
    // PyTorch's argmax: the first of equal ones, and NaN before every number.
    if (logits[k] > logits[best] || (std::isnan(logits[k]) && !std::isnan(logits[best]))) best = k;
    most = std::max(most, double{logits[k]});
  }
  double sum = 0;
  for (int32_t k = 0; k < classes; ++k) sum += std::exp(double{logits[k]} - most);
  const double loss = std::log(sum) + most - double{logits[label]};
  return {loss, most, sum, best == label && std::isfinite(loss)};
}

}  // namespace nasfast
