// SPDX-License-Identifier: MIT
// Hand-made tables with a promise broken that a walk relies on: each is refused.
#include <cstdint>
#include <utility>
#include <vector>

#include "check.h"
#include "program/program_table.h"
#include "small_tables.h"

namespace {

using nasfast::ProgramTable;
using nasfast::Section;
using small_tables::kUnitColumns;
using small_tables::pack;
using small_tables::Sections;

struct Damage {
  Section section;
  std::vector<int32_t> content;
};

void check_refused(Sections sections, const std::vector<Damage>& damages) {
  bool has_short_units = false;
  for (const Damage& damage : damages) {
    sections[damage.section] = damage.content;
    has_short_units |= damage.section == nasfast::kUnits;
  }
  if (has_short_units) small_tables::complete_units(sections);
  const auto flat = pack(sections);
  CHECK_THROWS(ProgramTable{flat}, std::invalid_argument);
}

// One section replaced; units by rows without their last three columns.
void check_damaged_sections() {
  const std::vector<Damage> damages = {
      {nasfast::kSettings, {0, 0, 6, 192, 1, 1, 1, 4, 8, 6}},
      {nasfast::kPositions, {0, 3, 2, 0, 0, -1}},
      {nasfast::kPositions, {0, 3, 2, 0, 0, -1, -1, 3, 2, 5, 0, 1, -1, -1}},
      {nasfast::kOpcode, {4, 4, 5, 3}},
      {nasfast::kOpcode, {1, 4, 5, 3}},
      {nasfast::kOpcode, {0, 11, 5, 3}},
      {nasfast::kOpcode, {0, 0, 5, 3}},
      {nasfast::kOpcode, {0, 4, 5, 1}},  // a zero of two operands
      {nasfast::kOpcode, {0, 4, 5, 2}},  // a copy of two operands
      {nasfast::kOpcode, {0, 4, 3, 3}},  // a sum of one operand
      {nasfast::kOpcode, {0, 4, 5}},
      {nasfast::kParam, {-1, 7, 3, -1}},
      {nasfast::kParam, {-1, -1, 3, -1}},
      {nasfast::kParam, {-1, 1, 3, -1}},  // a unit of the head
      {nasfast::kParam, {-1, 0, 2, -1}},
      {nasfast::kParam, {-1, 0, 33, -1}},
      {nasfast::kParam, {-1, 0, -1, -1}},
      {nasfast::kParam, {-1, 0, 3, 0}},
      {nasfast::kParam, {-1, 0, 3}},
      {nasfast::kOperandBegin, {0, 0, 2, 1, 4}},
      {nasfast::kOperandBegin, {0, 0, 1, 2, 5}},
      {nasfast::kOperandBegin, {0, 0, 1, 2, 3}},
      {nasfast::kOperandBegin, {0, 0, 1, 4}},
      {nasfast::kOperandBegin, {}},
      {nasfast::kOperands, {0, 0, 1, 3}},  // a sum of itself
      {nasfast::kOperands, {0, 0, 1, -1}},
      {nasfast::kTemplateBegin, {0, 0}},
      {nasfast::kTemplateBegin, {0, 2}},
      {nasfast::kSteps, {1, 3, 2}},      // used before it is computed
      {nasfast::kSteps, {1, 2, 4}},      // does not exist
      {nasfast::kRegisters, {1, 1, 3}},  // overwritten before it is read
      {nasfast::kRegisters, {0, 2, 3}},  // overwrites the input
      {nasfast::kRegisters, {1, 2, 4}},
      {nasfast::kRegisters, {1, 2, 2}},  // works in place
      {nasfast::kRegisters, {1, 2, -1}},
      {nasfast::kRegisters, {1, 2}},
      {nasfast::kStepOperandBegin, {0, 0, 2, 4}},
      {nasfast::kStepOperandBegin, {0, 1, 2, 5}},
      {nasfast::kStepOperandBegin, {0, 1, 4}},
      {nasfast::kOperandRegisters, {0, 0, 2, 1}},
      {nasfast::kOperandRegisters, {1, 0, 1, 2}},  // nothing there yet
      {nasfast::kOperandRegisters, {0, 0, 1, 4}},
      {nasfast::kOperandRegisters, {0, 0, -1, 2}},
      {nasfast::kOperandRegisters, {0, 0, 1}},
      {nasfast::kNumRegisters, {-1}},
      {nasfast::kNumRegisters, {0}},
      {nasfast::kNumRegisters, {3}},
      {nasfast::kNumRegisters, {1000000000}},
      {nasfast::kNetworks, {1}},
      {nasfast::kNetworks, {-1}},
      {nasfast::kNetworks, {}},
      {nasfast::kLanes, {1, 0, 0}},
      {nasfast::kLanes, {-1, 0, 0}},
      {nasfast::kLanes, {0, -1, 0}},
      {nasfast::kLanes, {0, 1, 0}},
      {nasfast::kLanes, {0, 0, 1}},
      {nasfast::kLanes, {0, 0}},
      {nasfast::kLanes, {0, 0, 0, 0}},
      {nasfast::kLaneOrder, {1}},
      {nasfast::kLaneOrder, {}},
      {nasfast::kChunkBegin, {0, 0, 1}},
      {nasfast::kChunkBegin, {}},
      {nasfast::kSharedBegin, {0, 2}},
      {nasfast::kSharedBegin, {0, 0, 1}},
      {nasfast::kShared, {3}},  // operands not computed
      {nasfast::kShared, {0}},
      {nasfast::kShared, {4}},
  };
  for (const Damage& damage : damages) check_refused(small_tables::one_cell(), {damage});
  const std::vector<Damage> more = {
      {nasfast::kLaneOrder, {1, 1, 2, 3}},
      {nasfast::kLaneOrder, {1, 2, 0, 3}},                  // two weight sets in a chunk
      {nasfast::kChunkBegin, {0, 2, 2, 4}},                 // an empty chunk
      {nasfast::kChunkBegin, {0, 1, 2, 3}},                 // a lane in none
      {nasfast::kShared, {2, 1, 1, 1, 2}},                  // not ascending
      {nasfast::kShared, {1, 1, 1, 1, 2}},                  // twice
      {nasfast::kNetworks, {0, 1, 2, 3, 1, 1, 0}},          // half a network
      {nasfast::kParam, {-1, 0, 2, 3, -1, 3, -1, -1, -1}},  // a unit without a convolution
  };
  for (const Damage& damage : more) check_refused(small_tables::two_stages(), {damage});
}

void check_damaged_mixes() {
  const std::vector<Damage> damages = {
      {nasfast::kParam, {-1, 1, 2, 3, -1, 3, -1, -1, 3}},  // no weight
      {nasfast::kParam, {-1, 1, 2, 3, -2, 3, -1, -1, 3}},
      {nasfast::kParam, {-1, 1, 2, 3, 1, 3, -1, -1, nasfast::kMaxMixing - 3}},  // one too many
      {nasfast::kParam, {-1, 1, 2, 3, 1, 3, -1, -1, INT32_MAX}},
      {nasfast::kOpcode, {0, 4, 4, 5, 3, 6, 1, 2, 7}},   // a sum with a weight
      {nasfast::kOpcode, {0, 4, 4, 5, 7, 6, 11, 2, 7}},  // no opcode
      {nasfast::kShared, {1, 3, 1, 1, 4}},               // operands not computed
      {nasfast::kShared, {1, 4, 1, 1, 2}},
  };
  for (const Damage& damage : damages) check_refused(small_tables::mixed_stages(), {damage});
  // A mix of nothing, and one that is shared with all its operands.
  check_refused(small_tables::mixed_stages(), {{nasfast::kOpcode, {0, 4, 4, 5, 7, 6, 7, 2, 7}},
                                               {nasfast::kParam, {-1, 1, 2, 3, 1, 3, 0, -1, 3}}});
  const std::vector<Damage> shared = {{nasfast::kSharedBegin, {0, 2, 3, 6}},
                                      {nasfast::kShared, {1, 2, 1, 1, 3, 4}}};
  auto sections = small_tables::two_stages();
  for (const Damage& damage : shared) sections[damage.section] = damage.content;
  ProgramTable{pack(sections)};  // a sum may be
  check_refused(small_tables::mixed_stages(), shared);
}

// Damage to several sections that agree with one another.
void check_consistent_damage() {
  const std::vector<std::vector<Damage>> damages = {
      // No cell.
      {{nasfast::kPositions, {0, 3, 2, 0, 0, -1, -1, 3, 2, 5, 0, 1, -1, -1}},
       {nasfast::kUnits, {0,   -1,  -1, -1, -1, -1, 3, -1, -1, 128, 144, -1, -1, 0,  //
                          160, 176, -1, -1, -1, -1, 0}},
       {nasfast::kOpcode, {0, 1, 5, 3}},
       {nasfast::kParam, {-1, -1, 3, -1}},
       {nasfast::kNetworks, {}}},
      // A negative number of units a cell, so that those of the head begin before it.
      {{nasfast::kSettings, {0, 0, 6, 192, -1, 1, 1, 4, 8, 6, 0}},
       {nasfast::kPositions, {0, 3, 2, 0, 0, -1, -1, 1, 2, 2, 0, 1, 0, 0, 3, 2, 5, 0, 0, -1, -1}},
       {nasfast::kUnits, {0, -1, -1, -1, -1, -1, 3, 160, 176, -1, -1, -1, -1, 0}}},
      // Two stems.
      {{nasfast::kPositions,
        {0, 3, 2, 0, 0, -1, -1, 1, 2, 2, 0, 1, 0, 0, 0, 2, 2, 0, 2, -1, -1, 3, 2, 5, 0, 3, -1, -1}},
       {nasfast::kUnits,
        {0,  -1, -1, -1, -1, -1,  3,   64, -1, -1, -1,  -1,  -1, 3,  112, -1, -1, -1,
         -1, -1, 1,  -1, -1, 128, 144, -1, -1, 0,  160, 176, -1, -1, -1,  -1, 0}}},
      // A cell of 2 channels in and 1 out.
      {{nasfast::kPositions, {0, 3, 2, 0, 0, -1, -1, 1, 2, 1, 0, 1, 0, 0, 3, 1, 5, 0, 2, -1, -1}}},
      // 65537 classes, for which there is room.
      {{nasfast::kSettings, {0, 0, 6, 200000, 1, 1, 1, 4, 8, 6, 0}},
       {nasfast::kPositions,
        {0, 3, 2, 0, 0, -1, -1, 1, 2, 2, 0, 1, 0, 0, 3, 2, 65537, 0, 2, -1, -1}},
       {nasfast::kUnits, {0,  -1, -1,  -1,  -1, -1, 3, 64,  112,    -1, -1, -1, -1, 3,
                          -1, -1, 128, 144, -1, -1, 0, 160, 131248, -1, -1, -1, -1, 0}}},
      // Expressions that no template uses: its own operand, a second input, a sum of one, no
      // opcode.
      {{nasfast::kOpcode, {0, 4, 5, 3, 2}},
       {nasfast::kParam, {-1, 0, 3, -1, -1}},
       {nasfast::kOperandBegin, {0, 0, 1, 2, 4, 5}},
       {nasfast::kOperands, {0, 0, 1, 2, 4}}},
      {{nasfast::kOpcode, {0, 4, 5, 3, 0}},
       {nasfast::kParam, {-1, 0, 3, -1, -1}},
       {nasfast::kOperandBegin, {0, 0, 1, 2, 4, 4}}},
      {{nasfast::kOpcode, {0, 4, 5, 3, 3}},
       {nasfast::kParam, {-1, 0, 3, -1, -1}},
       {nasfast::kOperandBegin, {0, 0, 1, 2, 4, 5}},
       {nasfast::kOperands, {0, 0, 1, 2, 1}}},
      {{nasfast::kOpcode, {0, 4, 11, 3}}, {nasfast::kParam, {-1, 0, -1, -1}}},
      // A step in no template, an empty template, a negative weight set, a lane that does not run.
      {{nasfast::kTemplateBegin, {0, 2}}, {nasfast::kNumRegisters, {3}}},
      {{nasfast::kTemplateBegin, {0, 3, 3}}, {nasfast::kNumRegisters, {4, 1}}},
      {{nasfast::kSettings, {0, 0, 6, 192, 1, 0, 1, 4, 8, 6, 0}}, {nasfast::kLanes, {0, -1, 0}}},
      {{nasfast::kLaneOrder, {}},
       {nasfast::kChunkBegin, {0}},
       {nasfast::kSharedBegin, {0}},
       {nasfast::kShared, {}}},
  };
  for (const auto& damage : damages) check_refused(small_tables::one_cell(), damage);
  // A number too many in a section of rows, a unit too many.
  for (const Section section : {nasfast::kPositions, nasfast::kUnits}) {
    auto sections = small_tables::one_cell();
    sections[section].push_back(0);
    check_refused(sections, {});
  }
  auto sections = small_tables::one_cell();
  sections[nasfast::kUnits].insert(sections[nasfast::kUnits].end(),
                                   {-1, -1, -1, -1, -1, -1, 0, 0, 0, 0});
  check_refused(sections, {});
}

// The same for single numbers of the table with a reduction.
void check_damaged_numbers() {
  struct Number {
    Section section;
    size_t row, column;
    int32_t value;
  };
  constexpr size_t kStem = 0, kConv1x1 = 2, kConvA = 4, kConvB = 5, kShortcut = 6, kLast = 10,
                   kClassifier = 11;
  const std::vector<Number> numbers = {
      {nasfast::kSettings, 0, 0, 3},  // no mode
      {nasfast::kSettings, 0, 0, -1},
      {nasfast::kSettings, 0, 1, 2},  // no flag
      {nasfast::kSettings, 0, 2, 7},  // no level of merging
      {nasfast::kSettings, 0, 2, -1},
      {nasfast::kSettings, 0, 3, 1136},  // an arena that ends before the last tensor
      {nasfast::kSettings, 0, 3, 1313},
      {nasfast::kSettings, 0, 3, -16},
      {nasfast::kSettings, 0, 4, 2},  // another number of units a cell
      {nasfast::kSettings, 0, 4, -1},
      {nasfast::kSettings, 0, 5, 3},
      {nasfast::kSettings, 0, 5, 1000000000},
      {nasfast::kSettings, 0, 6, 1},
      {nasfast::kSettings, 0, 7, 0},
      {nasfast::kSettings, 0, 7, nasfast::kMaxBatch + 1},
      {nasfast::kSettings, 0, 8, 0},
      {nasfast::kSettings, 0, 8, nasfast::kMaxSide + 1},
      {nasfast::kSettings, 0, 9, -6},
      {nasfast::kSettings, 0, 9, nasfast::kMaxSide + 1},
      {nasfast::kPositions, 0, 0, 1},  // no stem
      {nasfast::kPositions, 2, 0, 0},  // two stems
      {nasfast::kPositions, 2, 0, 3},  // two heads
      {nasfast::kPositions, 2, 0, 4},  // no kind
      {nasfast::kPositions, 2, 0, -1},
      {nasfast::kPositions, 4, 0, 1},  // no head
      {nasfast::kPositions, 0, 1, 0},
      {nasfast::kPositions, 0, 1, -3},
      {nasfast::kPositions, 0, 1, INT32_MAX},
      {nasfast::kPositions, 0, 2, 4000},  // read by a cell of 2 channels
      {nasfast::kPositions, 1, 2, 8},     // a cell of 2 channels in and 8 out
      {nasfast::kPositions, 2, 1, 3},
      {nasfast::kPositions, 2, 2, 8},
      {nasfast::kPositions, 4, 1, 2},
      {nasfast::kPositions, 4, 2, 0},
      {nasfast::kPositions, 4, 2, 65537},
      {nasfast::kPositions, 1, 3, 5},
      {nasfast::kPositions, 3, 3, 0},  // a reduction before it, but no halving
      {nasfast::kPositions, 4, 3, 2},
      {nasfast::kPositions, 3, 4, 1},  // the units of the first cell
      {nasfast::kPositions, 3, 4, 6},  // the unit of a shortcut
      {nasfast::kPositions, 4, 4, 11},
      {nasfast::kPositions, 4, 4, INT32_MAX},
      {nasfast::kPositions, 1, 5, 1},
      {nasfast::kPositions, 0, 5, 0},
      {nasfast::kPositions, 2, 6, 1},
      {nasfast::kPositions, 3, 6, 0},
      {nasfast::kUnits, kStem, 0, -1},
      {nasfast::kUnits, kStem, 0, -2},
      {nasfast::kUnits, kStem, 1, -2},
      {nasfast::kUnits, kStem, 0, 2000000000},
      {nasfast::kUnits, kStem, 0, 16},  // into the next tensor
      {nasfast::kUnits, kStem, 6, 0},
      {nasfast::kUnits, kStem, 6, 2},
      {nasfast::kUnits, kStem, 6, 5},  // a larger weight than there is room for
      {nasfast::kUnits, kStem, 6, -1},
      {nasfast::kUnits, 1, 6, 1},           // a convolution without weight
      {nasfast::kUnits, 1, 0, 128},         // a weight without a convolution
      {nasfast::kUnits, kConv1x1, 0, 129},  // not aligned
      {nasfast::kUnits, kConv1x1, 1, 112},  // among the tensors of the stem
      {nasfast::kUnits, kConv1x1, 2, -1},   // beta without gamma
      {nasfast::kUnits, kConv1x1, 3, -1},   // gamma without beta
      {nasfast::kUnits, kConv1x1, 4, -1},   // variance without mean
      {nasfast::kUnits, kConv1x1, 5, -1},   // mean without variance
      {nasfast::kUnits, kConv1x1, 6, 0},    // used by an expression
      {nasfast::kUnits, kConv1x1, 6, 33},
      {nasfast::kUnits, kConv1x1, 6, INT32_MAX},
      {nasfast::kUnits, kConvA, 0, -1},
      {nasfast::kUnits, kConvB, 0, -1},
      {nasfast::kUnits, kConvB, 6, 0},
      {nasfast::kUnits, kShortcut, 0, -1},
      {nasfast::kUnits, kShortcut, 1, 704},
      {nasfast::kUnits, kShortcut, 6, 3},
      {nasfast::kUnits, kLast, 6, 1},
      {nasfast::kUnits, kLast, 0, 1024},
      {nasfast::kUnits, kLast, 1, 1024},
      {nasfast::kUnits, kClassifier, 0, -1},
      {nasfast::kUnits, kClassifier, 1, -1},
      {nasfast::kUnits, kClassifier, 6, 1},
  };
  for (const Number& number : numbers) {
    auto sections = small_tables::two_stages();
    const size_t columns = number.section == nasfast::kUnits ? small_tables::kUnitColumns
                                                             : small_tables::kPositionColumns;
    sections[number.section][number.row * columns + number.column] = number.value;
    check_refused(sections, {});
  }
  // A batch norm where there must be none, in tensors that would otherwise be in place.
  for (const auto& [unit, offset] : {std::pair{kShortcut, 720}, std::pair{kClassifier, 1152}}) {
    for (const size_t column : {size_t{2}, size_t{4}}) {
      auto sections = small_tables::two_stages();
      auto& units = sections[nasfast::kUnits];
      units[unit * kUnitColumns + column] = offset;
      units[unit * kUnitColumns + column + 1] = offset + 16;
      for (size_t i = (unit + 1) * kUnitColumns; i < units.size(); ++i) {
        if (i % kUnitColumns < 6 && units[i] >= 0) units[i] += 32;
      }
      check_refused(sections, {});
    }
  }
}

void check_damaged_header() {
  const auto whole = pack(small_tables::one_cell());
  for (size_t i = 0; i < 3 + 2 * size_t{nasfast::kNumSections}; ++i) {
    for (const int32_t value : {0, -1, 1, INT32_MAX, whole[i] - 1, whole[i] + 1}) {
      auto wrong = whole;
      wrong[i] = value;
      if (value != whole[i]) CHECK_THROWS(ProgramTable{wrong}, std::invalid_argument);
    }
  }
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::vector<int32_t> cut(whole.begin(), whole.begin() + static_cast<int64_t>(size));
    CHECK_THROWS(ProgramTable{cut}, std::invalid_argument);
  }
  auto longer = whole;
  longer.push_back(0);
  CHECK_THROWS(ProgramTable{longer}, std::invalid_argument);
}

}  // namespace

int main() {
  check_damaged_sections();
  check_damaged_mixes();
  check_consistent_damage();
  check_damaged_numbers();
  check_damaged_header();
  return check::result();
}
