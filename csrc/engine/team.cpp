// SPDX-License-Identifier: MIT
#include "engine/team.h"

#include <utility>

namespace nasfast {
namespace {

// A pass over one block of images takes a few hundred microseconds: it is worth looking for the
// next one for a moment before a thread goes to sleep, and no longer, as cores may be shared.
constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Team::Team(int32_t threads, std::function<void()> enter, std::function<void()> leave)
    : enter_(std::move(enter)), leave_(std::move(leave)) {
  try {
    for (int32_t i = 1; i < threads; ++i) threads_.emplace_back([this, i] { work(i); });
    enter_();
  } catch (...) {  // the system has no more threads to give
    stop();
    throw;
  }
}

Team::~Team() {
  stop();
  leave_();
}

void Team::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    ++round_;
  }
  begin_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(int64_t count, const Task& task) {
  if (count <= 0) return;
  {
    const std::lock_guard lock(mutex_);
    task_ = &task;
    count_ = count;
    error_ = nullptr;
    next_ = 0;
    busy_ = static_cast<int32_t>(threads_.size());
    ++round_;
  }
  begin_.notify_all();
  take_tasks(0);
  for (int i = 0; i < kSpins && busy_.load(std::memory_order_acquire) > 0; ++i) pause();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::take_tasks(int32_t thread) {
  try {
    for (int64_t index = next_++; index < count_; index = next_++) (*task_)(thread, index);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
    next_ = count_;
  }
}

void Team::work(int32_t thread) {
  enter_();
  uint64_t seen = 0;
  while (true) {
    for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) pause();
    {
      std::unique_lock lock(mutex_);
      begin_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (stop_) break;
    }
    take_tasks(thread);
    {
      const std::lock_guard lock(mutex_);
      --busy_;
    }
    done_.notify_one();
  }
  leave_();
}

}  // namespace nasfast
