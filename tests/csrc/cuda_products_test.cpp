// SPDX-License-Identifier: MIT
// Products of convolutions in float32 and tf32, there and back, by the emulator: whole numbers so
// small that every sum is exact, so that each result is one number and no other. Operands of more
// bits than tf32 has say whether, and how, they are rounded.
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "emulator.h"
#include "engine/cuda/pass_layout.h"
#include "kernel_rows.h"
#include "kernels/cuda/gradient_launches.h"

namespace {

using namespace nasfast::kernels::cuda;

struct Shape {
  Sides sides;
  int32_t in, out, kernel, stride;
  bool is_shortcut = false;  // a 1x1 convolution of means of 2x2 pixels

  int32_t step() const { return is_shortcut ? 1 : stride; }  // of the convolution itself
  Sides out_sides() const { return stride == 2 ? halved(sides) : sides; }
  std::string text() const {
    return std::to_string(sides.images) + "x" + std::to_string(sides.height) + "x" +
           std::to_string(sides.width) + ", " + std::to_string(in) + " to " + std::to_string(out) +
           ", kernel " + std::to_string(kernel) + ", stride " + std::to_string(stride) +
           (is_shortcut ? ", of means" : "");
  }
};

// [pixels][pitch_of(channels)], zeros behind the last channel.
struct Value {
  Sides sides;
  int32_t channels;
  std::vector<float> numbers;

  Value(const Sides& s, int32_t c)
      : sides(s),
        channels(c),
        numbers(static_cast<size_t>(s.images * s.height * s.width * pitch_of(c))) {}
  float& at(const Pixel& p, int32_t c) {
    return numbers[static_cast<size_t>(index_of(sides, p) * pitch_of(channels) + c)];
  }
  float at(const Pixel& p, int32_t c) const { return const_cast<Value*>(this)->at(p, c); }
};

template <typename Visit>
void for_pixels(const Sides& sides, const Visit& visit) {
  for (int32_t image = 0; image < sides.images; ++image) {
    for (int32_t y = 0; y < sides.height; ++y) {
      for (int32_t x = 0; x < sides.width; ++x) visit(Pixel{image, y, x});
    }
  }
}

// Multiples of `step` up to `most` in size.
using Draw = std::function<float()>;
Draw multiples(kernel_rows::Random& random, int32_t most, int32_t step) {
  const auto count = static_cast<uint32_t>(2 * (most / step) + 1);
  return [&random, count, most, step] {
    return static_cast<float>((static_cast<int32_t>(random.below(count)) - most / step) * step);
  };
}

Value random_value(const Sides& sides, int32_t channels, const Draw& draw) {
  Value value(sides, channels);
  for_pixels(sides, [&](const Pixel& p) {
    for (int32_t c = 0; c < channels; ++c) value.at(p, c) = draw();
  });
  return value;
}

// A number as an operand holds it: in tf32 the nearest of 11 significant bits, ties away from zero.
double operand(double number, Precision precision) {
  if (precision != Precision::kTf32 || number == 0) return number;
  int exponent = 0;
  const double fraction = std::frexp(number, &exponent);
  return std::ldexp(std::round(std::ldexp(fraction, 11)), exponent - 11);
}

// Of a shape: value, weight [out][in][taps], gradient of the result, and what is made of them.
struct Case {
  Shape shape;
  Value value, gradient;
  std::vector<float> weight;

  Case(const Shape& s, const Draw& values, const Draw& weights, const Draw& gradients)
      : shape(s),
        value(random_value(s.sides, s.in, values)),
        gradient(random_value(s.out_sides(), s.out, gradients)),
        weight(static_cast<size_t>(s.out * s.in * s.kernel * s.kernel)) {
    for (float& number : weight) number = weights();
  }

  int32_t taps() const { return shape.kernel * shape.kernel; }
  size_t weight_index(int32_t o, int32_t c, int32_t tap) const {
    return static_cast<size_t>((o * shape.in + c) * taps() + tap);
  }
  // Pixels of the 2x2 that pixel `p` is of, in a row of the value that has all of them or not.
  int32_t quarter(const Pixel& p) const {
    return ((p.y | 1) < shape.sides.height ? 2 : 1) * ((p.x | 1) < shape.sides.width ? 2 : 1);
  }
  // What the convolution reads: the value, or its means.
  Value read() const {
    if (!shape.is_shortcut) return value;
    Value means(halved(shape.sides), shape.in);
    for_pixels(shape.sides, [&](const Pixel& p) {
      for (int32_t c = 0; c < shape.in; ++c) {
        means.at({p.image, p.y / 2, p.x / 2}, c) += value.at(p, c) / static_cast<float>(quarter(p));
      }
    });
    return means;
  }

  // Calls visit(pixel of the result, pixel that it reads, tap).
  template <typename Visit>
  void for_taps(const Visit& visit) const {
    const Sides read_sides = shape.is_shortcut ? halved(shape.sides) : shape.sides;
    const int32_t step = shape.step();
    for_pixels(shape.out_sides(), [&](const Pixel& to) {
      for (int32_t tap = 0; tap < taps(); ++tap) {
        const Pixel from = {to.image, to.y * step + tap / shape.kernel - shape.kernel / 2,
                            to.x * step + tap % shape.kernel - shape.kernel / 2};
        if (has(read_sides, from)) visit(to, from, tap);
      }
    });
  }

  std::vector<double> forward(Precision precision) const {
    const Value from_value = read();
    std::vector<double> out(gradient.numbers.size());
    for_taps([&](const Pixel& to, const Pixel& from, int32_t tap) {
      for (int32_t o = 0; o < shape.out; ++o) {
        double& sum = out[static_cast<size_t>(index_of(gradient.sides, to) * pitch_of(shape.out)) +
                          static_cast<size_t>(o)];
        for (int32_t c = 0; c < shape.in; ++c) {
          sum += operand(from_value.at(from, c), precision) *
                 operand(weight[weight_index(o, c, tap)], precision);
        }
      }
    });
    return out;
  }

  // The gradient of the value.
  std::vector<double> backward(Precision precision) const {
    std::vector<double> out(value.numbers.size());
    const auto add = [&](const Pixel& p, const Pixel& of, int32_t tap, float divisor) {
      for (int32_t c = 0; c < shape.in; ++c) {
        double& sum = out[static_cast<size_t>(index_of(shape.sides, p) * pitch_of(shape.in) + c)];
        for (int32_t o = 0; o < shape.out; ++o) {
          sum += operand(gradient.at(of, o) / divisor, precision) *
                 operand(weight[weight_index(o, c, tap)], precision);
        }
      }
    };
    if (shape.is_shortcut) {
      for_pixels(shape.sides, [&](const Pixel& p) {
        add(p, {p.image, p.y / 2, p.x / 2}, 0, static_cast<float>(quarter(p)));
      });
    } else {
      for_taps([&](const Pixel& to, const Pixel& from, int32_t tap) { add(from, to, tap, 1); });
    }
    return out;
  }

  // [taps][depth_of(out)][depth_of(in)]
  std::vector<double> of_weight(Precision precision) const {
    const Value from_value = read();
    const int32_t outs = depth_of(shape.out), ins = depth_of(shape.in);
    std::vector<double> out(static_cast<size_t>(taps() * outs * ins));
    for_taps([&](const Pixel& to, const Pixel& from, int32_t tap) {
      for (int32_t o = 0; o < shape.out; ++o) {
        for (int32_t c = 0; c < shape.in; ++c) {
          out[static_cast<size_t>((tap * outs + o) * ins + c)] +=
              operand(gradient.at(to, o), precision) * operand(from_value.at(from, c), precision);
        }
      }
    });
    return out;
  }
};

// How the work is cut, at most.
struct Cut {
  int32_t most_rows, columns, k_chunk;

  int32_t columns_of(int32_t channels) const {
    return least(columns, nasfast::cuda::columns_for(channels));
  }
  // Weights of all taps are in shared memory together.
  int32_t chunk_of(const Shape& shape, int32_t depth) const {
    return shape.kernel > 3 ? 16 : least(k_chunk, depth);
  }
};

int32_t place(int32_t& end, int32_t bytes) {
  const int32_t begin = end;
  end += round_up(bytes, kVectorBytes);
  return begin;
}

std::vector<float> packed(const Case& of, Precision precision, bool is_turned) {
  const Shape& shape = of.shape;
  std::vector<float> out(static_cast<size_t>(of.taps() * depth_of(shape.in) * depth_of(shape.out)),
                         7.0f);
  WeightRow row{};
  row.weight = of.weight.data();
  row.packed = out.data();
  row.in_channels = row.all_channels = shape.in;
  row.out_channels = shape.out;
  row.kernel = shape.kernel;
  row.is_turned = is_turned;
  CHECK_EQ(launch_pack_weights(precision, &row, 1, nullptr), cudaSuccess);
  return out;
}

TermRow term_of(const Value& value) {
  TermRow term{};
  term.data = value.numbers.data();
  term.pitch = pitch_of(value.channels);
  term.count = value.channels;
  return term;
}

std::vector<float> forward_on_device(const Case& of, Precision precision, const Cut& cut) {
  const Shape& shape = of.shape;
  const std::vector<float> weight = packed(of, precision, false);
  Value out(shape.out_sides(), shape.out);
  out.numbers.assign(out.numbers.size(), 7.0f);
  const TermRow term = term_of(of.value);
  ConsumerRow consumer{};
  consumer.task = shape.is_shortcut ? Task::kShortcut : Task::kConv;
  consumer.kernel = shape.kernel;
  consumer.stride = shape.step();
  consumer.out_channels = shape.out;
  consumer.out = out.numbers.data();
  consumer.weight = weight.data();
  PassRow pass{};
  pass.num_terms = pass.num_consumers = 1;
  pass.channels = shape.in;
  pass.is_linear = 1;
  pass.halo = shape.kernel / 2;
  pass.sides = shape.sides;
  pass.tile = tile_for(shape.sides.height, shape.sides.width, cut.most_rows);
  pass.num_tiles = num_tiles(pass.tile, shape.sides);
  const int32_t depth = depth_of(shape.in), pitch = shared_pitch(precision, depth);
  pass.k_chunk = cut.chunk_of(shape, depth);
  const int32_t rows = pass.tile.padded_rows(pass.halo);
  int32_t end = 0;
  pass.layout.operand = place(end, rows * pitch);
  pass.layout.raw = shape.is_shortcut ? place(end, rows * pitch) : -1;
  pass.layout.halved = shape.is_shortcut ? place(end, pass.tile.rows() / 4 * pitch) : -1;
  pass.layout.terms = place(end, 2 * depth * 4);
  const int32_t columns = cut.columns_of(shape.out);
  pass.layout.weights = place(end, of.taps() * columns * shared_pitch(precision, pass.k_chunk));
  pass.layout.bytes = end;
  const PassLaunch launch{&pass, &term, &consumer, 1, pass.num_tiles, end};
  CHECK_EQ(launch_passes(precision, columns, launch, nullptr), cudaSuccess);
  return out.numbers;
}

// The gradient of the result, as those who read it give it.
struct Given {
  ReaderRow reader{};
  ResultRow result{};

  explicit Given(const Case& of) {
    reader.gradient = of.gradient.numbers.data();
    reader.pitch = pitch_of(of.shape.out);
    reader.depth = depth_of(of.shape.out);
    reader.count = of.shape.out;
    result.num_readers = 1;
    result.channels = of.shape.out;
  }
};

std::vector<float> backward_on_device(const Case& of, Precision precision, const Cut& cut) {
  const Shape& shape = of.shape;
  const std::vector<float> weight = packed(of, precision, true);
  const Given given(of);
  ShareRow share{};
  share.share = shape.stride == 2 ? Share::kHalvedConv : Share::kConv;
  if (shape.is_shortcut) share.share = Share::kShortcut;
  share.kernel = shape.kernel;
  share.weight = weight.data();
  Value out(shape.sides, shape.in);
  out.numbers.assign(out.numbers.size(), 7.0f);
  GradientRow row{};
  row.num_shares = 1;
  row.channels = shape.in;
  row.is_linear = 1;
  row.halo = shape.kernel / 2;
  row.sides = shape.sides;
  row.tile = tile_for(shape.sides.height, shape.sides.width, cut.most_rows);
  row.num_tiles = num_tiles(row.tile, shape.sides);
  row.gradient = out.numbers.data();
  const int32_t depth = depth_of(shape.in), result_depth = depth_of(shape.out);
  row.k_chunk = cut.chunk_of(shape, result_depth);
  const int32_t columns = cut.columns_of(shape.in);
  int32_t end = 0;
  row.layout.raw = -1;
  row.layout.operand =
      place(end, row.tile.padded_rows(row.halo) * shared_pitch(precision, result_depth));
  row.layout.total = place(end, row.tile.rows() * (depth + 4) * 4);
  row.layout.coefficients = place(end, 3 * result_depth * 4);
  row.layout.weights = place(end, of.taps() * columns * shared_pitch(precision, row.k_chunk));
  row.layout.bytes = end;
  const GradientLaunch launch{&row,          nullptr, &share,        &given.result,
                              &given.reader, 1,       row.num_tiles, end};
  CHECK_EQ(launch_gradients(precision, columns, launch, nullptr), cudaSuccess);
  return out.numbers;
}

// Parts added up.
std::vector<float> of_weight_on_device(const Case& of, Precision precision, const Cut& cut) {
  const Shape& shape = of.shape;
  const Given given(of);
  const TermRow term = term_of(of.value);
  WeightGradientRow row{};
  row.num_terms = 1;
  row.channels = shape.in;
  row.is_linear = 1;
  row.is_shortcut = shape.is_shortcut;
  row.kernel = shape.kernel;
  row.stride = shape.step();
  row.out_channels = shape.out;
  row.sides = shape.sides;
  row.tile = tile_for(shape.sides.height, shape.sides.width, cut.most_rows);
  row.num_tiles = num_tiles(row.tile, shape.sides);
  row.parts = least(row.num_tiles, 3);
  const auto numbers = static_cast<size_t>(of.taps() * depth_of(shape.in) * depth_of(shape.out));
  std::vector<float> partial(numbers * static_cast<size_t>(row.parts), 7.0f), out(numbers);
  row.partial = partial.data();
  const WeightGradientSize size = weight_gradient_size(precision, row);
  const WeightGradientLaunch launch{&row, &term,       &given.result, &given.reader,
                                    1,    size.blocks, size.bytes};
  CHECK_EQ(launch_weight_gradients(precision, launch, nullptr), cudaSuccess);
  for (size_t i = 0; i < partial.size(); ++i) out[i % numbers] += partial[i];
  return out;
}

size_t differ(const std::vector<float>& actual, const std::vector<double>& expected) {
  size_t count = 0;
  for (size_t i = 0; i < expected.size(); ++i) count += actual[i] != expected[i];
  return count;
}

// In which products an operand has more bits than tf32, so that plain ones would be others.
struct Rounded {
  bool result = false, gradient = false, weight = false;
};

void check_case(const Case& of, const Cut& cut, const Rounded& rounded) {
  const auto check_one = [&](const char* what, const auto& on_device, const auto& expected,
                             bool is_rounded) {
    for (const Precision precision : {Precision::kFp32, Precision::kTf32}) {
      const std::vector<float> actual = on_device(of, precision, cut);
      const auto where = (precision == Precision::kTf32 ? "tf32, " : "fp32, ") + of.shape.text();
      if (const size_t wrong = differ(actual, expected(precision)); wrong > 0) {
        check::fail(what, cut.most_rows, where + ": " + std::to_string(wrong) + " numbers");
      }
    }
    CHECK_EQ(expected(Precision::kFp32) != expected(Precision::kTf32), is_rounded);
  };
  check_one(
      "result", forward_on_device, [&](Precision p) { return of.forward(p); }, rounded.result);
  check_one(
      "gradient", backward_on_device, [&](Precision p) { return of.backward(p); },
      rounded.gradient);
  check_one(
      "weight", of_weight_on_device, [&](Precision p) { return of.of_weight(p); }, rounded.weight);
}

const std::vector<Shape> kShapes = {
    {{2, 5, 6}, 3, 5, 1, 1},   {{2, 5, 6}, 3, 5, 3, 1},  {{3, 9, 7}, 20, 18, 3, 1},
    {{1, 8, 8}, 16, 40, 3, 1}, {{2, 7, 9}, 8, 70, 1, 1}, {{2, 7, 5}, 33, 9, 3, 2},
    {{1, 6, 6}, 4, 17, 5, 2},  {{2, 3, 3}, 5, 6, 5, 1},  {{2, 7, 5}, 18, 20, 1, 2, true},
    {{9, 1, 2}, 3, 4, 3, 1},
};

// What fits tf32: every number is in its place.
void check_places() {
  kernel_rows::Random random(3);
  for (const Shape& shape : kShapes) {
    for (const Cut& cut : {Cut{128, 64, 64}, Cut{16, 16, 16}, Cut{32, 32, 32}}) {
      const Draw values = multiples(random, 64, 4), weights = multiples(random, 7, 1);
      check_case({shape, values, weights, values}, cut, {});
    }
  }
}

// Numbers of 13 bits, among them ties, on one side of each product, and small ones on the other.
void check_rounding() {
  kernel_rows::Random random(4);
  for (const Shape& shape : kShapes) {
    const int32_t step = shape.is_shortcut ? 4 : 1;  // means of four are whole then
    const Draw small = multiples(random, step, step), many = multiples(random, 8191 * step, step);
    const Draw weights = multiples(random, 1, 1), long_weights = multiples(random, 8191, 1);
    const Cut cut{64, 32, 16};
    check_case({shape, many, weights, small}, cut, {.result = true, .weight = true});
    check_case({shape, small, long_weights, small}, cut, {.result = true, .gradient = true});
    check_case({shape, small, weights, many}, cut, {.gradient = true, .weight = true});
  }
}

}  // namespace

int main() {
  check_places();
  check_rounding();
  return check::result();
}
