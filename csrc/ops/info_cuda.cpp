// SPDX-License-Identifier: MIT
// What the CUDA kernels of this build are compiled for. A build without them has no such file, so
// that the operator has a schema but no kernel there.
#include <torch/csrc/stable/library.h>

#include <string>

namespace nasfast::ops {
namespace {

std::string cuda_archs() { return NASFAST_CUDA_ARCHS; }  // defined by setup.py

}  // namespace
}  // namespace nasfast::ops

STABLE_TORCH_LIBRARY_IMPL(nasfast, CompositeExplicitAutograd, m) {
  m.impl("cuda_archs", TORCH_BOX(&nasfast::ops::cuda_archs));
}
