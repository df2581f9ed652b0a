// SPDX-License-Identifier: MIT
// Random damage to what cells compute: where a table is accepted, the engine runs its lanes,
// forward and backward, and agrees with the interpreter.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "mutator.h"
#include "training_runs.h"

namespace {

using namespace training_runs;
using nasfast::kernels::cpu::Isa, nasfast::kernels::cpu::Precision;

constexpr int32_t kMostNumbers = 1 << 14, kMostLanes = 3;

// A wrong term shows as about 1. Where a channel is nearly constant each batch norm magnifies
// rounding up to 316 times: such lanes are run, but not compared.
constexpr double kTolerance = 1e-3, kLeastVariance = 1e-4;

// What is damaged: all but the skeleton and the arena's size, which lanes hardly survive.
const std::vector<nasfast::Section> kDamaged = {
    nasfast::kOpcode, nasfast::kParam,         nasfast::kParam,    nasfast::kOperands,
    nasfast::kSteps,  nasfast::kTemplateBegin, nasfast::kNetworks, nasfast::kOperandRegisters,
    nasfast::kShared, nasfast::kSharedBegin,   nasfast::kUnits,    nasfast::kOperands};

template <typename A, typename B>
double apart(const A& actual, const B& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double{actual[i]} - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / std::max(size, 1e-12));
}

bool is_small(const ProgramTable& table) {
  const auto units = table.units();
  return table.settings().arena_size <= kMostNumbers &&
         std::all_of(units.begin(), units.end(), [](const nasfast::Unit& unit) {
           return std::max({unit.in_channels, unit.out_channels, unit.kernel}) <= 64;
         });
}

class Comparison {
 public:
  Comparison(const ProgramTable& table, Isa isa, uint64_t seed)
      : table_(table),
        isa_(isa),
        data_(table.positions()[0].in_channels, 5, 4, {3}, seed),
        arena_(random_arena(table)),
        mixing_(random_mixing(table)) {}

  // Returns how many lanes were compared.
  int32_t check(int32_t number) {
    for (int32_t k = 0; k < table_.num_chunks() && mixing_.empty(); ++k) check_chunk(k, number);
    const auto lanes = static_cast<int32_t>(table_.lanes().size());
    for (int32_t i = 0; i < std::min(lanes, kMostLanes); ++i) {
      check_gradients((number + i) % lanes, number);
    }
    return compared_;
  }

 private:
  std::string named(int32_t number, const char* what, int32_t lane, double error) const {
    return "table " + std::to_string(number) + ", " + std::string(name_of(isa_)) + ", lane " +
           std::to_string(lane) + ", " + what + " " + check::show(error);
  }

  // Logits of a network, or none where some channel is nearly constant.
  std::vector<double> exact_logits(int32_t network) const {
    interpreter::Interpreter definition(table_, arena_.data(), nasfast::kBatch, nasfast::kBatch,
                                        mixing_.data());
    const auto map = map_of(data_);
    const auto logits = definition.run(network, map, data_.sizes, map, data_.sizes);
    for (const auto& [unit, measured] : definition.measured()) {
      for (const double variance : measured.variance) {
        if (variance < kLeastVariance) return {};
      }
    }
    return logits;
  }

  void check_chunk(int32_t k, int32_t number) {
    const auto options = options_of(data_, isa_, Precision::kFp32, 2);
    const Scores scores = run(table_, k, arena_.data(), data_, options);
    const auto lanes = table_.chunk(k);
    for (size_t i = 0; i < lanes.size(); ++i) {
      const int32_t network = table_.lanes()[static_cast<size_t>(lanes[i])].network;
      const auto expected = exact_logits(network);
      if (expected.empty()) continue;
      ++compared_;
      const std::span<const float> own(scores.logits.data() + i * expected.size(), expected.size());
      const double error = apart(own, expected);
      if (!(error <= kTolerance)) {
        check::fail("chunk", k, named(number, "logits", lanes[i], error));
      }
    }
  }

  void check_gradients(int32_t lane, int32_t number) {
    const auto options = options_of(data_, isa_, Precision::kFp32, 2);
    Gradients own;
    try {
      own = gradients_of(table_, lane, arena_.data(), mixing_, data_, options);
    } catch (const std::invalid_argument& error) {  // the same unit twice in a network
      CHECK(std::string(error.what()).find("weights on nodes") != std::string::npos);
      return;
    }
    if (exact_logits(table_.lanes()[static_cast<size_t>(lane)].network).empty()) return;
    ++compared_;
    const Exact exact(table_, lane, arena_.data(), mixing_, data_);
    const double of_logits = apart(own.logits, exact.logits);
    const double of_weights = apart(own.gradient, exact.gradient);
    if (!(of_logits <= kTolerance)) {
      check::fail("training", 0, named(number, "logits", lane, of_logits));
    }
    if (!(of_weights <= kTolerance)) {
      check::fail("training", 0, named(number, "gradients", lane, of_weights));
    }
  }

  const ProgramTable& table_;
  const Isa isa_;
  const Data data_;
  const std::vector<float> arena_, mixing_;
  int32_t compared_ = 0;
};

void check_damage(Sections sections, uint32_t seed, int32_t wanted) {
  sections[nasfast::kSettings][0] = nasfast::kBatch;
  const auto isas = nasfast::kernels::cpu::supported_isas();
  small_tables::Mutator mutator(seed);
  int32_t accepted = 0, tried = 0, compared = 0;
  for (; accepted < wanted && tried < 100 * wanted && check::failures == 0; ++tried) {
    const auto flat = mutator.damage_one_of(sections, kDamaged);
    try {
      const ProgramTable table(flat);
      if (!is_small(table)) continue;
    } catch (const std::invalid_argument&) {
      continue;
    }
    const ProgramTable table(flat);
    const Isa isa = isas[static_cast<size_t>(accepted) % isas.size()];
    compared += Comparison(table, isa, seed).check(tried);
    ++accepted;
  }
  CHECK_EQ(accepted, wanted);
  CHECK(compared > wanted);
  std::printf("%d of %d damaged tables run, %d lanes compared\n", accepted, tried, compared);
}

}  // namespace

int main() {
  check_damage(stages({3, 2, 3}, false), 1, 30);
  check_damage(stages({3, 2, 3}, true), 2, 30);
  check_damage(small_tables::choice_blocks(), 3, 300);
  check_damage(small_tables::vertex_cells(), 4, 300);
  return check::result();
}
