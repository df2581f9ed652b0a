// SPDX-License-Identifier: MIT
// What the tests of the engine share: a table with random weights, random images, and a run of one
// chunk.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "block_tables.h"
#include "check.h"
#include "engine/engine.h"
#include "interpreter.h"
#include "kernel_rows.h"
#include "small_tables.h"

namespace engine_runs {

using kernel_rows::is_near;
using kernel_rows::Random;
using nasfast::ProgramTable;
using nasfast::RunOptions;
using small_tables::Sections;

// A table and the memory that it lies in.
struct Network {
  std::vector<int32_t> flat;
  ProgramTable table;

  explicit Network(const Sections& sections) : flat(small_tables::pack(sections)), table(flat) {}
  Network(const Network&) = delete;
};

// The tables with two stages, resized: every pair of templates is a lane.
inline Sections two_stages(const std::vector<int32_t>& channels, nasfast::BatchNormMode cells,
                           int32_t chunk = 16, const std::vector<int32_t>& shared = {},
                           int32_t alignment = nasfast::kArenaAlignment) {
  auto sections = small_tables::two_stages();
  small_tables::resize(sections, channels, alignment);
  small_tables::set_every_network(sections, chunk, shared);
  sections[nasfast::kSettings][0] = cells;
  return sections;
}

// Weights of about the size that keeps values near 1; gamma and variance are positive.
inline void fill_arena(const ProgramTable& table, float* arena) {
  Random random(7);
  for (int32_t i = 0; i < table.settings().arena_size; ++i) {
    arena[i] = static_cast<float>(random.uniform() * 0.5);
  }
  for (const auto& p : table.positions()) {
    for (const auto& unit : table.units_of(p)) {
      const int32_t channels = p.kind == nasfast::kHead ? p.in_channels : unit.out_channels;
      for (const int32_t offset : {unit.gamma, unit.variance}) {
        for (int32_t c = 0; offset >= 0 && c < channels; ++c) {
          arena[offset + c] += 1;
        }
      }
    }
  }
}
inline std::vector<float> random_arena(const ProgramTable& table) {
  std::vector<float> arena(static_cast<size_t>(table.settings().arena_size));
  fill_arena(table, arena.data());
  return arena;
}

struct Modes {
  nasfast::BatchNormMode cells, fixed, last;
};

// A table of one chunk, with batch-norm modes and what its lanes share.
inline Sections prepared(Sections sections, const Modes& modes,
                         const std::vector<int32_t>& shared) {
  const auto lanes = static_cast<int32_t>(sections[nasfast::kLanes].size()) / 3;
  small_tables::set_chunks(sections, lanes, shared);
  sections[nasfast::kSettings][0] = modes.cells;
  return sections;
}

// Logits of a lane against the interpreter's. Returns the error, relative to the largest.
inline double check_lane(const float* logits, const std::vector<double>& expected, double tolerance,
                         const std::string& what) {
  double most = 0, error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    most = std::max(most, std::abs(expected[i]));
    const double apart = std::abs(logits[i] - expected[i]);
    if (!(apart <= error)) error = apart;  // NaN too
  }
  if (!(error <= tolerance * most)) {
    check::fail("lane", 0, what + ": error " + check::show(error / most));
  }
  return error / most;
}

// Loss and correctness follow from the logits.
inline void check_scores(const float* logits, int64_t classes, int64_t label, float loss,
                         bool correct) {
  double sum = 0;
  for (int64_t k = 0; k < classes; ++k) sum += std::exp(double{logits[k]} - logits[label]);
  CHECK(std::abs(loss - std::log(sum)) <= 1e-6 * std::max(1.0, std::log(sum)));
  CHECK_EQ(correct, std::max_element(logits, logits + classes) - logits == label);
}

// Images of minibatches, with labels.
struct Data {
  int32_t channels, height, width;
  std::vector<int64_t> sizes;
  std::vector<float> images;
  std::vector<int64_t> labels;

  Data(int32_t c, int32_t h, int32_t w, std::vector<int64_t> minibatches, uint64_t seed)
      : channels(c), height(h), width(w), sizes(std::move(minibatches)) {
    Random random(seed);
    images.resize(static_cast<size_t>(count() * c * h * w));
    for (float& x : images) x = static_cast<float>(random.uniform());
    for (int64_t i = 0; i < count(); ++i) labels.push_back(random.below(5));
  }
  int64_t count() const { return get().count(); }
  nasfast::Images get() const { return {images.data(), sizes}; }
};

inline interpreter::Map map_of(const Data& data) {
  interpreter::Map map(static_cast<int32_t>(data.count()), data.channels, data.height, data.width);
  std::copy(data.images.begin(), data.images.end(), map.numbers.begin());
  return map;
}

struct Scores {
  std::vector<float> logits, loss;  // [lanes, images, classes], [lanes, images]
  std::vector<uint8_t> correct;

  // Whether the bits of lane `mine` are those of another's lane `theirs`.
  bool is_same(size_t mine, const Scores& other, size_t theirs, size_t images) const {
    const size_t classes = logits.size() / loss.size();
    const auto same = [&](const auto& a, const auto& b, size_t row) {
      return std::memcmp(&a[mine * row], &b[theirs * row], row * sizeof a[0]) == 0;
    };
    return same(logits, other.logits, images * classes) && same(loss, other.loss, images) &&
           same(correct, other.correct, images);
  }
};

inline RunOptions options_of(const Data& data, nasfast::kernels::cpu::Isa isa,
                             nasfast::kernels::cpu::Precision precision, int32_t threads = 1) {
  RunOptions options;
  options.isa = isa;
  options.precision = precision;
  options.threads = threads;
  options.height = data.height;
  options.width = data.width;
  return options;
}

inline Scores run(const ProgramTable& table, int32_t chunk, const float* arena, const Data& data,
                  const RunOptions& options, const nasfast::Images& calibration = {}) {
  const size_t rows = table.chunk(chunk).size() * static_cast<size_t>(data.count());
  const auto classes = static_cast<size_t>(table.positions().back().out_channels);
  Scores scores{std::vector<float>(rows * classes), std::vector<float>(rows),
                std::vector<uint8_t>(rows, 2)};
  const int64_t bytes =
      nasfast::run_chunk(table, chunk, arena, data.get(), data.labels.data(), calibration, options,
                         {scores.logits.data(), scores.loss.data(), scores.correct.data()});
  CHECK(bytes > 0);
  return scores;
}

// Calls test(isa, precision).
template <typename Test>
void for_every_setting(const Test& test) {
  for (const auto isa : nasfast::kernels::cpu::supported_isas()) {
    for (const auto precision :
         {nasfast::kernels::cpu::Precision::kFp32, nasfast::kernels::cpu::Precision::kBf16})
      test(isa, precision);
  }
}

// Units that a lane or the shared expressions of a chunk use.
inline std::set<int32_t> units_used(const ProgramTable& table, int32_t chunk) {
  std::set<int32_t> used;
  const auto include = [&](const nasfast::Position& p, std::span<const int32_t> expressions) {
    for (const int32_t x : expressions) {
      const int32_t param = table.section(nasfast::kParam)[static_cast<size_t>(x)];
      if (nasfast::is_convolution(table.section(nasfast::kOpcode)[static_cast<size_t>(x)])) {
        used.insert(p.unit + param);
      }
    }
  };
  include(table.positions()[1], table.shared(chunk));
  for (const int32_t lane : table.chunk(chunk)) {
    const auto templates = table.network(table.lanes()[static_cast<size_t>(lane)].network);
    for (const auto& p : table.positions()) {
      if (p.kind == nasfast::kCell) {
        include(p, table.steps(templates[static_cast<size_t>(p.cell)]));
        continue;
      }
      for (size_t i = 0; i < table.units_of(p).size(); ++i) {
        used.insert(p.unit + static_cast<int32_t>(i));
      }
    }
  }
  return used;
}

// An arena of pages of its own. Reading a forbidden one ends the program.
class PagedArena {
 public:
  explicit PagedArena(int64_t numbers) : bytes_(static_cast<size_t>(numbers) * sizeof(float)) {
    void* pages = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<float*>(pages);
  }
  ~PagedArena() { munmap(data_, bytes_); }
  PagedArena(const PagedArena&) = delete;
  float* get() const { return data_; }
  void protect(int64_t begin, int64_t end, int protection) const {
    const auto bytes = static_cast<size_t>(end - begin) * sizeof(float);
    CHECK_EQ(mprotect(data_ + begin, bytes, protection), 0);
  }

 private:
  size_t bytes_;
  float* data_;
};

}  // namespace engine_runs
