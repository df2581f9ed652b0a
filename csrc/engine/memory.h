// SPDX-License-Identifier: MIT
// Memory that is planned ahead: one allocation, then pieces of it, aligned to lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nasfast {

class Memory {
 public:
  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kHugePage = 2 << 20;

  static constexpr int64_t aligned(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  Memory() = default;
  explicit Memory(int64_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    const int64_t unit = bytes >= kHugePage ? kHugePage : kAlignment;
    const int64_t rounded = (bytes + unit - 1) / unit * unit;
    auto* raw = static_cast<std::byte*>(
        std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(rounded)));
    if (raw == nullptr) throw std::bad_alloc();
    data_.reset(raw);
#if defined(__linux__)
    // Only a hint: walks over megabytes miss the translation buffer less.
    if (unit == kHugePage) madvise(raw, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
  }

  std::byte* data() const { return data_.get(); }
  int64_t size() const { return size_; }

  template <typename T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(data_.get() + offset);
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  int64_t size_ = 0;
};

}  // namespace nasfast
