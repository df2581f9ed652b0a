// SPDX-License-Identifier: MIT
// Kernels whose terms cover ranges of channels, on every instruction set, against their
// definitions.
#include <algorithm>
#include <string>

#include "kernel_sums.h"
#include "kernels/cpu/gradients.h"

namespace {

using namespace kernel_rows;
using nasfast::kernels::cpu::CombineRangedRow;
using nasfast::kernels::cpu::GradientTerm;
using nasfast::kernels::cpu::RangedTerm;

constexpr float kNanFloat = std::numeric_limits<float>::quiet_NaN();

struct Range {
  int32_t channels, from, to, count;
  bool covers(int32_t channel) const { return channel >= to && channel < to + count; }
};

// A row with its numbers. Whatever a kernel may not read is NaN: numbers of channels out of the
// range, and the half line behind an odd number of channels.
struct Source {
  Range range;
  Block block;
  Row row;
  Exact<float> scale, shift;

  Source(const Setting& s, const Range& r, int32_t width, Random& random)
      : range(r),
        block(random_block(s.precision, 1, width, r.channels, random)),
        row(std::move(rows_of(block, s.value())[0])),
        scale(r.channels, kNanFloat),
        shift(r.channels, kNanFloat) {
    for (int32_t k = r.from; k < r.from + r.count; ++k) {
      scale[k] = static_cast<float>(random.uniform());
      shift[k] = static_cast<float>(random.uniform());
    }
    if (s.value() == Storage::kPair && r.channels % 2 != 0) {
      for_each(width, 1, [&](int32_t x, int32_t, int32_t i) { row.set(x, r.channels, i, kNan); });
    }
    if (r.count == 0) return;
    block.at(0, width - 1, r.from)[3] = kNan;
    row.set(width - 1, r.from, 3, kNan);
  }
  double scaled(int32_t x, int32_t own, int32_t i, bool has_shift) {
    return block.at(0, x, own)[i] * scale[own] + (has_shift ? double{shift[own]} : 0);
  }
  double size(int32_t x, int32_t own, int32_t i) {
    return std::abs(block.at(0, x, own)[i] * scale[own]) + std::abs(double{shift[own]});
  }
};

// Keeps NaN.
double relu(double x) { return x <= 0 ? 0 : x; }

enum class Into { kRaw, kOperand, kBoth, kInPlace };

struct Combination {
  std::string name;
  std::vector<Range> ranges;
  int32_t channels;
  bool (*is_rectified)(size_t term);
  bool (*has_shift)(size_t term);
  size_t num_masked = 0;
};

bool always(size_t) { return true; }
bool never(size_t) { return false; }
bool first(size_t term) { return term == 0; }
bool often(size_t term) { return term % 3 != 1; }

Range full(int32_t channels) { return {channels, 0, 0, channels}; }

void check_combine(const Setting& s, const Combination& of, int32_t width, Into into,
                   bool is_linear, bool has_offset, Random& random) {
  std::vector<Source> sources;
  std::vector<RangedTerm> terms;
  for (size_t t = 0; t < of.ranges.size(); ++t) {
    const Range& r = of.ranges[t];
    const Source& from = sources.emplace_back(s, r, width, random);
    terms.push_back({from.row.data(), from.scale.get(),
                     of.has_shift(t) ? from.shift.get() : nullptr, r.channels, r.from, r.to,
                     r.count, t >= of.num_masked && of.is_rectified(t)});
  }
  Source mask(s, full(of.channels), width, random);
  mask.scale[of.channels / 2] = mask.shift[of.channels / 2] = 0;  // the gradient at 0 is 0
  const Exact<float> offset = per_channel(of.channels, random, 2);
  const Row raw_row(s.value(), width, of.channels, true),
      operand(s.kernels.operand, width, of.channels, true);
  const Row* result = &raw_row;
  if (into == Into::kInPlace) {
    const auto is_same = [&](const Range& r) {
      return r.channels == of.channels && r.from == 0 && r.to == 0;
    };
    const auto same = std::find_if(of.ranges.begin(), of.ranges.end(), is_same);
    if (same != of.ranges.end()) {
      result = &sources[static_cast<size_t>(same - of.ranges.begin())].row;
    } else if (of.num_masked > 0) {
      result = &mask.row;
    } else {
      return;
    }
  }
  CombineRangedRow row{terms.data(),
                       static_cast<int32_t>(terms.size()),
                       width,
                       of.channels,
                       has_offset ? offset.get() : nullptr,
                       into == Into::kOperand ? nullptr : result->data(),
                       into == Into::kRaw || into == Into::kInPlace ? nullptr : operand.data(),
                       is_linear};
  if (of.num_masked > 0) {
    row.num_masked = static_cast<int32_t>(of.num_masked);
    row.mask = {
        mask.row.data(), mask.scale.get(), mask.shift.get(), of.channels, 0, 0, of.channels, false};
  }
  Block raw(1, width, of.channels), positive(1, width, of.channels);
  double most = 0;  // sum of the terms' magnitudes
  for_each(width, of.channels, [&](int32_t x, int32_t c, int32_t i) {
    double sum = 0, magnitude = has_offset ? std::abs(offset[c]) : 0;
    for (size_t t = 0; t <= sources.size(); ++t) {
      if (t == of.num_masked) {
        if (t > 0 && mask.scaled(x, c, i, true) <= 0) sum = 0;
        sum += has_offset ? double{offset[c]} : 0;
      }
      if (t == sources.size()) break;
      Source& source = sources[t];
      if (!source.range.covers(c)) continue;
      const int32_t own = c - source.range.to + source.range.from;
      const double z = source.scaled(x, own, i, of.has_shift(t));
      sum += terms[t].rectified ? relu(z) : z;
      if (!std::isnan(z)) magnitude += source.size(x, own, i);
    }
    raw.at(0, x, c)[i] = sum;
    positive.at(0, x, c)[i] = is_linear ? sum : relu(sum);
    most = std::max(most, magnitude);
  });
  s.kernels.combine_ranged(row);
  const std::string what = "combine_ranged " + of.name + " of " + std::to_string(terms.size()) +
                           " into " + std::to_string(of.channels) + " x " + std::to_string(width);
  if (row.raw != nullptr) expect_row(s, what + ", raw", *result, raw, 0, most);
  if (row.operand != nullptr) expect_row(s, what + ", operand", operand, positive, 0, most);
}

// A part of a row of up to `most` channels that fits into `channels`; sometimes nothing.
Range random_range(int32_t channels, int32_t most, Random& random) {
  const auto below = [&](int32_t end) {
    return static_cast<int32_t>(random.below(static_cast<uint32_t>(end)));
  };
  const int32_t own = 1 + below(most);
  const int32_t from = below(own), to = below(channels);
  return {own, from, to, below(std::min(own - from, channels - to) + 1)};
}

std::vector<Combination> combinations(int32_t channels, Random& random) {
  std::vector<Combination> all;
  for (const size_t count : {1, 2, 3, 4, 5, 6, 7, 19}) {
    const std::vector<Range> same(count, full(channels));
    all.push_back({"rectified", same, channels, always, always});
    all.push_back({"plain", same, channels, never, never});
    all.push_back({"mixed", same, channels, often, first});
    std::vector<Range> some;
    for (size_t t = 0; t < count; ++t) some.push_back(random_range(channels, 48, random));
    all.push_back({"random ranges", some, channels, often, often});
    // Slices of a wider row, as gradients are: each at the result's first channel.
    std::vector<Range> slices;
    for (size_t t = 0; t < count; ++t) {
      const auto from = static_cast<int32_t>(random.below(6));
      slices.push_back({from + channels + static_cast<int32_t>(t), from, 0, channels});
    }
    for (const size_t num_masked : {count, count - 1, (count + 1) / 2}) {
      all.push_back({"masked", same, channels, often, often, num_masked});
      all.push_back({"masked slices", slices, channels, always, first, num_masked});
      all.push_back({"masked ranges", some, channels, never, always, num_masked});
    }
  }
  // Rows behind each other with some overlap and some space between, and one below them all.
  for (const int32_t step : {1, 2, 3, 4, 8, 16}) {
    std::vector<Range> parts;
    for (int32_t to = 0; to < channels; to += step) {
      const int32_t count =
          std::min(channels - to, step + static_cast<int32_t>(parts.size()) % 3 - 1);
      parts.push_back({std::max(count, 1), 0, to, count});
    }
    parts.push_back(full(channels));
    all.push_back({"concatenation", parts, channels, always, always});
  }
  all.push_back({"nothing", {}, channels, never, never});
  return all;
}

void check_combines(const Setting& s) {
  Random random(1);
  const std::vector<int32_t> widths = {1, 2, 3, 17, 9};
  size_t turn = 0;
  for (const int32_t channels : {1, 2, 3, 4, 5, 16, 43}) {
    for (const Combination& of : combinations(channels, random)) {
      for (const Into into : {Into::kRaw, Into::kOperand, Into::kBoth, Into::kInPlace}) {
        const bool is_linear = turn % 3 == 0, has_offset = turn % 4 != 0;
        check_combine(s, of, widths[turn++ % widths.size()], into, is_linear, has_offset, random);
      }
    }
  }
}

// Sums of a pass's gradient for terms that are ranges, were rectified, or neither.
void check_finish(const Setting& s, int32_t channels, int32_t width, int32_t num_terms,
                  Random& random) {
  struct Term {
    Source source;
    bool is_rectified, has_sum;
    Exact<float> centre, sum, dot;
  };
  std::vector<Term> terms;
  std::vector<GradientTerm> rows;
  for (int32_t t = 0; t < num_terms; ++t) {
    const bool is_range = t % 3 != 0;
    const Range range = is_range ? random_range(channels, 48, random) : full(channels);
    Term& term = terms.emplace_back(Term{{s, range, width, random},
                                         t % 4 != 1,
                                         t % 5 != 2,
                                         per_channel(range.channels, random, kNanFloat),
                                         sums_of(range.channels),
                                         sums_of(range.channels)});
    if (range.count > 0) term.source.scale[range.from] = term.source.shift[range.from] = 0;
    rows.push_back({term.source.row.data(), term.centre.get(), term.dot.get(),
                    term.has_sum ? term.sum.get() : nullptr,
                    term.is_rectified ? term.source.scale.get() : nullptr,
                    term.is_rectified ? term.source.shift.get() : nullptr,
                    is_range ? range.channels : 0, range.from, range.to, range.count});
  }
  Block gradient = random_block(s.precision, 1, width, channels, random);
  const auto gradient_rows = rows_of(gradient, s.value());
  const void* masked = gradient_rows[0].data();
  Block passing(1, width, channels);  // nothing is masked by the pass's own ReLU
  std::fill(passing.numbers.begin(), passing.numbers.end(), 1.0);
  const auto operand = rows_of(passing, s.kernels.operand);
  const Row out(s.value(), width, channels, true);
  const Exact<float> sum = sums_of(channels);
  s.kernels.gradients->finish({&masked, operand[0].data(), nullptr, rows.data(), 1, 0, num_terms,
                               width, channels, out.data(), sum.get()});
  expect_row(s, "finish", out, gradient, 0, 0);
  expect_sums(s, "finish, sum", sum, width, channels,
              [&](int32_t x, int32_t c, int32_t i) { return sized(gradient.at(0, x, c)[i]); });
  for (Term& term : terms) {
    const Range& range = term.source.range;
    const auto of = [&](int32_t x, int32_t own, int32_t i) {
      const bool is_covered = own >= range.from && own < range.from + range.count;
      if (!is_covered) return 0.0;
      const bool passes = !term.is_rectified || !(term.source.scaled(x, own, i, true) <= 0);
      return passes ? gradient.at(0, x, own - range.from + range.to)[i] : 0.0;
    };
    if (term.has_sum) {
      expect_sums(s, "finish, ranged sum", term.sum, width, range.channels,
                  [&](int32_t x, int32_t own, int32_t i) { return sized(of(x, own, i)); });
    } else {
      for (int64_t k = 0; k < term.sum.size(); ++k) CHECK_EQ(term.sum[k], kBefore);
    }
    expect_sums(s, "finish, ranged dot", term.dot, width, range.channels,
                [&](int32_t x, int32_t own, int32_t i) {
                  const double value = term.source.block.at(0, x, own)[i];
                  const double g = of(x, own, i), centre = term.centre[own];
                  const bool is_covered = own >= range.from && own < range.from + range.count;
                  if (!is_covered) return Sized{0, 0};
                  return Sized{g * (value - centre), std::abs(g) * (std::abs(value) + 1)};
                });
    for (int64_t k = int64_t{range.channels} * kBlockImages; k < term.dot.size(); ++k) {
      CHECK_EQ(term.dot[k], kBefore);
    }
  }
}

}  // namespace

int main() {
  for_every_setting([](const Setting& s) {
    check_combines(s);
    Random random(2);
    for (const int32_t channels : {1, 2, 3, 5, 16, 43}) {
      for (const int32_t width : {1, 2, 3, 4, 9, 17}) {
        for (const int32_t num_terms : {1, 2, 3, 20}) {
          check_finish(s, channels, width, num_terms, random);
        }
      }
    }
  });
  return check::result();
}
