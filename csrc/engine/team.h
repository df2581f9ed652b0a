// SPDX-License-Identifier: MIT
// Threads that work through numbered tasks together.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nasfast {

class Team {
 public:
  using Task = std::function<void(int32_t thread, int64_t index)>;

  // `enter` and `leave` are called once by every thread, the caller's (number 0) included.
  Team(int32_t threads, std::function<void()> enter, std::function<void()> leave);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int32_t size() const { return static_cast<int32_t>(threads_.size()) + 1; }

  // Runs task(thread, 0..count-1) on all threads and waits. The first exception is thrown again
  // here, once every thread is idle. Not to be called from a task.
  void run(int64_t count, const Task& task);

 private:
  void stop();
  void work(int32_t thread);
  void take_tasks(int32_t thread);

  std::function<void()> enter_, leave_;
  std::mutex mutex_;
  std::condition_variable begin_, done_;
  const Task* task_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> round_{0};
  std::atomic<int32_t> busy_{0};
  bool stop_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

}  // namespace nasfast
