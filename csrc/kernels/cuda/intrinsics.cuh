// SPDX-License-Identifier: MIT
// What the kernels use of a device beyond plain CUDA C++: matrix instructions, asynchronous copies,
// launches. Without nvcc the kernels are compiled against an emulator that runs them on the CPU
// (tests/csrc/emulator), so that everything but the hardware itself is tested everywhere.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#if !defined(__CUDACC__)
#include "emulator.h"
#endif

namespace nasfast::kernels::cuda {

constexpr int32_t kWarp = 32;

#if defined(__CUDACC__)

// Two floats as bfloat16, rounded to nearest even, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Rounded to 10 bits behind the point, ties away from zero: an operand of multiply_tf32().
__device__ __forceinline__ float rounded_tf32(float number) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(number));
  return __uint_as_float(bits);
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8x8 matrices of 16-bit numbers, or 8x4 of 32-bit ones; lane 8 * j + r names row r of matrix
// j, 16 bytes.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// Each matrix turned: a lane gets numbers lane % 4 * 2 and the next of column lane / 4.
__device__ __forceinline__ void load_turned_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// sum[16, 8] += a[16, 16] * b[16, 8], fragments as fragments.h says.
__device__ __forceinline__ void multiply_bf16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sum[16, 8] += a[16, 8] * b[8, 8], bits of rounded_tf32() numbers, fragments as fragments.h says.
__device__ __forceinline__ void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies 16 bytes to shared memory; there once the same thread has called wait_copies().
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
}
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The block's shared memory, as large as its launch said.
__device__ __forceinline__ std::byte* shared_memory() {
  extern __shared__ __align__(16) std::byte nasfast_shared[];
  return nasfast_shared;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int32_t threads, int32_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<grid, static_cast<uint32_t>(threads), static_cast<size_t>(shared_bytes), stream>>>(
      arguments...);
  return cudaGetLastError();
}

#else

inline uint32_t pack_bf16(float low, float high) { return emulator::pack_bf16(low, high); }
inline float rounded_tf32(float number) { return emulator::rounded_tf32(number); }
inline void load_matrices(uint32_t (&out)[4], const void* row) {
  emulator::load_matrices(out, row);
}
inline void load_turned_matrices(uint32_t (&out)[4], const void* row) {
  emulator::load_turned_matrices(out, row);
}
inline void multiply_bf16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_bf16(sum, a, b0, b1);
}
inline void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_tf32(sum, a, b0, b1);
}
inline void copy_async(void* shared, const void* global) { emulator::copy_async(shared, global); }
inline void wait_copies() { emulator::wait_copies(); }
inline std::byte* shared_memory() { return emulator::shared_memory(); }

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int32_t threads, int32_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  return emulator::launch(
      reinterpret_cast<const void*>(kernel), [=] { kernel(arguments...); }, grid, threads,
      shared_bytes, stream);
}

#endif

__device__ __forceinline__ uint32_t bits_of(float number) {
  uint32_t bits;
  memcpy(&bits, &number, sizeof bits);
  return bits;
}
__device__ __forceinline__ float low_bf16(uint32_t pair) {
  const uint32_t bits = pair << 16;
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}
__device__ __forceinline__ float high_bf16(uint32_t pair) {
  const uint32_t bits = pair & 0xFFFF0000u;
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

// Lets a kernel have the shared memory that a launch asks for. What it may have is the same in
// every launch, the device's most, so that host threads that launch it side by side do not take it
// away from one another.
template <typename... Parameters>
cudaError_t allow_shared_memory(void (*kernel)(Parameters...), int32_t bytes) {
  constexpr int32_t kAlwaysThere = 48 * 1024;
  if (bytes <= kAlwaysThere) return cudaSuccess;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// max(x, 0) that keeps NaN.
__device__ __forceinline__ float rectified(float x) { return x < 0.0f ? 0.0f : x; }

}  // namespace nasfast::kernels::cuda
