// SPDX-License-Identifier: MIT
#include "engine/features.h"

#include <algorithm>
#include <cstring>

#include "engine/transpose.h"

namespace nasfast {

using kernels::cpu::kBlockImages;
using kernels::cpu::kLineBytes;

int32_t Features::images_of(int32_t block) const {
  return std::min(kBlockImages, batch - block * kBlockImages);
}

void Features::load(int32_t block, std::byte* to) const {
  const int64_t pixels = int64_t{height} * width, stride = pixels * channels;
  const int64_t first = int64_t{block} * kBlockImages * stride;
  const int32_t images = images_of(block);
  if (images < kBlockImages || (is_bfloat16 && channels % 2 != 0)) {
    std::memset(to, 0, static_cast<size_t>(block_bytes()));
  }
  const auto same = [](auto x) { return x; };
  auto* lines = reinterpret_cast<uint32_t*>(to);
  if (!is_bfloat16 || channels % 2 == 0) {
    const int64_t per_entry = is_bfloat16 ? 2 : 1, entries = channels / per_entry;
    const auto* rows = static_cast<const uint32_t*>(data) + first / per_entry;
    for (int64_t at = 0; at < pixels; ++at, lines += entries * kBlockImages) {
      rows_to_lines(rows + at * entries, stride / per_entry, images, entries, lines, same, same);
    }
    return;
  }
  const auto* numbers = static_cast<const uint16_t*>(data) + first;
  const int64_t num_lines = (channels + 1) / 2;
  for (int64_t at = 0; at < pixels; ++at, lines += num_lines * kBlockImages) {
    for (int32_t i = 0; i < images; ++i) {
      for (int32_t c = 0; c < channels; ++c) {
        const uint32_t number = numbers[i * stride + at * channels + c];
        lines[c / 2 * kBlockImages + i] |= number << (c % 2 * 16);
      }
    }
  }
}

void Features::store(int32_t block, const std::byte* from) const {
  const int64_t pixels = int64_t{height} * width, stride = pixels * channels;
  const int64_t first = int64_t{block} * kBlockImages * stride;
  const int32_t images = images_of(block);
  const auto* lines = reinterpret_cast<const uint32_t*>(from);
  if (!is_bfloat16 || channels % 2 == 0) {
    const int64_t per_entry = is_bfloat16 ? 2 : 1, entries = channels / per_entry;
    auto* rows = static_cast<uint32_t*>(data) + first / per_entry;
    for (int64_t at = 0; at < pixels; ++at, lines += entries * kBlockImages) {
      lines_to_rows(lines, entries, images, rows + at * entries, stride / per_entry);
    }
    return;
  }
  auto* numbers = static_cast<uint16_t*>(data) + first;
  const int64_t num_lines = (channels + 1) / 2;
  for (int64_t at = 0; at < pixels; ++at, lines += num_lines * kBlockImages) {
    for (int32_t i = 0; i < images; ++i) {
      for (int32_t c = 0; c < channels; ++c) {
        const uint32_t pair = lines[c / 2 * kBlockImages + i];
        numbers[i * stride + at * channels + c] = static_cast<uint16_t>(pair >> (c % 2 * 16));
      }
    }
  }
}

}  // namespace nasfast
