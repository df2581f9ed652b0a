// SPDX-License-Identifier: MIT
#pragma once

#include "engine/training.h"
#include "kernels/cuda/sgd.h"

namespace nasfast::cuda {

// With the numbers of SGD; the rest is empty.
inline kernels::cuda::SgdLaunch launch_of(const Sgd& sgd) {
  kernels::cuda::SgdLaunch launch{};
  launch.clip = sgd.clip;
  launch.momentum = static_cast<float>(sgd.momentum);
  launch.weight_decay = static_cast<float>(sgd.weight_decay);
  launch.is_nesterov = sgd.nesterov;
  return launch;
}

}  // namespace nasfast::cuda
