// SPDX-License-Identifier: MIT
// Between tensors, where an image's channels are neighbours, and lines, where the images of a block
// are: transpositions of 32-bit entries (a float32, or two bfloat16 channels).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernels.h"

namespace nasfast {

typedef uint32_t Entries4 __attribute__((vector_size(16), may_alias));

// Transposes 4x4 entries by the compiler's own vector type; `change` is applied to each row read.
template <typename Change>
inline void transpose4(const uint32_t* const* from, uint32_t* const* to, const Change& change) {
  Entries4 row[4];
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&row[i], from[i], sizeof row[i]);
    row[i] = change(row[i]);
  }
  const Entries4 low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const Entries4 high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Entries4 low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const Entries4 high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  const Entries4 out[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                           __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                           __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(to[i], &out[i], sizeof out[i]);
}

// lines[entry][image] = change(rows[image][entry]) for `images` images and `entries` entries; the
// rows lie `stride` entries apart. `one` does the same for a single entry.
template <typename Change, typename One>
inline void rows_to_lines(const uint32_t* rows, int64_t stride, int32_t images, int64_t entries,
                          uint32_t* lines, const Change& change, const One& one) {
  int32_t i = 0;
  for (; i + 4 <= images; i += 4) {
    const uint32_t* row = rows + i * stride;
    int64_t e = 0;
    for (; e + 4 <= entries; e += 4) {
      const uint32_t* from[4] = {row + e, row + stride + e, row + 2 * stride + e,
                                 row + 3 * stride + e};
      uint32_t* line = lines + e * kernels::cpu::kBlockImages + i;
      uint32_t* to[4] = {line, line + 16, line + 32, line + 48};
      transpose4(from, to, change);
    }
    for (; e < entries; ++e) {
      for (int32_t k = 0; k < 4; ++k) lines[e * 16 + i + k] = one(row[k * stride + e]);
    }
  }
  for (; i < images; ++i) {
    for (int64_t e = 0; e < entries; ++e) lines[e * 16 + i] = one(rows[i * stride + e]);
  }
}

// The way back.
inline void lines_to_rows(const uint32_t* lines, int64_t entries, int32_t images, uint32_t* rows,
                          int64_t stride) {
  const auto same = [](auto x) { return x; };
  int32_t i = 0;
  for (; i + 4 <= images; i += 4) {
    int64_t e = 0;
    for (; e + 4 <= entries; e += 4) {
      const uint32_t* line = lines + e * kernels::cpu::kBlockImages + i;
      const uint32_t* from[4] = {line, line + 16, line + 32, line + 48};
      uint32_t* row = rows + i * stride + e;
      uint32_t* to[4] = {row, row + stride, row + 2 * stride, row + 3 * stride};
      transpose4(from, to, same);
    }
    for (; e < entries; ++e) {
      for (int32_t k = 0; k < 4; ++k) rows[(i + k) * stride + e] = lines[e * 16 + i + k];
    }
  }
  for (; i < images; ++i) {
    for (int64_t e = 0; e < entries; ++e) rows[i * stride + e] = lines[e * 16 + i];
  }
}

}  // namespace nasfast
