// SPDX-License-Identifier: MIT
// Eight neighbouring channels of a pixel as floats.
#pragma once

#include "kernels/cuda/intrinsics.cuh"
#include "kernels/cuda/layout.h"

namespace nasfast::kernels::cuda {

constexpr int32_t kVector = 8;  // channels that a thread handles together

template <Precision P>
struct Numbers;

template <>
struct Numbers<Precision::kBf16> {
  using Type = uint16_t;
  static __device__ __forceinline__ float load(const uint16_t* from) { return low_bf16(*from); }
  static __device__ __forceinline__ void load8(const uint16_t* from, float (&out)[kVector]) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      out[2 * i] = low_bf16(words[i]);
      out[2 * i + 1] = high_bf16(words[i]);
    }
  }
  static __device__ __forceinline__ void store8(uint16_t* to, const float (&from)[kVector]) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]),
                   pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7]));
  }
  static __device__ __forceinline__ void store(uint16_t* to, float number) {
    *to = static_cast<uint16_t>(pack_bf16(number, 0.0f) & 0xFFFFu);
  }
  static __device__ __forceinline__ void store2(uint16_t* to, float first, float second) {
    *reinterpret_cast<uint32_t*>(to) = pack_bf16(first, second);
  }
  // As it is stored.
  static __device__ __forceinline__ float rounded(float number) {
    return low_bf16(pack_bf16(number, 0.0f));
  }
};

template <>
struct Numbers<Precision::kFp32> {
  using Type = float;
  static __device__ __forceinline__ float load(const float* from) { return *from; }
  static __device__ __forceinline__ void load8(const float* from, float (&out)[kVector]) {
    const float4 a = reinterpret_cast<const float4*>(from)[0];
    const float4 b = reinterpret_cast<const float4*>(from)[1];
    out[0] = a.x;
    out[1] = a.y;
    out[2] = a.z;
    out[3] = a.w;
    out[4] = b.x;
    out[5] = b.y;
    out[6] = b.z;
    out[7] = b.w;
  }
  static __device__ __forceinline__ void store8(float* to, const float (&from)[kVector]) {
    reinterpret_cast<float4*>(to)[0] = {from[0], from[1], from[2], from[3]};
    reinterpret_cast<float4*>(to)[1] = {from[4], from[5], from[6], from[7]};
  }
  static __device__ __forceinline__ void store(float* to, float number) { *to = number; }
  static __device__ __forceinline__ void store2(float* to, float first, float second) {
    *reinterpret_cast<float2*>(to) = {first, second};
  }
  static __device__ __forceinline__ float rounded(float number) { return number; }
};

// Stored as in fp32.
template <>
struct Numbers<Precision::kTf32> : Numbers<Precision::kFp32> {};

// What products of convolutions are made of, rounded for them.
template <Precision P>
static __device__ __forceinline__ float operand_of(float number) {
  return P == Precision::kTf32 ? rounded_tf32(number) : number;
}
template <Precision P>
static __device__ __forceinline__ void store_operand8(void* to, const float (&from)[kVector]) {
  float numbers[kVector];
#pragma unroll
  for (int32_t i = 0; i < kVector; ++i) numbers[i] = operand_of<P>(from[i]);
  Numbers<P>::store8(static_cast<typename Numbers<P>::Type*>(to), numbers);
}

}  // namespace nasfast::kernels::cuda
