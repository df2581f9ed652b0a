// SPDX-License-Identifier: MIT
#include "program/reverse.h"

#include <algorithm>

namespace nasfast {

Reverse reverse_of(const Schedule& schedule) {
  Reverse reverse;
  const size_t count = schedule.passes.size();
  reverse.readers.resize(schedule.tensors.size());
  reverse.gradient.assign(count, -1);
  std::vector<int32_t> producer(schedule.tensors.size(), -1);
  for (size_t p = 0; p < count; ++p) {
    const Pass& pass = schedule.passes[p];
    if (pass.kept >= 0) producer[static_cast<size_t>(pass.kept)] = static_cast<int32_t>(p);
    for (const Consumer& consumer : pass.consumers) {
      if (consumer.out >= 0) producer[static_cast<size_t>(consumer.out)] = static_cast<int32_t>(p);
    }
  }
  // The pass before which a gradient is not needed any more: the first that made one of its terms.
  std::vector<std::vector<int32_t>> ends(count);
  std::vector<int32_t> free;
  for (size_t p = count; p-- > 0;) {
    const Pass& pass = schedule.passes[p];
    bool is_live = pass.kept >= 0 && !reverse.readers_of(pass.kept).empty();
    for (const Consumer& consumer : pass.consumers) is_live |= reverse.is_live(consumer);
    if (is_live && !pass.terms.empty()) {
      int32_t first = static_cast<int32_t>(p);
      for (size_t t = 0; t < pass.terms.size(); ++t) {
        const auto& [tensor, weight, to, count] = pass.terms[t];
        reverse.readers[static_cast<size_t>(tensor)].push_back(
            {static_cast<int32_t>(p), static_cast<int32_t>(t), weight});
        first = std::min(first, producer[static_cast<size_t>(tensor)]);
      }
      if (free.empty()) free.push_back(reverse.num_buffers++);
      reverse.gradient[p] = free.back();
      free.pop_back();
      ends[static_cast<size_t>(first)].push_back(reverse.gradient[p]);
    }
    for (const int32_t buffer : ends[p]) free.push_back(buffer);
  }
  return reverse;
}

}  // namespace nasfast
