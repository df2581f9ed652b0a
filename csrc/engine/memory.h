// SPDX-License-Identifier: MIT
// Memory that is planned ahead: one allocation, then pieces of it, aligned to lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nasfast {

// Keeps some of what was freed for the next call: first touching 100 MiB costs as much as scoring
// an architecture.
class MemoryCache {
 public:
  static MemoryCache& shared() {
    static MemoryCache cache;
    return cache;
  }

  std::byte* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.find(bytes);
    if (found == free_.end()) {
      // Other sizes are wanted now: what is held would only come on top of them.
      if (bytes >= kLeast) clear();
      return nullptr;
    }
    std::byte* data = found->second;
    held_ -= bytes;
    free_.erase(found);
    return data;
  }

  // False: not kept.
  bool give(std::byte* data, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    if (bytes < kLeast || held_ + bytes > kMost) return false;
    try {
      free_.emplace(bytes, data);
    } catch (const std::bad_alloc&) {  // called by a destructor
      return false;
    }
    held_ += bytes;
    return true;
  }

  ~MemoryCache() { clear(); }

 private:
  void clear() {
    for (const auto& [bytes, data] : free_) std::free(data);
    free_.clear();
    held_ = 0;
  }

  static constexpr int64_t kLeast = 1 << 20, kMost = 1 << 30;
  std::mutex mutex_;
  std::multimap<int64_t, std::byte*> free_;
  int64_t held_ = 0;
};

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
    capacity_ = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    if (bytes < kHugePage) capacity_ = aligned(bytes);
    data_ = MemoryCache::shared().take(capacity_);
    if (data_ == nullptr) data_ = allocate(capacity_);
  }
  ~Memory() { release(); }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    Memory(std::move(other)).swap(*this);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }

  template <typename T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  static std::byte* allocate(int64_t bytes) {
    const int64_t unit = bytes >= kHugePage ? kHugePage : kAlignment;
    auto* raw = static_cast<std::byte*>(
        std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(bytes)));
    if (raw == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    // Only a hint: walks over megabytes miss the translation buffer less.
    if (unit == kHugePage) madvise(raw, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
    return raw;
  }
  void release() {
    if (data_ != nullptr && !MemoryCache::shared().give(data_, capacity_)) std::free(data_);
    data_ = nullptr;
  }
  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  std::byte* data_ = nullptr;
  int64_t size_ = 0, capacity_ = 0;
};

}  // namespace nasfast
