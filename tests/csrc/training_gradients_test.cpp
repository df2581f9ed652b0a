// SPDX-License-Identifier: MIT
// Gradients of every lane of small tables on the CPU engine, against the chain rule in double
// precision, and what they do not depend on.
#include <algorithm>
#include <string>

#include "training_runs.h"

namespace {

using namespace training_runs;
using nasfast::Unit;
using nasfast::kernels::cpu::Isa, nasfast::kernels::cpu::Precision;

// Of the difference's length to that of the gradient. fp32: rounding, which batch norm magnifies,
// most of all where it divides by the deviation of what is nearly constant behind a zero cell.
// bf16: 8 bits in each of a dozen layers there and back, with ReLUs and maxima that flip: few lanes
// may be far off, most are not. A wrong tap or image shows as about 1.
constexpr double kFp32 = 1e-5, kFp32OfConstants = 5e-4, kBf16Median = 0.06, kBf16Most = 0.3;
// Chains of narrow blocks between ReLUs, where a channel may be positive in few pixels.
constexpr double kBf16MedianOfBlocks = 0.2, kBf16MostOfBlocks = 0.45;

double length(const std::vector<double>& numbers) {
  double square = 0;
  for (const double x : numbers) square += x * x;
  return std::sqrt(square);
}

double apart(const std::vector<float>& actual, const std::vector<double>& expected) {
  std::vector<double> difference;
  for (size_t i = 0; i < expected.size(); ++i) difference.push_back(actual[i] - expected[i]);
  return length(difference);
}

std::string name(Isa isa, Precision precision, const Data& data) {
  return std::string(name_of(isa)) + (precision == Precision::kBf16 ? " bf16" : " fp32") + ", " +
         std::to_string(data.count()) + " images of " + std::to_string(data.height) + "x" +
         std::to_string(data.width);
}

// Errors of lanes in bf16, by instruction set.
using Errors = std::vector<std::vector<double>>;

void check_lane(const ProgramTable& table, int32_t lane, const Data& data,
                const std::vector<float>& logit_gradient, double tolerance, Errors& errors) {
  const auto arena = random_arena(table), mixing = random_mixing(table);
  const Exact exact(table, lane, arena.data(), mixing, data, logit_gradient);
  errors.resize(nasfast::kernels::cpu::kNumIsas);
  for_every_setting([&](Isa isa, Precision precision) {
    const auto options = options_of(data, isa, precision, 2);
    const Gradients own = gradients_of(table, lane, arena.data(), mixing, data, options,
                                       logit_gradient.empty() ? nullptr : logit_gradient.data());
    const double size = length(exact.gradient);
    const double of_weights = apart(own.gradient, exact.gradient) / size;
    // Those of mixing weights may cancel: theirs are part of the same gradient.
    const double of_mixing = apart(own.mixing_gradient, exact.mixing_gradient) /
                             std::max(size, length(exact.mixing_gradient));
    const double worst = std::max(of_weights, of_mixing);
    if (precision == Precision::kBf16) {
      CHECK(std::isfinite(worst));
      errors[static_cast<size_t>(isa)].push_back(worst);
    } else if (!(worst <= tolerance)) {
      check::fail("lane", lane,
                  name(isa, precision, data) + ": weights " + check::show(of_weights) +
                      ", mixing weights " + check::show(of_mixing));
    }
    for (const Unit& unit : table.units()) {  // statistics are not trained
      if (unit.mean >= 0) CHECK_EQ(own.gradient[static_cast<size_t>(unit.mean)], 0.0f);
      if (unit.variance >= 0) CHECK_EQ(own.gradient[static_cast<size_t>(unit.variance)], 0.0f);
    }
  });
}

void check_errors(Errors& errors, const Data& data, double most_median = kBf16Median,
                  double most_of_nine_tenths = kBf16Most) {
  for (size_t isa = 0; isa < errors.size(); ++isa) {
    auto& own = errors[isa];
    if (own.empty()) continue;
    std::sort(own.begin(), own.end());
    const double median = own[own.size() / 2], most = own[own.size() * 9 / 10];
    if (median <= most_median && most <= most_of_nine_tenths) continue;
    check::fail("median", 0,
                name(static_cast<Isa>(isa), Precision::kBf16, data) + ": " + check::show(median) +
                    ", of nine tenths " + check::show(most));
  }
}

void check_every_lane(const Sections& sections, const Data& data) {
  const Network network(sections);
  Errors errors;
  for (int32_t lane = 0; lane < kNumLanes; ++lane) {
    const bool is_constant = lane / 7 == 6;
    check_lane(network.table, lane, data, {}, is_constant ? kFp32OfConstants : kFp32, errors);
  }
  check_errors(errors, data);
}

// Every lane of cells that end in concatenations.
void check_blocks(const Sections& sections, const Data& data) {
  const Network network(sections);
  Errors errors;
  const auto lanes = static_cast<int32_t>(network.table.lanes().size());
  for (int32_t lane = 0; lane < lanes; ++lane) {
    check_lane(network.table, lane, data, {}, kFp32, errors);
  }
  check_errors(errors, data, kBf16MedianOfBlocks, kBf16MostOfBlocks);
}

// Rows so long that few of them are processed at a time; every template in both cells.
void check_bands(bool is_mixed) {
  const Network network(stages({1, 2, 3}, is_mixed));
  const Data data(1, 9, 700, {1}, 3);
  Errors errors;
  for (int32_t k = 0; k < 6; ++k) check_lane(network.table, 8 * k, data, {}, kFp32, errors);
}

void check_bands_of_blocks() {
  Errors errors;
  const Network blocks(small_tables::choice_blocks({1, 2, 2, 1, 3}));
  // Two images: behind a projection, the mean over a single one is its batch norm's beta.
  const Data data(1, 9, 700, {2}, 3);
  for (const int32_t lane : {3, 4, 8}) check_lane(blocks.table, lane, data, {}, kFp32, errors);
  const Network vertices(small_tables::vertex_cells({1, 2, 3, 4}));
  for (const int32_t lane : {2, 4, 5}) check_lane(vertices.table, lane, data, {}, kFp32, errors);
}

// Without running statistics, down to one image of one pixel, where all but the head is constant.
void check_one_cell() {
  const Network network(small_tables::one_cell());
  Errors errors;
  for (const int32_t height : {1, 2, 5}) {
    for (const int32_t width : {1, 4}) {
      for (const int64_t batch : {1, 16, 33}) {
        const Data data(3, height, width, {batch}, 5);
        Random random(6);
        std::vector<float> seeds(static_cast<size_t>(batch) * 5);
        for (float& seed : seeds) seed = static_cast<float>(random.uniform());
        check_lane(network.table, 0, data, seeds, kFp32, errors);
      }
    }
  }
}

// Threads share the blocks of a lane.
void check_threads(const Sections& sections) {
  const Network network(sections);
  const auto lanes = static_cast<int32_t>(network.table.lanes().size());
  const Data data(3, 6, 5, {35}, 4);
  const auto arena = random_arena(network.table), mixing = random_mixing(network.table);
  for_every_setting([&](Isa isa, Precision precision) {
    for (int32_t lane = 0; lane < lanes; lane += 4) {
      const auto with = [&](int32_t threads) {
        return gradients_of(network.table, lane, arena.data(), mixing, data,
                            options_of(data, isa, precision, threads));
      };
      const Gradients one = with(1);
      CHECK(one == with(2));
      CHECK(one == with(3));
    }
  });
}

// Without labels and a gradient of logits there are logits alone.
void check_logits_alone() {
  const Network network(stages({3, 3, 5}, false));
  const Data data(3, 6, 5, {5}, 4);
  const auto arena = random_arena(network.table);
  const auto options = options_of(data, Isa::kBaseline, Precision::kFp32);
  const Gradients with = gradients_of(network.table, 9, arena.data(), {}, data, options);
  Gradients without{
      std::vector<float>(with.logits.size()), std::vector<float>(with.gradient.size(), 3.0f), {}};
  nasfast::program_gradients(network.table, 9, arena.data(), data.get(), nullptr, nullptr, nullptr,
                             options, {without.logits.data(), without.gradient.data(), nullptr});
  CHECK(without.logits == with.logits);
  CHECK(without.gradient == std::vector<float>(with.gradient.size(), 3.0f));
}

}  // namespace

int main() {
  for (const bool is_mixed : {false, true}) {
    check_every_lane(stages({3, 3, 5}, is_mixed), Data(3, 7, 5, {18}, 1));
    check_every_lane(stages({2, 4, 4}, is_mixed), Data(2, 4, 6, {5}, 2));
    check_bands(is_mixed);
  }
  for (const auto& sizes :
       std::vector<small_tables::BlockSizes>{{3, 4, 2, 3, 4}, {2, 5, 3, 1, 7}}) {
    check_blocks(small_tables::choice_blocks(sizes), Data(sizes.image, 7, 5, {18}, 1));
    check_blocks(small_tables::choice_blocks(sizes), Data(sizes.image, 4, 6, {5}, 2));
  }
  check_blocks(small_tables::vertex_cells({3, 4, 5, 7}), Data(3, 7, 5, {18}, 1));
  check_blocks(small_tables::vertex_cells({2, 3, 9, 4}), Data(2, 4, 6, {5}, 2));
  check_bands_of_blocks();
  check_one_cell();
  check_threads(stages({3, 3, 5}, true));
  check_threads(small_tables::choice_blocks());
  check_threads(small_tables::vertex_cells());
  check_logits_alone();
  return check::result();
}
