// SPDX-License-Identifier: MIT
// A program table run one number at a time in double precision, straight from the words of
// program_table.h: what backends are tested against. Numbers may be of any type that computes like
// one: tape.h has some that know their gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "program/program_table.h"

namespace interpreter {

using nasfast::BatchNormMode;
using nasfast::Position;
using nasfast::ProgramTable;
using nasfast::Unit;

// [images, channels, height, width]
template <typename Number>
struct MapOf {
  int32_t images = 0, channels = 0, height = 0, width = 0;
  std::vector<Number> numbers;

  MapOf() = default;
  MapOf(int32_t n, int32_t c, int32_t h, int32_t w)
      : images(n), channels(c), height(h), width(w), numbers(static_cast<size_t>(n * c * h * w)) {}
  Number& at(int32_t n, int32_t c, int32_t y, int32_t x) {
    return numbers[static_cast<size_t>(((n * channels + c) * height + y) * width + x)];
  }
  Number at(int32_t n, int32_t c, int32_t y, int32_t x) const {
    return const_cast<MapOf*>(this)->at(n, c, y, x);
  }
  bool has(int32_t y, int32_t x) const { return y >= 0 && y < height && x >= 0 && x < width; }
};

using Map = MapOf<double>;

template <typename Number, typename Visit>
void for_each(const MapOf<Number>& map, const Visit& visit) {
  for (int32_t n = 0; n < map.images; ++n) {
    for (int32_t c = 0; c < map.channels; ++c) {
      for (int32_t y = 0; y < map.height; ++y) {
        for (int32_t x = 0; x < map.width; ++x) visit(n, c, y, x);
      }
    }
  }
}

template <typename Number, typename Weight>
class InterpreterOf {
 public:
  using Map = MapOf<Number>;

  // `mixing`: mixing weights of the cells, [cells, mixing_width], where the table mixes.
  InterpreterOf(const ProgramTable& table, const Weight* arena, BatchNormMode fixed,
                BatchNormMode last, const Weight* mixing = nullptr)
      : table_(table),
        arena_(arena),
        cells_(static_cast<BatchNormMode>(table.settings().cell_mode)),
        fixed_(fixed),
        last_(last),
        mixing_(mixing) {}

  // Logits [images, classes] of a network. `sizes` are those of the minibatches.
  std::vector<Number> run(int32_t network, const Map& images, std::span<const int64_t> sizes,
                          const Map& calibration, std::span<const int64_t> calibration_sizes) {
    recorded_.clear();
    is_recording_ = true;
    walk(network, calibration, calibration_sizes);
    is_recording_ = false;
    next_ = 0;
    return walk(network, images, sizes);
  }

 private:
  struct Statistics {
    Number mean, variance;
  };

  std::vector<Number> walk(int32_t network, const Map& images, std::span<const int64_t> sizes) {
    sizes_ = sizes;
    Map value = images;
    for (const Position& p : table_.positions()) {
      const Unit* unit = table_.units().data() + p.unit;
      if (p.kind == nasfast::kStem) {
        value = norm(conv(value, *unit, p.out_channels, 1), *unit, fixed_);
      } else if (p.kind == nasfast::kCell) {
        value = cell(table_.network(network)[static_cast<size_t>(p.cell)], value, p);
      } else if (p.kind == nasfast::kReduction) {
        const Map a = norm(conv(relu(value), unit[0], p.out_channels, 2), unit[0], fixed_);
        const Map b = norm(conv(relu(a), unit[1], p.out_channels, 1), unit[1], fixed_);
        value = add(conv(halved(value), unit[2], p.out_channels, 1), b);
      } else {
        return classify(relu(norm(value, unit[0], last_)), unit[1], p.out_channels);
      }
    }
    return {};
  }

  Map cell(int32_t t, const Map& input, const Position& p) {
    const auto opcode = table_.section(nasfast::kOpcode), param = table_.section(nasfast::kParam);
    std::vector<Map> registers(
        static_cast<size_t>(table_.section(nasfast::kNumRegisters)[static_cast<size_t>(t)]));
    registers[0] = input;
    const auto steps = table_.steps(t);
    size_t last = 0;
    for (size_t k = 0; k < steps.size(); ++k) {
      const auto x = static_cast<size_t>(steps[k]);
      std::vector<const Map*> in;
      for (const int32_t r : table_.operand_registers(t, static_cast<int32_t>(k))) {
        in.push_back(&registers[static_cast<size_t>(r)]);
      }
      Map out = opcode[x] == nasfast::kInput ? input
                : opcode[x] == nasfast::kZero
                    ? Map(input.images, input.channels, input.height, input.width)
                    : *in[0];
      if (opcode[x] == nasfast::kSum) {
        for (size_t i = 1; i < in.size(); ++i) out = add(out, *in[i]);
      } else if (opcode[x] == nasfast::kMix) {
        out = mixed(table_.operands(steps[k]), in,
                    mixing_ + p.cell * table_.mixing_width() + param[x]);
      } else if (opcode[x] == nasfast::kConv) {
        const Unit& unit = table_.units()[static_cast<size_t>(p.unit + param[x])];
        out = norm(conv(relu(out), unit, p.out_channels, 1), unit, cells_);
      } else if (opcode[x] == nasfast::kAvgPool || opcode[x] == nasfast::kMaxPool) {
        out = pooled(out, param[x], opcode[x] == nasfast::kMaxPool);
      }
      last = static_cast<size_t>(table_.registers(t)[k]);
      registers[last] = std::move(out);
    }
    return registers[last];
  }

  Map mixed(std::span<const int32_t> operands, const std::vector<const Map*>& in,
            const Weight* weights) const {
    Map out(in[0]->images, in[0]->channels, in[0]->height, in[0]->width);
    for (size_t k = 0; k < in.size(); ++k) {
      const auto opcode = table_.section(nasfast::kOpcode)[static_cast<size_t>(operands[k])];
      if (opcode == nasfast::kZero) continue;
      for (size_t i = 0; i < out.numbers.size(); ++i) {
        out.numbers[i] += Number(weights[k]) * in[k]->numbers[i];
      }
    }
    return out;
  }

  Map conv(const Map& in, const Unit& unit, int32_t out_channels, int32_t stride) const {
    const int32_t k = unit.kernel, pad = k / 2;
    Map out(in.images, out_channels, (in.height + stride - 1) / stride,
            (in.width + stride - 1) / stride);
    for_each(out, [&](int32_t n, int32_t o, int32_t y, int32_t x) {
      Number sum = unit.bias >= 0 ? Number(arena_[unit.bias + o]) : Number(0.0);
      for (int32_t c = 0; c < in.channels; ++c) {
        const Weight* weight = arena_ + unit.weight + (o * in.channels + c) * k * k;
        for (int32_t tap = 0; tap < k * k; ++tap) {
          const int32_t v = y * stride + tap / k - pad, u = x * stride + tap % k - pad;
          if (in.has(v, u)) sum += Number(weight[tap]) * in.at(n, c, v, u);
        }
      }
      out.at(n, o, y, x) = sum;
    });
    return out;
  }

  Statistics measure(const Map& x, int32_t channel, int64_t first, int64_t end) const {
    const double count = static_cast<double>(end - first) * x.height * x.width;
    const auto total = [&](auto of) {
      Number sum = 0;
      for (auto n = static_cast<int32_t>(first); n < end; ++n) {
        for (int32_t p = 0; p < x.height * x.width; ++p) sum += of(x.at(n, channel, 0, p));
      }
      return sum / count;
    };
    const Number mean = total([](Number v) { return v; });
    return {mean, total([mean](Number v) { return (v - mean) * (v - mean); })};
  }

  Map norm(Map x, const Unit& unit, BatchNormMode mode) {
    for (int32_t c = 0; c < x.channels; ++c) {
      Statistics known = {0, 0};
      if (mode == nasfast::kRunning) {
        known = {Number(arena_[unit.mean + c]), Number(arena_[unit.variance + c])};
      } else if (mode == nasfast::kRecalibrate) {
        if (is_recording_) recorded_.push_back(measure(x, c, 0, x.images));
        known = is_recording_ ? recorded_.back() : recorded_[next_++];
      }
      int64_t first = 0;
      for (const int64_t size : sizes_) {
        const Statistics s = mode == nasfast::kBatch ? measure(x, c, first, first + size) : known;
        const Number gamma = unit.gamma >= 0 ? Number(arena_[unit.gamma + c]) : Number(1.0);
        const Number beta = unit.beta >= 0 ? Number(arena_[unit.beta + c]) : Number(0.0);
        using std::sqrt;
        const Number factor = gamma / sqrt(s.variance + nasfast::kBatchNormEpsilon);
        for (auto n = static_cast<int32_t>(first); n < first + size; ++n) {
          for (int32_t p = 0; p < x.height * x.width; ++p) {
            Number& v = x.at(n, c, 0, p);
            v = (v - s.mean) * factor + beta;
          }
        }
        first += size;
      }
    }
    return x;
  }

  static Map relu(Map x) {
    for (Number& v : x.numbers) v = v <= 0 ? Number(0.0) : v;
    return x;
  }
  static Map add(Map x, const Map& y) {
    for (size_t i = 0; i < x.numbers.size(); ++i) x.numbers[i] += y.numbers[i];
    return x;
  }

  static Map pooled(const Map& in, int32_t kernel, bool is_max) {
    Map out(in.images, in.channels, in.height, in.width);
    for_each(out, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
      out.at(n, c, y, x) = over_window(in, n, c, y - kernel / 2, x - kernel / 2, kernel, is_max);
    });
    return out;
  }
  static Map halved(const Map& in) {
    Map out(in.images, in.channels, (in.height + 1) / 2, (in.width + 1) / 2);
    for_each(out, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
      out.at(n, c, y, x) = over_window(in, n, c, 2 * y, 2 * x, 2, false);
    });
    return out;
  }
  static Number over_window(const Map& in, int32_t n, int32_t c, int32_t top, int32_t left,
                            int32_t side, bool is_max) {
    std::vector<Number> there;
    for (int32_t y = top; y < top + side; ++y) {
      for (int32_t x = left; x < left + side; ++x) {
        if (in.has(y, x)) there.push_back(in.at(n, c, y, x));
      }
    }
    if (is_max) return *std::max_element(there.begin(), there.end());
    return std::accumulate(there.begin(), there.end(), Number(0.0)) /
           static_cast<double>(there.size());
  }

  std::vector<Number> classify(const Map& x, const Unit& unit, int32_t classes) const {
    std::vector<Number> logits;
    for (int32_t n = 0; n < x.images; ++n) {
      for (int32_t k = 0; k < classes; ++k) {
        Number logit = arena_[unit.bias + k];
        for (int32_t c = 0; c < x.channels; ++c) {
          Number mean = 0.0;
          for (int32_t p = 0; p < x.height * x.width; ++p) mean += x.at(n, c, 0, p);
          logit += Number(arena_[unit.weight + k * x.channels + c]) * mean /
                   static_cast<double>(x.height * x.width);
        }
        logits.push_back(logit);
      }
    }
    return logits;
  }

  const ProgramTable& table_;
  const Weight* arena_;
  BatchNormMode cells_, fixed_, last_;
  const Weight* mixing_;
  std::span<const int64_t> sizes_;  // minibatches of the walk at hand
  bool is_recording_ = false;
  std::vector<Statistics> recorded_;  // of each channel that recalibrates, in the order of the walk
  size_t next_ = 0;
};
using Interpreter = InterpreterOf<double, float>;

}  // namespace interpreter
