// SPDX-License-Identifier: MIT
// Streams: what is put into them runs at once, or late, or when a graph is replayed.
#include <cstdio>
#include <iterator>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "emulator.h"

struct EmulatedGraph {
  std::vector<std::function<cudaError_t()>> work;
};
struct EmulatedStream {
  std::unique_ptr<EmulatedGraph> recorded;  // null: it is not being recorded
};

namespace {
thread_local int32_t recordings = 0;
thread_local bool is_late = false, has_page_locked = true;
thread_local std::vector<std::function<cudaError_t()>> waiting;
thread_local std::map<const std::byte*, size_t> page_locked;  // bytes, by beginning
}  // namespace

cudaError_t emulator::enqueue(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (stream != nullptr) {
    if (!stream->recorded) {
      std::fputs("emulator: work in a stream that is not recorded\n", stderr);
      std::abort();
    }
    stream->recorded->work.push_back(std::move(work));
    return cudaSuccess;
  }
  if (recordings > 0) return cudaErrorStreamCaptureUnsupported;
  if (!is_late) return work();
  waiting.push_back(std::move(work));
  return cudaSuccess;
}
void emulator::set_late(bool late) {
  cudaStreamSynchronize(nullptr);
  is_late = late;
}
void emulator::set_page_locked(bool is_there) { has_page_locked = is_there; }
bool emulator::is_page_locked(const void* memory) {
  const auto* at = static_cast<const std::byte*>(memory);
  const auto behind = page_locked.upper_bound(at);
  if (behind == page_locked.begin()) return false;
  const auto& [begin, bytes] = *std::prev(behind);
  return at < begin + bytes;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  const auto all = std::exchange(waiting, {});
  for (const auto& work : all) {
    const cudaError_t error = work();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = has_page_locked ? std::malloc(bytes) : nullptr;
  if (*memory == nullptr) return emulator::report(cudaErrorMemoryAllocation);
  page_locked[static_cast<const std::byte*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  page_locked.erase(static_cast<const std::byte*>(memory));
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool is_recorded = stream != nullptr && stream->recorded != nullptr;
  *status = is_recorded ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || stream->recorded) return cudaErrorStreamCaptureUnsupported;
  stream->recorded = std::make_unique<EmulatedGraph>();
  ++recordings;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || !stream->recorded) return cudaErrorInvalidValue;
  *graph = stream->recorded.release();
  --recordings;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  *ready = new EmulatedGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  for (const auto& work : ready->work) {
    const cudaError_t error = emulator::enqueue(stream, work);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) { return cudaGraphDestroy(ready); }
