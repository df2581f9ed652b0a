// SPDX-License-Identifier: MIT
#include <immintrin.h>

#include "kernels/cpu/gradients.h"
#include "kernels/cpu/isa.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")

namespace nasfast::kernels::cpu {
namespace {
// clang-format off: each needs the ones before
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/storage.inl"
#include "kernels/cpu/convolution.inl"
#include "kernels/cpu/winograd.inl"
#include "kernels/cpu/weight_gradient.inl"
#include "kernels/cpu/max_pool_gradient.inl"
#include "kernels/cpu/gradients.inl"
#include "kernels/cpu/ranged.inl"
#include "kernels/cpu/max_halve.inl"
#include "kernels/cpu/elementwise.inl"
// clang-format on
}  // namespace

extern const Kernels kernels_avx512[2] = {
    make_kernels<FloatValues, FloatOperands<FloatValues>>(&kWinograd),
    make_kernels<PairValues, FloatOperands<PairValues>>(),
};
}  // namespace nasfast::kernels::cpu
