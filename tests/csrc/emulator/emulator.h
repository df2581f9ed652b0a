// SPDX-License-Identifier: MIT
// Runs CUDA kernels on the CPU, thread by thread.
//
// Every thread of a block is a fiber; at a barrier of its block or its warp it waits until the
// others are there. Threads run one at a time, in an order that a test can choose: a kernel that
// lacks a barrier then gives other results. Shared memory is exactly as large as a launch asks for
// (so that a sanitizer sees what lies behind it), starts as NaN in every block, and asynchronous
// copies arrive no sooner than they are waited for. Which lane holds which number of a matrix is
// written down here once more, from the vendor's description of the instructions: a kernel that
// takes another map for its own gives wrong results.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulator {

enum class Order { kForward, kReverse, kShuffled };

// In which order blocks, and threads between two barriers, run. Of the calling thread.
void set_order(Order order);

// Whether what is put into the null stream runs only when somebody waits for it: a device that is
// slower than the host. Of the calling thread.
void set_late(bool late);

// Whether there is page-locked memory, of the calling thread.
void set_page_locked(bool is_there);

// Returns the error, and keeps it for cudaGetLastError().
cudaError_t report(cudaError_t error);

// Launches so far that ran, of the calling thread.
int64_t num_launches();

// Bytes of shared memory that a block of the device may have, of the calling thread; at first those
// of sm_80. More than 48 KiB only for kernels that cudaFuncSetAttribute() has allowed it.
void set_most_shared(int32_t bytes);

// `address`: the kernel's, that its attributes belong to.
cudaError_t launch(const void* address, std::function<void()> kernel, dim3 grid, int32_t threads,
                   int32_t shared_bytes, cudaStream_t stream);

dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();

void sync_block();
void sync_warp();
std::byte* shared_memory();

// The value that the lane of the warp with this number exchanges.
uint64_t exchange(uint64_t own, int32_t lane);
int32_t lane_index();

uint32_t pack_bf16(float low, float high);
void load_matrices(uint32_t (&out)[4], const void* row);
void load_turned_matrices(uint32_t (&out)[4], const void* row);
void multiply_bf16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
float rounded_tf32(float number);
// Ends the program where an operand is not rounded, whose last bits the hardware would not read.
void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void copy_async(void* shared, const void* global);
void wait_copies();

}  // namespace emulator

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_size())
#define gridDim (::emulator::grid_size())

inline void __syncthreads() { emulator::sync_block(); }
inline void __syncwarp(uint32_t = 0xFFFFFFFFu) { emulator::sync_warp(); }

template <typename T>
T __shfl_xor_sync(uint32_t, T value, int lanes) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = emulator::exchange(bits, emulator::lane_index() ^ lanes);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
