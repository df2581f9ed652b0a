// SPDX-License-Identifier: MIT
// The peak of this machine, so that other timings can be given as a share of it. Compiled and run
// by peak.py.
//
//   peak MAX_THREADS REPEATS MILLISECONDS
//
// Prints one line a sample, "probe isa threads footprint_bytes unit value", and one line "absent
// probe reason" for each probe that this CPU cannot run. Samples of all probes are interleaved: a
// slow minute of the machine hits all of them.

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

// Keeps a result alive without storing it.
template <typename T>
void keep(const T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

// Work of one thread: run(rounds) does `rounds` equal rounds on memory that the thread owns.
struct Worker {
  virtual ~Worker() = default;
  virtual void run(int64_t rounds) = 0;
};

struct Probe {
  std::string name;
  std::string isa;
  const char* unit;
  double work_per_round;  // in 1e-9 units: FLOP or bytes
  size_t footprint;       // bytes a thread touches, 0 where it stays in registers
  std::function<std::unique_ptr<Worker>()> make_worker;
};

// Enough independent accumulators to hide the latency of every x86 core so far (2 units x 5
// cycles). Each round multiplies by a number below 1 and adds, so that values stay normal; they are
// random, as zeros would run faster.
constexpr int kAccumulators = 12;
constexpr int kStepsPerRound = 256;

using RoundsFn = void (*)(const float* start, int64_t rounds);

struct ArithmeticWorker : Worker {
  explicit ArithmeticWorker(RoundsFn rounds_fn) : rounds_fn_(rounds_fn), start_(4096) {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-0.99f, 0.99f);
    for (float& value : start_) value = uniform(random);
  }
  void run(int64_t rounds) override { rounds_fn_(start_.data(), rounds); }

 private:
  RoundsFn rounds_fn_;
  std::vector<float> start_;
};

// GCC's vectors of 16 bytes exist on every CPU; without a fused instruction the compiler emits a
// multiply and an add.
void fma_baseline(const float* start, int64_t rounds) {
  using Vector = float __attribute__((vector_size(16)));
  Vector sums[kAccumulators], factor, addend;
  std::memcpy(sums, start, sizeof(sums));
  std::memcpy(&factor, start + 64, sizeof(factor));
  std::memcpy(&addend, start + 80, sizeof(addend));
  for (int64_t step = 0; step < rounds * kStepsPerRound; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sums[i] = sums[i] * factor + addend;
  }
  keep(sums);
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) void fma_avx2(const float* start, int64_t rounds) {
  __m256 sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm256_loadu_ps(start + 8 * i);
  const __m256 factor = _mm256_loadu_ps(start + 128), addend = _mm256_loadu_ps(start + 160);
  for (int64_t step = 0; step < rounds * kStepsPerRound; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, addend);
  }
  keep(sums);
}

__attribute__((target("avx512f"))) void fma_avx512(const float* start, int64_t rounds) {
  __m512 sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_loadu_ps(start + 16 * i);
  const __m512 factor = _mm512_loadu_ps(start + 256), addend = _mm512_loadu_ps(start + 320);
  for (int64_t step = 0; step < rounds * kStepsPerRound; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, addend);
  }
  keep(sums);
}

__attribute__((target("avx512f,avx512bf16"))) void dot_avx512_bf16(const float* start,
                                                                   int64_t rounds) {
  __m512 sums[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_loadu_ps(start + 16 * i);
  const __m512bh a =
      _mm512_cvtne2ps_pbh(_mm512_loadu_ps(start + 256), _mm512_loadu_ps(start + 272));
  const __m512bh b =
      _mm512_cvtne2ps_pbh(_mm512_loadu_ps(start + 320), _mm512_loadu_ps(start + 336));
  for (int64_t step = 0; step < rounds * kStepsPerRound; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
  }
  keep(sums);
}

// Four products of 16x32 by 32x16 tiles in a step.
__attribute__((target("amx-tile,amx-bf16"))) void dot_amx_bf16(const float* start, int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) uint16_t operands[4][512];  // the upper half of a float32 is a bfloat16
  std::vector<uint32_t> bits(4 * 512);
  std::memcpy(bits.data(), start, bits.size() * sizeof(uint32_t));
  for (size_t i = 0; i < bits.size(); ++i) operands[i / 512][i % 512] = bits[i] >> 16;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, operands[0], 64);
  _tile_loadd(5, operands[1], 64);
  _tile_loadd(6, operands[2], 64);
  _tile_loadd(7, operands[3], 64);
  for (int64_t step = 0; step < rounds * kStepsPerRound; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float out[256];
  _tile_stored(0, out, 64);
  keep(out);
  _tile_release();
}

bool cpu_has_amx_bf16() {
  unsigned eax, ebx, ecx, edx;
  const unsigned bf16_and_tile = (1u << 22) | (1u << 24);
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & bf16_and_tile) == bf16_and_tile;
}

// Linux lets a process use the tile registers only after it has asked.
bool kernel_grants_amx() {
  constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

#endif  // __x86_64__

void add_arithmetic(std::vector<Probe>& probes) {
  auto add = [&](const char* name, const char* isa, RoundsFn rounds_fn, double flop_per_step) {
    probes.push_back({name, isa, "GFLOP/s", 1e-9 * flop_per_step * kStepsPerRound, 0,
                      [=] { return std::make_unique<ArithmeticWorker>(rounds_fn); }});
  };
  const char* amx = "not an x86-64 CPU";
  const char* bf16 = amx;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    add("fma_f32", "avx512", fma_avx512, 2.0 * 16 * kAccumulators);
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    add("fma_f32", "avx2", fma_avx2, 2.0 * 8 * kAccumulators);
  } else {
    add("fma_f32", "baseline", fma_baseline, 2.0 * 4 * kAccumulators);
  }
  bf16 = __builtin_cpu_supports("avx512bf16") ? nullptr : "this CPU has no AVX-512-bf16";
  if (!bf16) add("dot_bf16", "avx512_bf16", dot_avx512_bf16, 4.0 * 16 * kAccumulators);
  amx = !cpu_has_amx_bf16()    ? "this CPU has no AMX-bf16"
        : !kernel_grants_amx() ? "the kernel does not grant AMX"
                               : nullptr;
  if (!amx) add("amx_bf16", "amx_bf16", dot_amx_bf16, 4 * 2.0 * 16 * 16 * 32);
#else
  add("fma_f32", "baseline", fma_baseline, 2.0 * 4 * kAccumulators);
#endif
  if (bf16) std::printf("absent dot_bf16 %s\n", bf16);
  if (amx) std::printf("absent amx_bf16 %s\n", amx);
}

// Copies one half of its footprint to the other.
struct CopyWorker : Worker {
  explicit CopyWorker(size_t footprint) : from_(footprint / 2, 1), to_(footprint / 2, 2) {}
  void run(int64_t rounds) override {
    for (int64_t i = 0; i < rounds; ++i) {
      std::memcpy(to_.data(), from_.data(), from_.size());
      keep(to_[0]);
    }
  }

 private:
  std::vector<char> from_, to_;
};

void add_copies(std::vector<Probe>& probes) {
  for (size_t kib : {256, 1024, 4096, 16384, 65536, 262144}) {
    const size_t footprint = kib * 1024;
    probes.push_back({"copy", "memcpy", "GB/s", 1e-9 * static_cast<double>(footprint), footprint,
                      [=] { return std::make_unique<CopyWorker>(footprint); }});
  }
}

// Rounds that take about `wanted_s` on one thread.
int64_t calibrate(Worker& worker, double wanted_s) {
  for (int64_t rounds = 1;; rounds *= 2) {
    const auto start = Clock::now();
    worker.run(rounds);
    const double elapsed_s = std::chrono::duration<double>(Clock::now() - start).count();
    if (elapsed_s > wanted_s / 4) {
      return std::max<int64_t>(1, static_cast<int64_t>(rounds * wanted_s / elapsed_s));
    }
  }
}

// Each thread makes its own memory, so that it is near the thread. The clock runs from the first
// start to the last end.
double sample(const Probe& probe, int num_threads, int64_t rounds) {
  std::barrier together(num_threads);
  std::vector<Clock::time_point> starts(num_threads), ends(num_threads);
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      const auto worker = probe.make_worker();
      worker->run(1);
      together.arrive_and_wait();
      starts[i] = Clock::now();
      worker->run(rounds);
      ends[i] = Clock::now();
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double> elapsed =
      *std::max_element(ends.begin(), ends.end()) - *std::min_element(starts.begin(), starts.end());
  return num_threads * static_cast<double>(rounds) * probe.work_per_round / elapsed.count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int max_threads = std::atoi(argv[1]), repeats = std::atoi(argv[2]);
  const double wanted_s = std::atof(argv[3]) * 1e-3;

  std::vector<Probe> probes;
  add_arithmetic(probes);
  add_copies(probes);
  std::vector<int64_t> rounds;
  for (const Probe& probe : probes) rounds.push_back(calibrate(*probe.make_worker(), wanted_s));

  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (size_t i = 0; i < probes.size(); ++i) {
      for (int num_threads = 1; num_threads <= max_threads;
           num_threads = num_threads < max_threads ? max_threads : max_threads + 1) {
        const Probe& probe = probes[i];
        std::printf("sample %s %s %d %zu %s %.6g\n", probe.name.c_str(), probe.isa.c_str(),
                    num_threads, probe.footprint, probe.unit,
                    sample(probe, num_threads, rounds[i]));
      }
    }
  }
  return 0;
}
