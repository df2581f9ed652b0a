// SPDX-License-Identifier: MIT
// The eight AMX tiles of a thread: each 16 rows of 64 bytes, in memory 1 KiB without gaps. Included
// inside the anonymous namespace of one translation unit.
//
// The compiler's intrinsics paste the number of a tile into the assembly as text, so they take no
// template argument; and its loads do not tell that they read memory. Hence our own assembly.

constexpr int kTileRows = 16;
constexpr int kTileEntries = 256;  // of 32 bits: a float, or a pair of bfloat16
constexpr int64_t kTileRowBytes = 64;

// Before the first use in a thread. The process must have been granted the tile state.
inline void configure_tiles() {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static constexpr Config kConfig = {
      1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  static_assert(sizeof(Config) == 64);
  asm volatile("ldtilecfg %0" ::"m"(kConfig));
}

// After the last use: the system then saves no tiles, and others find none configured.
inline void release_tiles() { asm volatile("tilerelease"); }

template <int kTile>
inline __attribute__((always_inline)) void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"n"(kTile));
}

template <int kTile>
inline __attribute__((always_inline)) void load_tile(const uint32_t* from) {
  using Memory = const uint32_t[kTileEntries];
  asm volatile("{tileloadd (%0,%1,1), %%tmm%c2|tileloadd tmm%c2, [%0+%1*1]}" ::"r"(from),
               "r"(kTileRowBytes), "n"(kTile), "m"(*reinterpret_cast<Memory*>(from)));
}

template <int kTile>
inline __attribute__((always_inline)) void store_tile(float* to) {
  using Memory = float[kTileEntries];
  asm volatile("{tilestored %%tmm%c3, (%1,%2,1)|tilestored [%1+%2*1], tmm%c3}"
               : "=m"(*reinterpret_cast<Memory*>(to))
               : "r"(to), "r"(kTileRowBytes), "n"(kTile));
}

// sum[m][n] += the sum over k of a[m][k] * b[k][n], where a[m][k] and b[k][n] are pairs of
// bfloat16.
template <int kSum, int kA, int kB>
inline __attribute__((always_inline)) void dot_tiles() {
  asm volatile(
      "{tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0|tdpbf16ps tmm%c0, tmm%c1, tmm%c2}" ::"n"(kSum),
      "n"(kA), "n"(kB));
}
