// SPDX-License-Identifier: MIT
// Compiled without the flags of any instruction set: it runs before one is chosen.
#include "kernels/cpu/isa.h"

#include <array>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nasfast::kernels::cpu {

// [precision]; one definition in each kernels_<isa>.cpp.
extern const Kernels kernels_baseline[2];
#if defined(__x86_64__)
extern const Kernels kernels_avx2[2], kernels_avx512[2], kernels_avx512_bf16[2], kernels_amx[2];
#endif

namespace {

constexpr std::array<const char*, kNumIsas> kNames = {"baseline", "avx2", "avx512", "avx512_bf16",
                                                      "amx"};

#if defined(__x86_64__)
bool cpu_has_amx() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned int kTile = 1u << 24, kBf16 = 1u << 22;
  return (d & kTile) != 0 && (d & kBf16) != 0;
}

// The kernel hands out the 8 KiB of tile state on request, once for the process; a container's
// system-call filter may refuse.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

std::string missing(Isa isa) {
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  switch (isa) {
    case Isa::kBaseline:
      return "";
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                 ? ""
                 : "the CPU has no AVX2 with FMA";
    case Isa::kAvx512:
      return avx512 ? "" : "the CPU has no AVX-512 (F, BW, DQ, VL)";
    case Isa::kAvx512Bf16:
      return bf16 ? "" : "the CPU has no AVX512_BF16";
    case Isa::kAmx:
      if (!bf16 || !cpu_has_amx()) return "the CPU has no AMX-BF16";
      return may_use_tiles() ? "" : "the operating system refuses AMX tile state";
  }
  return "unknown";
}
#else
std::string missing(Isa isa) { return isa == Isa::kBaseline ? "" : "this is not an x86-64 CPU"; }
#endif

}  // namespace

const char* name_of(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

bool is_supported(Isa isa, std::string* reason) {
  const std::string what = missing(isa);
  if (reason != nullptr) *reason = what;
  return what.empty();
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> found;
  for (int32_t i = 0; i < kNumIsas; ++i) {
    if (is_supported(static_cast<Isa>(i))) found.push_back(static_cast<Isa>(i));
  }
  return found;
}

Isa isa_from_name(const std::string& name) {
  std::string known;
  for (int32_t i = 0; i < kNumIsas; ++i) {
    const Isa isa = static_cast<Isa>(i);
    std::string reason;
    if (name == name_of(isa)) {
      if (is_supported(isa, &reason)) return isa;
      throw std::invalid_argument("instruction set " + name + ": " + reason);
    }
    known += (i ? ", " : "") + std::string(name_of(isa));
  }
  throw std::invalid_argument("instruction set: wanted one of " + known + ", got " + name);
}

Isa default_isa() {
  const char* wanted = std::getenv("NASFAST_ISA");
  if (wanted != nullptr && *wanted != '\0') return isa_from_name(wanted);
  return supported_isas().back();
}

const Kernels& kernels_of(Isa isa, Precision precision) {
  const auto p = static_cast<size_t>(precision);
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kBaseline:
      break;
    case Isa::kAvx2:
      return kernels_avx2[p];
    case Isa::kAvx512:
      return kernels_avx512[p];
    case Isa::kAvx512Bf16:
      return kernels_avx512_bf16[p];
    case Isa::kAmx:
      return kernels_amx[p];
  }
#endif
  static_cast<void>(isa);
  return kernels_baseline[p];
}

}  // namespace nasfast::kernels::cpu
