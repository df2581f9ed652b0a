// SPDX-License-Identifier: MIT
// What the tests of kernels share: rows in exactly the memory that the contract names, random
// numbers, and how far a kernel may be from its definition in double precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/cpu/isa.h"

namespace kernel_rows {

using nasfast::kernels::cpu::Isa;
using nasfast::kernels::cpu::kBlockImages;
using nasfast::kernels::cpu::Kernels;
using nasfast::kernels::cpu::kLineBytes;
using nasfast::kernels::cpu::lines;
using nasfast::kernels::cpu::Moments;
using nasfast::kernels::cpu::padded_channels;
using nasfast::kernels::cpu::Precision;
using nasfast::kernels::cpu::Storage;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// `sum` bounds the rounding of a float sum relative to the sum of its terms' magnitudes (up to 425
// terms, each rounded to 2^-24, which mostly cancel); `result` the rounding of a result to its
// storage, half a unit in the last place of 24 or 8 bits.
struct Tolerance {
  double sum, result;
};
constexpr Tolerance tolerance_of(Precision precision) {
  return precision == Precision::kBf16 ? Tolerance{1e-6, 1.01 / 256} : Tolerance{1e-6, 1e-7};
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t below(uint32_t end) { return static_cast<uint32_t>(next() % end); }
  double uniform() { return static_cast<double>(next()) / 4294967296.0 * 2 - 1; }  // [-1, 1)

 private:
  uint64_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 32;
  }
  uint64_t state_;
};

inline double bfloat16(double x) {
  const auto narrow = static_cast<float>(x);
  if (std::isnan(narrow)) return kNan;
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  float rounded;
  std::memcpy(&rounded, &bits, sizeof rounded);
  return rounded;
}

// A number as an operand or a value holds it.
inline double stored(Precision precision, double x) {
  return precision == Precision::kBf16 ? bfloat16(x) : static_cast<float>(x);
}

// An array of exactly its size, as aligned as a line, so that a sanitizer sees every read beyond.
template <typename T>
class Exact {
 public:
  explicit Exact(int64_t count, T value = T{})
      : count_(count),
        data_(static_cast<T*>(
            ::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{kLineBytes}))) {
    std::uninitialized_fill_n(data_.get(), count, value);
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{kLineBytes}); }
  };
  int64_t count_;
  std::unique_ptr<T, Free> data_;
};

// A row of a block, [width, lines]. Starts as zeros, or as NaN where a kernel is to write it.
class Row {
 public:
  Row(Storage storage, int64_t width, int32_t channels, bool is_output = false)
      : storage_(storage),
        channels_(channels),
        words_(width * lines(storage, channels) * kBlockImages, is_output ? 0xffffffffu : 0u) {}

  void* data() const { return words_.get(); }

  double get(int64_t x, int32_t channel, int32_t image) const {
    uint32_t bits = words_[word(x, channel, image)];
    if (storage_ == Storage::kPair) bits = channel % 2 != 0 ? bits & 0xffff0000u : bits << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  // `value` must be exact in this storage.
  void set(int64_t x, int32_t channel, int32_t image, double value) {
    const auto narrow = static_cast<float>(value);
    uint32_t bits, &to = words_[word(x, channel, image)];
    std::memcpy(&bits, &narrow, sizeof bits);
    if (storage_ == Storage::kFloat) {
      to = bits;
    } else {
      to = channel % 2 != 0 ? (to & 0xffffu) | bits : (to & 0xffff0000u) | bits >> 16;
    }
  }

  // Whether the half that an odd number of channels leaves is zero everywhere.
  bool is_padded() const {
    if (storage_ == Storage::kFloat || channels_ % 2 == 0) return true;
    const int64_t pitch = int64_t{lines(storage_, channels_)} * kBlockImages;
    for (int64_t at = pitch - kBlockImages; at < words_.size(); at += pitch) {
      for (int64_t i = 0; i < kBlockImages; ++i) {
        if (words_[at + i] >> 16 != 0) return false;
      }
    }
    return true;
  }

 private:
  int64_t word(int64_t x, int32_t channel, int32_t image) const {
    const int32_t line = storage_ == Storage::kPair ? channel / 2 : channel;
    return (x * lines(storage_, channels_) + line) * kBlockImages + image;
  }
  Storage storage_;
  int32_t channels_;
  Exact<uint32_t> words_;
};

// Numbers of a block of images in double precision, [y][x][channel][image].
struct Block {
  int32_t height, width, channels;
  std::vector<double> numbers;

  Block(int32_t h, int32_t w, int32_t c)
      : height(h), width(w), channels(c), numbers(static_cast<size_t>(h) * w * c * kBlockImages) {}
  double* at(int32_t y, int32_t x, int32_t channel) {
    return numbers.data() + ((int64_t{y} * width + x) * channels + channel) * kBlockImages;
  }
};

// Random numbers as they are stored, of another size and mean in each channel.
inline Block random_block(Precision precision, int32_t h, int32_t w, int32_t c, Random& random) {
  Block block(h, w, c);
  for (size_t i = 0; i < block.numbers.size(); ++i) {
    const auto channel = static_cast<double>(i / kBlockImages % static_cast<size_t>(c));
    block.numbers[i] = stored(precision, random.uniform() * (1 + channel) + channel / 3);
  }
  return block;
}

inline std::vector<Row> rows_of(Block& block, Storage storage) {
  std::vector<Row> rows;
  for (int32_t y = 0; y < block.height; ++y) {
    rows.emplace_back(storage, block.width, block.channels);
    for (int32_t x = 0; x < block.width; ++x) {
      for (int32_t c = 0; c < block.channels; ++c) {
        for (int32_t i = 0; i < kBlockImages; ++i) rows.back().set(x, c, i, block.at(y, x, c)[i]);
      }
    }
  }
  return rows;
}

// The rows of a window as kernels take them: null outside the image.
inline std::vector<const void*> window(const std::vector<Row>& rows, int32_t first, int32_t count) {
  std::vector<const void*> pointers;
  for (int32_t y = first; y < first + count; ++y) {
    const bool exists = y >= 0 && y < static_cast<int32_t>(rows.size());
    pointers.push_back(exists ? rows[static_cast<size_t>(y)].data() : nullptr);
  }
  return pointers;
}

inline bool is_near(double actual, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(actual);
  return actual == expected || std::abs(actual - expected) <= tolerance;
}

// One instruction set at one precision, entered for as long as this lives.
struct Setting {
  Isa isa;
  Precision precision;
  const Kernels& kernels;
  Tolerance tolerance;

  Setting(Isa i, Precision p)
      : isa(i), precision(p), kernels(kernels_of(i, p)), tolerance(tolerance_of(p)) {
    kernels.enter_thread();
  }
  ~Setting() { kernels.leave_thread(); }
  Setting(const Setting&) = delete;

  Storage value() const { return precision == Precision::kBf16 ? Storage::kPair : Storage::kFloat; }
  std::string name() const {
    return std::string(name_of(isa)) + (precision == Precision::kBf16 ? " bf16" : " fp32");
  }

  // Reports one number that is not what it should be; `terms` is the sum of magnitudes added up.
  void expect(const char* what, double actual, double expected, double terms) const {
    const double room = tolerance.sum * terms + tolerance.result * std::abs(expected);
    if (is_near(actual, expected, room) || check::failures > 20) return;
    check::fail(what, 0,
                name() + ": got " + check::show(actual) + ", want " + check::show(expected) +
                    " +- " + check::show(room));
  }
};

// One number for each channel as kernels take them; those beyond are `padding`.
inline Exact<float> per_channel(int32_t channels, Random& random, float padding) {
  Exact<float> numbers(padded_channels(channels), padding);
  for (int32_t c = 0; c < channels; ++c) numbers[c] = static_cast<float>(random.uniform());
  return numbers;
}

// Calls visit(x, channel, image) for a row.
template <typename Visit>
void for_each(int32_t width, int32_t channels, const Visit& visit) {
  for (int32_t x = 0; x < width; ++x) {
    for (int32_t c = 0; c < channels; ++c) {
      for (int32_t i = 0; i < kBlockImages; ++i) visit(x, c, i);
    }
  }
}

// A number of a row is that of a block's row y.
inline void expect_row(const Setting& s, const std::string& what, const Row& row, Block& expected,
                       int32_t y, double terms) {
  CHECK(row.is_padded());
  for_each(expected.width, expected.channels, [&](int32_t x, int32_t c, int32_t i) {
    s.expect(what.c_str(), row.get(x, c, i), expected.at(y, x, c)[i], terms);
  });
}

// The arrays of one block's statistics. What a kernel must set first starts as NaN.
struct BlockMoments {
  Exact<float> pilot, sum, square;
  Exact<double> total, total_square;

  explicit BlockMoments(int32_t channels)
      : pilot(padded_channels(channels) * kBlockImages, std::numeric_limits<float>::quiet_NaN()),
        sum(padded_channels(channels) * kBlockImages),
        square(padded_channels(channels) * kBlockImages),
        total(padded_channels(channels) * kBlockImages),
        total_square(padded_channels(channels) * kBlockImages) {}
  Moments get() const {
    return {pilot.get(), sum.get(), square.get(), total.get(), total_square.get()};
  }
};

// Runs a test for every supported instruction set and both precisions.
template <typename Test>
void for_every_setting(const Test& test) {
  for (const Isa isa : nasfast::kernels::cpu::supported_isas()) {
    for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
      const Setting setting(isa, precision);
      test(setting);
    }
  }
}

}  // namespace kernel_rows
