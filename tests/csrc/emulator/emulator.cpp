// SPDX-License-Identifier: MIT
#include "emulator.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

namespace {

constexpr int32_t kLanes = 32;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
};

struct Thread {
  Fiber fiber;
  bool is_done = false, waits_block = false, waits_warp = false;
  std::vector<Copy> copies;
};

struct Warp {
  int32_t arrived = 0, alive = 0;
  uint64_t slots[kLanes];
  float a[16][16], b[16][8];  // operands of a matrix instruction
  const std::byte* rows[kLanes];
};

// One block at a time.
struct Machine {
  Order order = Order::kForward;
  int64_t num_launches = 0;
  dim3 grid, block, size;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unique_ptr<std::byte[]> shared;
  const std::function<void()>* kernel = nullptr;
  Fiber main;
  int32_t current = -1;
  int32_t arrived = 0, alive = 0;
  std::minstd_rand random{1};
  int32_t most_shared = 163 * 1024;
  std::map<const void*, int32_t> allowed;  // bytes of shared memory, by kernel
  cudaError_t last_error = cudaSuccess;

  cudaError_t report(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
  }

  Thread& thread() { return threads[static_cast<size_t>(current)]; }
  Warp& warp() { return warps[static_cast<size_t>(current / kLanes)]; }

  void run_block(int32_t count, int32_t shared_bytes);
  std::vector<int32_t> ordered(int32_t count);
};

thread_local Machine machine;

void enter() {
  machine.main.arrive();
  (*machine.kernel)();
  if (!machine.thread().copies.empty()) {
    fail("a thread ends with copies that it has not waited for");
  }
  machine.thread().is_done = true;
  machine.thread().fiber.leave_for(machine.main);
}

std::vector<int32_t> Machine::ordered(int32_t count) {
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  if (order == Order::kReverse) std::reverse(numbers.begin(), numbers.end());
  if (order == Order::kShuffled) std::shuffle(numbers.begin(), numbers.end(), random);
  return numbers;
}

void Machine::run_block(int32_t count, int32_t shared_bytes) {
  shared.reset(new std::byte[static_cast<size_t>(shared_bytes)]);
  std::memset(shared.get(), 0xFF, static_cast<size_t>(shared_bytes));
  if (threads.size() != static_cast<size_t>(count)) {
    threads = std::vector<Thread>(static_cast<size_t>(count));
  }
  warps.assign(static_cast<size_t>((count + kLanes - 1) / kLanes), Warp{});
  for (int32_t t = 0; t < count; ++t) {
    Thread& thread = threads[static_cast<size_t>(t)];
    thread.is_done = thread.waits_block = thread.waits_warp = false;
    thread.fiber.start(enter);
    ++warps[static_cast<size_t>(t / kLanes)].alive;
  }
  alive = count;
  arrived = 0;
  while (alive > 0) {
    bool moved = false;
    for (const int32_t t : ordered(count)) {
      Thread& next = threads[static_cast<size_t>(t)];
      if (next.is_done || next.waits_block || next.waits_warp) continue;
      moved = true;
      current = t;
      main.switch_to(next.fiber);
      if (!next.is_done) continue;
      --alive;
      --warp().alive;
      if (warp().arrived > 0) fail("a lane ended while others of its warp wait");
      if (arrived > 0) fail("a thread ended while others wait at a barrier");
    }
    if (!moved && alive > 0) fail("threads wait at barriers that others do not reach");
  }
}

}  // namespace

void set_order(Order order) { machine.order = order; }
int64_t num_launches() { return machine.num_launches; }

cudaError_t report(cudaError_t error) { return machine.report(error); }
void set_most_shared(int32_t bytes) { machine.most_shared = bytes; }

cudaError_t launch(const void* address, std::function<void()> kernel, dim3 grid, int32_t threads,
                   int32_t shared_bytes, cudaStream_t stream) {
  constexpr int32_t kAlwaysThere = 48 * 1024, kMostThreads = 1024;
  const bool is_empty = grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (is_empty || grid.y > 65535 || grid.z > 65535 || threads < 1 || threads > kMostThreads ||
      threads % kLanes != 0) {
    return machine.report(cudaErrorInvalidConfiguration);
  }
  const auto allowed = machine.allowed.find(address);
  const int32_t most = allowed != machine.allowed.end() ? allowed->second : kAlwaysThere;
  if (shared_bytes < 0 || shared_bytes > most) return machine.report(cudaErrorInvalidValue);
  return enqueue(stream, [=, kernel = std::move(kernel)] {
    ++machine.num_launches;
    machine.kernel = &kernel;
    machine.grid = grid;
    machine.size = dim3(static_cast<uint32_t>(threads));
    for (const int32_t block : machine.ordered(static_cast<int32_t>(grid.x * grid.y * grid.z))) {
      const auto b = static_cast<uint32_t>(block);
      machine.block = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
      machine.run_block(threads, shared_bytes);
    }
    return cudaSuccess;
  });
}

dim3 thread_index() { return dim3(static_cast<uint32_t>(machine.current)); }
dim3 block_index() { return machine.block; }
dim3 block_size() { return machine.size; }
dim3 grid_size() { return machine.grid; }
std::byte* shared_memory() { return machine.shared.get(); }
int32_t lane_index() { return machine.current % kLanes; }

void sync_block() {
  machine.thread().waits_block = true;
  if (++machine.arrived == machine.alive) {
    machine.arrived = 0;
    for (Thread& thread : machine.threads) thread.waits_block = false;
  }
  machine.thread().fiber.switch_to(machine.main);
}

void sync_warp() {
  Warp& warp = machine.warp();
  machine.thread().waits_warp = true;
  if (++warp.arrived == warp.alive) {
    warp.arrived = 0;
    const int32_t first = machine.current / kLanes * kLanes;
    for (int32_t lane = 0; lane < kLanes; ++lane) {
      machine.threads[static_cast<size_t>(first + lane)].waits_warp = false;
    }
  }
  machine.thread().fiber.switch_to(machine.main);
}

uint64_t exchange(uint64_t own, int32_t lane) {
  Warp& warp = machine.warp();
  warp.slots[lane_index()] = own;
  sync_warp();
  const uint64_t other = warp.slots[lane];
  sync_warp();
  return other;
}

uint32_t pack_bf16(float low, float high) {
  const auto round = [](float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    if (number != number) return uint32_t{0x7FFF};  // as the hardware's instruction does
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}

void load_matrices(uint32_t (&out)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a matrix row that is not aligned");
  Warp& warp = machine.warp();
  const int32_t lane = lane_index();
  warp.rows[lane] = static_cast<const std::byte*>(row);
  sync_warp();
  for (int32_t j = 0; j < 4; ++j) {
    std::memcpy(&out[j], warp.rows[8 * j + lane / 4] + lane % 4 * 4, sizeof out[j]);
  }
  sync_warp();
}

void load_turned_matrices(uint32_t (&out)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a matrix row that is not aligned");
  Warp& warp = machine.warp();
  const int32_t lane = lane_index();
  warp.rows[lane] = static_cast<const std::byte*>(row);
  sync_warp();
  for (int32_t j = 0; j < 4; ++j) {
    uint16_t pair[2];
    for (int32_t half = 0; half < 2; ++half) {
      std::memcpy(&pair[half], warp.rows[8 * j + lane % 4 * 2 + half] + lane / 4 * 2, 2);
    }
    out[j] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  sync_warp();
}

namespace {

float float_of(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// All lanes have put their numbers of both operands; adds the products of the lane's own four:
// c0 and c1 of row groupID, columns threadID_in_group * 2 and the next, c2 and c3 eight rows below.
void add_products(float (&sum)[4], int32_t depth) {
  const Warp& warp = machine.warp();
  const int32_t group = lane_index() >> 2, in_group = lane_index() & 3;
  sync_warp();
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
    for (int32_t k = 0; k < depth; ++k) sum[i] += warp.a[row][k] * warp.b[k][column];
  }
  sync_warp();
}

}  // namespace

// mma.m16n8k16, .bf16: a0 to a7 and b0 to b3, two of them a register.
void multiply_bf16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Warp& warp = machine.warp();
  const int32_t group = lane_index() >> 2, in_group = lane_index() & 3;
  const auto number = [](uint32_t pair, int32_t i) {
    return float_of(i % 2 == 0 ? pair << 16 : pair & 0xFFFF0000u);
  };
  for (int32_t i = 0; i < 8; ++i) {
    const bool is_above = i < 2 || (i >= 4 && i < 6);
    const int32_t column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
    warp.a[is_above ? group : group + 8][column] = number(a[i / 2], i);
  }
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
    warp.b[row][group] = number(i < 2 ? b0 : b1, i);
  }
  add_products(sum, 16);
}

// cvt.rna.tf32.f32: to nearest, ties away from zero; what is no number or infinite is cut.
float rounded_tf32(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  if (std::isfinite(number)) bits += 0x1000;
  return float_of(bits & 0xFFFFE000u);
}

// mma.m16n8k8, .tf32: a0 to a3, b0 and b1.
void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Warp& warp = machine.warp();
  const int32_t group = lane_index() >> 2, in_group = lane_index() & 3;
  if (((a[0] | a[1] | a[2] | a[3] | b0 | b1) & 0x1FFF) != 0) fail("an operand that is not tf32");
  warp.a[group][in_group] = float_of(a[0]);
  warp.a[group + 8][in_group] = float_of(a[1]);
  warp.a[group][in_group + 4] = float_of(a[2]);
  warp.a[group + 8][in_group + 4] = float_of(a[3]);
  warp.b[in_group][group] = float_of(b0);
  warp.b[in_group + 4][group] = float_of(b1);
  add_products(sum, 8);
}

void copy_async(void* shared, const void* global) {
  const auto misaligned = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
  if (misaligned % 16 != 0) fail("an asynchronous copy that is not aligned");
  machine.thread().copies.push_back({shared, global});
}

void wait_copies() {
  for (const Copy& copy : machine.thread().copies) std::memcpy(copy.to, copy.from, 16);
  machine.thread().copies.clear();
}

}  // namespace emulator

cudaError_t cudaGetLastError() { return std::exchange(emulator::machine.last_error, cudaSuccess); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
           : attribute == cudaDevAttrComputeCapabilityMinor ? 0
                                                            : emulator::machine.most_shared;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{4} << 30;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  auto& machine = emulator::machine;
  if (value > machine.most_shared) return machine.report(cudaErrorInvalidValue);
  machine.allowed[kernel] = value;
  return cudaSuccess;
}
