// SPDX-License-Identifier: MIT
// Rows of a block in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nasfast {

// Rows in memory; a ring where fewer are kept than there are.
struct Rows {
  std::byte* base = nullptr;
  int64_t row_bytes = 0;
  int32_t count = 1;

  std::byte* operator[](int32_t y) const { return base + (y % count) * row_bytes; }
};

// Addresses of neighbouring rows; null outside the image.
inline void window_rows(const Rows& source, int32_t first, int32_t count, int32_t height,
                        const void** rows) {
  for (int32_t k = 0; k < count; ++k) {
    const int32_t y = first + k;
    rows[k] = y >= 0 && y < height ? source[y] : nullptr;
  }
}

}  // namespace nasfast
