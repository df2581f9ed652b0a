// SPDX-License-Identifier: MIT
// A program table run one number at a time in double precision, straight from the words of
// program_table.h: what backends are tested against. Numbers may be of any type that computes like
// one: tape.h has some that know their gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>
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

// What a minibatch gave for a unit's batch norm: by channel, with a convolution's bias.
struct Measured {
  double count = 0;
  std::vector<double> mean, variance;
};

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
    measured_.clear();
    is_recording_ = true;
    walk(network, calibration, calibration_sizes);
    is_recording_ = false;
    next_ = 0;
    return walk(network, images, sizes);
  }

  // By unit, where the statistics are those of a minibatch: the last one.
  const std::map<size_t, Measured>& measured() const { return measured_; }

 private:
  struct Statistics {
    Number mean, variance;
  };

  std::vector<Number> walk(int32_t network, const Map& images, std::span<const int64_t> sizes) {
    sizes_ = sizes;
    Map value = images;
    for (const Position& p : table_.positions()) {
      const Unit* unit = table_.units().data() + p.unit;
      if (nasfast::is_stem(p.kind)) {
        value = norm(conv(value, *unit, 1), *unit, fixed_);
        if (p.kind == nasfast::kReluStem) value = relu(value);
      } else if (p.kind == nasfast::kCell) {
        value = cell(table_.network(network)[static_cast<size_t>(p.cell)], value, p);
      } else if (p.kind == nasfast::kReduction) {
        const Map a = norm(conv(relu(value), unit[0], 2), unit[0], fixed_);
        const Map b = norm(conv(relu(a), unit[1], 1), unit[1], fixed_);
        value = add(conv(halved(value, false), unit[2], 1), b);
      } else if (p.kind == nasfast::kPooling) {
        value = halved(value, true);
      } else if (p.kind == nasfast::kProjectedHead) {
        const Map projected = norm(conv(relu(value), unit[0], 1), unit[0], last_);
        return classify(projected, unit[1], p.out_channels);
      } else if (p.kind == nasfast::kLinearHead) {
        return classify(value, unit[0], p.out_channels);
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
      Map out = in.empty() ? input : *in[0];
      if (opcode[x] == nasfast::kZero) std::fill(out.numbers.begin(), out.numbers.end(), 0.0);
      if (opcode[x] == nasfast::kSum) {
        for (size_t i = 1; i < in.size(); ++i) out = add(out, *in[i]);
      } else if (opcode[x] == nasfast::kMix) {
        out = mixed(table_.operands(steps[k]), in,
                    mixing_ + p.cell * table_.mixing_width() + param[x]);
      } else if (opcode[x] == nasfast::kConv || opcode[x] == nasfast::kConvRelu) {
        const Unit& unit = table_.units()[static_cast<size_t>(p.unit + param[x])];
        const bool is_first = opcode[x] == nasfast::kConv;  // the ReLU
        out = norm(conv(is_first ? relu(out) : out, unit, 1), unit, cells_);
        if (!is_first) out = relu(out);
      } else if (opcode[x] == nasfast::kConcat) {
        out = side_by_side(in, static_cast<uint32_t>(param[x]), p.out_channels);
      } else if (opcode[x] == nasfast::kCut) {
        const Map whole = std::exchange(
            out,
            Map(out.images, table_.units()[static_cast<size_t>(p.unit + param[x])].out_channels,
                out.height, out.width));
        place(out, whole, 0);
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

  // Copies the channels of a map into another from channel `to` on, as far as it has them.
  static void place(Map& out, const Map& in, int32_t to) {
    for_each(in, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
      if (to + c < out.channels) out.at(n, to + c, y, x) = in.at(n, c, y, x);
    });
  }

  static Map side_by_side(const std::vector<const Map*>& in, uint32_t slots, int32_t channels) {
    Map out(in[0]->images, channels, in[0]->height, in[0]->width);
    int32_t to = 0;
    for (size_t next = 0; next < in.size(); slots >>= 1) {
      const bool is_taken = (slots & 1) != 0;
      if (is_taken) place(out, *in[next], to);
      to += in[is_taken ? next++ : 0]->channels;
    }
    return out;
  }

  Map conv(const Map& in, const Unit& unit, int32_t stride) const {
    const int32_t k = unit.kernel, pad = k / 2;
    Map out(in.images, unit.out_channels, (in.height + stride - 1) / stride,
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
        if constexpr (std::is_same_v<Number, double>) {
          if (mode == nasfast::kBatch) note(x, unit, c, size, s);
        }
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

  void note(const Map& x, const Unit& unit, int32_t channel, int64_t size, const Statistics& s) {
    Measured& own = measured_[static_cast<size_t>(&unit - table_.units().data())];
    own.count = static_cast<double>(size) * x.height * x.width;
    own.mean.resize(static_cast<size_t>(x.channels));
    own.variance.resize(static_cast<size_t>(x.channels));
    own.mean[static_cast<size_t>(channel)] = s.mean;
    own.variance[static_cast<size_t>(channel)] = s.variance;
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
  Map halved(const Map& in, bool is_max) const {
    const int32_t pad = table_.settings().padding;
    Map out(in.images, in.channels, nasfast::halved(in.height, pad),
            nasfast::halved(in.width, pad));
    for_each(out, [&](int32_t n, int32_t c, int32_t y, int32_t x) {
      out.at(n, c, y, x) = over_window(in, n, c, 2 * y - pad, 2 * x - pad, 2, is_max);
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
  std::map<size_t, Measured> measured_;
};
using Interpreter = InterpreterOf<double, float>;

}  // namespace interpreter
