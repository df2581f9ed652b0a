// SPDX-License-Identifier: MIT
// The interface of kernels/cpu/tiles_amx.h without AMX: what the instructions do, from the manual's
// pseudo code, and how often they were called. Included inside the anonymous namespace of one
// translation unit, behind simd_avx512.h.
//
// TDPBF16PS sums the even and the odd elements of the pairs apart, in fused multiply-adds from
// zero, adds the two sums, and adds that to the tile; everything rounds to nearest even, and
// denormals are zeros, as operands and as results.

constexpr int kTileRows = 16;
constexpr int kTileEntries = 256;
constexpr int64_t kTileRowBytes = 64;

struct EmulatedTiles {
  alignas(64) uint32_t tiles[8][kTileEntries];
  bool is_configured;
  int64_t loads, dots;
};
thread_local EmulatedTiles emulated;

void configure_tiles() {
  emulated = {};
  emulated.is_configured = true;
}
void release_tiles() { emulated.is_configured = false; }

uint32_t* emulated_tile(int tile) {
  if (!emulated.is_configured) __builtin_trap();
  return emulated.tiles[tile];
}

template <int kTile>
void zero_tile() {
  __builtin_memset(emulated_tile(kTile), 0, sizeof emulated.tiles[kTile]);
}

// Row by row through vectors, so that a sanitizer sees which memory is read.
template <int kTile>
void load_tile(const uint32_t* from) {
  uint32_t* tile = emulated_tile(kTile);
  for (int row = 0; row < kTileEntries; row += 16) store_bits(tile + row, load_bits(from + row));
  ++emulated.loads;
}

template <int kTile>
void store_tile(float* to) {
  const uint32_t* tile = emulated_tile(kTile);
  for (int row = 0; row < kTileEntries; row += 16) {
    store(to + row, _mm512_castsi512_ps(load_bits(tile + row)));
  }
}

// To be called with denormals switched off. Not inlined: the compiler knows nothing of that switch
// and may move arithmetic over it, but no call that writes memory.
__attribute__((noinline)) void multiply_tiles(uint32_t* sum, const uint32_t* a, const uint32_t* b) {
  for (int m = 0; m < kTileRows; ++m) {
    Float evens = zero(), odds = zero();
    for (int k = 0; k < 16; ++k) {
      const Bits weights = set1_bits(a[m * 16 + k]), inputs = load_bits(b + k * 16);
      evens = fmadd(even(weights), even(inputs), evens);
      odds = fmadd(odd(weights), odd(inputs), odds);
    }
    const Float old = _mm512_castsi512_ps(load_bits(sum + m * 16));
    store_bits(sum + m * 16, _mm512_castps_si512(add(old, add(evens, odds))));
  }
}

template <int kSum, int kA, int kB>
void dot_tiles() {
  static_assert(kSum != kA && kSum != kB && kA != kB, "the instruction takes three tiles");
  const uint32_t old = _mm_getcsr();
  constexpr uint32_t kFlushZero = 0x8000, kDenormalsAreZero = 0x0040;
  const uint32_t flushing = old | kFlushZero | kDenormalsAreZero;
  asm volatile("ldmxcsr %0" ::"m"(flushing) : "memory");
  multiply_tiles(emulated_tile(kSum), emulated_tile(kA), emulated_tile(kB));
  asm volatile("ldmxcsr %0" ::"m"(old) : "memory");
  ++emulated.dots;
}
