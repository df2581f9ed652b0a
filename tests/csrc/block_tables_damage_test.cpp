// SPDX-License-Identifier: MIT
// Damaged tables of cells that end in concatenations: each is refused with the message that says
// what is wrong.
#include <climits>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "block_tables.h"
#include "check.h"
#include "program/program_table.h"

namespace {

using namespace nasfast;
using small_tables::Sections;

void check_message(int line, const std::string& wanted, const std::function<void()>& make) {
  try {
    make();
    check::fail(__FILE__, line, "accepted, wanted: " + wanted);
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    if (message.find(wanted) == std::string::npos) {
      check::fail(__FILE__, line, "wanted \"" + wanted + "\", got \"" + message + "\"");
    }
  }
}

// One number of a section replaced.
struct Number {
  int line;
  Section section;
  size_t row, column;
  int32_t value;
  const char* message;
};

void check_numbers(const Sections& whole, const std::vector<Number>& numbers) {
  for (const Number& number : numbers) {
    Sections sections = whole;
    const size_t columns = number.section == kUnits       ? small_tables::kUnitColumns
                           : number.section == kPositions ? small_tables::kPositionColumns
                                                          : 1;
    sections[number.section][number.row * columns + number.column] = number.value;
    check_message(number.line, number.message, [&] { ProgramTable{small_tables::pack(sections)}; });
  }
}

// Columns of positions and units.
constexpr size_t kKind = 0, kIn = 1, kOut = 2;
constexpr size_t kWeight = 0, kBias = 1, kGamma = 2, kMean = 4, kKernel = 6, kUnitIn = 7,
                 kUnitOut = 8, kMomentum = 9;

void check_skeleton() {
  // Positions: stem, two cells, pooling, cell, head; units: stem, three times six, projection,
  // classifier.
  check_numbers(
      small_tables::choice_blocks(),
      {
          {__LINE__, kSettings, 10, 0, 2, "settings: wanted a padding of 0 or 1"},
          {__LINE__, kSettings, 10, 0, -1, "settings: wanted a padding of 0 or 1"},
          {__LINE__, kPositions, 0, kKind, kCell, "positions: wanted a stem and a search cell"},
          {__LINE__, kPositions, 0, kKind, kPooling, "positions: wanted a stem and a search cell"},
          {__LINE__, kPositions, 1, kKind, kPooling, "positions: wanted a stem and a search cell"},
          {__LINE__, kPositions, 3, kKind, kNumPositionKinds, "positions: wanted a known kind"},
          {__LINE__, kPositions, 3, kKind, kReluStem, "positions: wanted one stem"},
          {__LINE__, kPositions, 3, kKind, kProjectedHead,
           "positions: wanted one head, at the end"},
          {__LINE__, kPositions, 3, kKind, kLinearHead, "positions: wanted one head, at the end"},
          {__LINE__, kPositions, 5, kKind, kPooling, "positions: wanted one head, at the end"},
          {__LINE__, kPositions, 3, kKind, kReduction, "positions: wanted kinds that go with"},
          {__LINE__, kPositions, 5, kKind, kHead, "positions: wanted kinds that go with"},
          {__LINE__, kPositions, 0, kKind, kStem, "positions: wanted kinds that go with"},
          {__LINE__, kPositions, 3, kOut, 9, "positions: wanted pooling that keeps the channels"},
          {__LINE__, kPositions, 3, kIn, 9,
           "positions: wanted the channels of the position before"},
          {__LINE__, kPositions, 4, 3, 0, "positions: wanted as many halvings as before it"},
          {__LINE__, kPositions, 3, 5, 2, "positions: wanted layers in order"},
      });
  auto sections = small_tables::two_stages();
  sections[kSettings][10] = 1;
  check_message(__LINE__, "positions: wanted reductions without padding",
                [&] { ProgramTable{small_tables::pack(sections)}; });
  sections = small_tables::choice_blocks();
  sections[kUnits].push_back(0);
  check_message(__LINE__, "units: wanted 10 columns",
                [&] { ProgramTable{small_tables::pack(sections)}; });
  auto flat = small_tables::pack(small_tables::choice_blocks());
  flat[1] = 1;
  check_message(__LINE__, "wanted version 2, got 1", [&] { ProgramTable{flat}; });
}

void check_units() {
  constexpr size_t kStemUnit = 0, kProjection = 19, kClassifier = 20, kUnused = 6;
  const auto blocks = small_tables::choice_blocks();
  check_numbers(
      blocks,
      {
          {__LINE__, kUnits, kUnused, kUnitIn, -1, "units: wanted at most 65536 channels"},
          {__LINE__, kUnits, kUnused, kUnitOut, -1, "units: wanted at most 65536 channels"},
          {__LINE__, kUnits, kUnused, kUnitOut, 65537, "units: wanted at most 65536 channels"},
          {__LINE__, kUnits, 2, kUnitIn, INT_MAX, "units: wanted at most 65536 channels"},
          {__LINE__, kUnits, 2, kMomentum, -1, "units: wanted a momentum of 0..1000000"},
          {__LINE__, kUnits, kUnused, kMomentum, 1000001, "units: wanted a momentum of 0..1000000"},
          {__LINE__, kUnits, kStemUnit, kUnitIn, 4, "units: wanted the channels of its position"},
          {__LINE__, kUnits, kStemUnit, kUnitOut, 3, "units: wanted the channels of its position"},
          {__LINE__, kUnits, 2, kUnitIn, 0, "units: wanted positive channels of a convolution"},
          {__LINE__, kUnits, 2, kUnitOut, 0, "units: wanted positive channels of a convolution"},
          {__LINE__, kUnits, 2, kWeight, -1, "units: wanted a weight in every convolution"},
          {__LINE__, kUnits, 2, kKernel, 2, "units: wanted odd kernels of 1..31"},
          {__LINE__, kUnits, kProjection, kUnitIn, 8, "units: wanted the channels of its position"},
          {__LINE__, kUnits, kProjection, kKernel, 0, "units: wanted odd kernels of 1..31"},
          {__LINE__, kUnits, kProjection, kUnitOut, 0, "units: wanted positive channels"},
          {__LINE__, kUnits, kProjection, kUnitOut, 8, "units: wanted tensors one after another"},
          {__LINE__, kUnits, kClassifier, kKernel, 1, "units: wanted a classifier with weight"},
          {__LINE__, kUnits, kClassifier, kWeight, -1, "units: wanted a classifier with weight"},
          {__LINE__, kUnits, kClassifier, kBias, -1, "units: wanted a classifier with weight"},
          {__LINE__, kUnits, 2, kGamma, -1, "units: wanted gamma and beta, or neither"},
          {__LINE__, kUnits, 2, kMean, -1, "units: wanted mean and variance, or neither"},
      });
  // With everything else in its place.
  const auto changed = [](Sections sections, size_t unit, const std::vector<int32_t>& row) {
    std::copy(row.begin(), row.end(),
              sections[kUnits].begin() + static_cast<int64_t>(unit * small_tables::kUnitColumns));
    small_tables::lay_out(sections, kArenaAlignment);
    return sections;
  };
  check_message(__LINE__, "units: wanted a 1x1 convolution in a projected head", [&] {
    const auto damaged = changed(blocks, kProjection, {0, -1, 0, 0, 0, 0, 3, 9, 4, 0});
    ProgramTable{small_tables::pack(damaged)};
  });
  check_message(__LINE__, "units: wanted a classifier without batch norm", [&] {
    const auto damaged = changed(blocks, kClassifier, {0, 0, 0, 0, -1, -1, 0, 0, 0, 0});
    ProgramTable{small_tables::pack(damaged)};
  });
  const auto vertices = small_tables::vertex_cells();
  constexpr size_t kLinear = 15;  // units: stem, twice seven, classifier
  check_message(__LINE__, "units: wanted a classifier with weight and bias", [&] {
    const auto damaged = changed(vertices, kLinear, {0, -1, -1, -1, -1, -1, 0, 0, 0, 0});
    ProgramTable{small_tables::pack(damaged)};
  });
  check_message(__LINE__, "units: wanted a classifier without batch norm", [&] {
    const auto damaged = changed(vertices, kLinear, {0, 0, -1, -1, 0, 0, 0, 0, 0, 0});
    ProgramTable{small_tables::pack(damaged)};
  });
  // A classifier of fewer numbers than it reads.
  check_message(__LINE__, "units: wanted tensors within the arena", [&] {
    auto damaged = vertices;
    auto& offsets = damaged[kUnits];
    damaged[kSettings][3] = offsets[kLinear * small_tables::kUnitColumns + kBias] + 16;
    damaged[kPositions][5 * small_tables::kPositionColumns + kOut] = 17;
    small_tables::lay_out(damaged, kArenaAlignment);
    damaged[kSettings][3] -= 16;
    ProgramTable{small_tables::pack(damaged)};
  });
}

// Statistics that mode `running` wants: of every convolution, in each part.
void check_modes() {
  const auto refused = [](Sections sections, size_t unit, BatchNormMode fixed, BatchNormMode last) {
    int32_t* row = &sections[kUnits][unit * small_tables::kUnitColumns];
    row[kMean] = row[kMean + 1] = -1;
    const auto flat = small_tables::pack(sections);
    const ProgramTable table(flat);
    check_message(__LINE__, "running statistics for mode running",
                  [&] { table.check_modes(fixed, last); });
    table.check_modes(kBatch, kRecalibrate);
  };
  refused(small_tables::choice_blocks(), 0, kRunning, kBatch);
  refused(small_tables::choice_blocks(), 19, kBatch, kRunning);
  refused(small_tables::vertex_cells(), 0, kRunning, kRunning);
  auto sections = small_tables::choice_blocks();
  sections[kSettings][0] = kRunning;
  const auto whole = small_tables::pack(sections);
  ProgramTable(whole).check_modes(kRunning, kRunning);
  int32_t* row = &sections[kUnits][4 * small_tables::kUnitColumns];
  row[kMean] = row[kMean + 1] = -1;
  const auto flat = small_tables::pack(sections);
  const ProgramTable table(flat);
  check_message(__LINE__, "running statistics for mode running",
                [&] { table.check_modes(kBatch, kBatch); });
}

// One more expression, which no template has.
void check_expression(int line, Sections sections, Opcode opcode, int32_t param,
                      const std::vector<int32_t>& operands, const char* message) {
  sections[kOpcode].push_back(opcode);
  sections[kParam].push_back(param);
  sections[kOperands].insert(sections[kOperands].end(), operands.begin(), operands.end());
  sections[kOperandBegin].push_back(static_cast<int32_t>(sections[kOperands].size()));
  if (message != nullptr) {
    return check_message(line, message, [&] { ProgramTable{small_tables::pack(sections)}; });
  }
  try {
    ProgramTable{small_tables::pack(sections)};
  } catch (const std::invalid_argument& error) {
    check::fail(__FILE__, line, error.what());
  }
}

void check_expressions() {
  const auto plain = small_tables::two_stages(), blocks = small_tables::choice_blocks(),
             vertices = small_tables::vertex_cells();
  const auto add = [](int line, const Sections& sections, Opcode opcode, int32_t param,
                      const std::vector<int32_t>& operands, const char* message) {
    check_expression(line, sections, opcode, param, operands, message);
  };
  const char* convolutions = "opcode: wanted convolutions that go with the stem's";
  add(__LINE__, plain, kConvRelu, 1, {0}, convolutions);
  add(__LINE__, plain, kConv, 1, {0}, nullptr);
  add(__LINE__, blocks, kConv, 0, {0}, convolutions);
  add(__LINE__, blocks, kConvRelu, 0, {0}, nullptr);
  add(__LINE__, blocks, kMix, 0, {2, 4}, "opcode: wanted mixed operations behind a stem without");
  const char* cuts = "opcode: wanted concatenations and cuts behind a stem with ReLU";
  add(__LINE__, plain, kConcat, 1, {0}, cuts);
  add(__LINE__, plain, kCut, 1, {1}, cuts);
  add(__LINE__, vertices, kCut, 3, {1}, nullptr);
  add(__LINE__, blocks, kConcat, 0, {}, "operands: wanted at least one operand of a mix or concat");
  add(__LINE__, vertices, kCut, 3, {1, 2}, "operands: wanted one operand");
  add(__LINE__, vertices, kCut, 3, {}, "operands: wanted one operand");
  add(__LINE__, vertices, kCut, 7, {1}, "param: wanted a unit of the cell");
  add(__LINE__, vertices, kCut, -1, {1}, "param: wanted a unit of the cell");
  add(__LINE__, blocks, kConvRelu, 6, {1}, "param: wanted a unit of the cell");
  add(__LINE__, blocks, kConvRelu, 5, {1}, "units: wanted a convolution where one is used");
  const char* slots = "param: wanted a slot for each operand of a concatenation";
  add(__LINE__, blocks, kConcat, 0, {2}, slots);
  add(__LINE__, blocks, kConcat, -1, {2}, slots);
  add(__LINE__, blocks, kConcat, 0b11, {2}, slots);
  add(__LINE__, blocks, kConcat, 0b1, {2, 4}, slots);
  add(__LINE__, blocks, kConcat, 1 << kMaxSlots, {2}, slots);
  add(__LINE__, blocks, kConcat, INT_MIN, {2}, slots);
  add(__LINE__, blocks, kConcat, 0b100, {2}, nullptr);
  add(__LINE__, blocks, kConcat, 0b1000, {2}, "operands: wanted concatenations that fit the cell");
  add(__LINE__, blocks, kConcat, 1 << (kMaxSlots - 1), {2}, "wanted concatenations that fit");
  add(__LINE__, blocks, kConcat, 0b11, {9, 2}, "operands: wanted concatenations that fit the cell");
  const char* full = "operands: wanted concatenations without free channels where the head";
  add(__LINE__, vertices, kConcat, 0b11, {3, 4}, full);
  add(__LINE__, vertices, kConcat, 0b1, {1}, full);
  add(__LINE__, vertices, kConcat, 0b10, {4}, full);
  add(__LINE__, vertices, kConcat, 0b11, {6, 1}, nullptr);
  const char* input = "operands: wanted the input in convolutions alone";
  add(__LINE__, blocks, kMaxPool, 3, {0}, input);
  add(__LINE__, blocks, kCopy, -1, {0}, input);
  add(__LINE__, blocks, kSum, -1, {9, 0}, input);
  add(__LINE__, blocks, kZero, -1, {0}, input);
  add(__LINE__, blocks, kZero, -1, {}, input);
  add(__LINE__, blocks, kConcat, 1, {0}, input);
  add(__LINE__, vertices, kCut, 3, {0}, input);
  const char* end = "operands: wanted concatenations at a cell's end";
  add(__LINE__, blocks, kMaxPool, 3, {10}, end);
  add(__LINE__, blocks, kConvRelu, 0, {10}, end);
  add(__LINE__, blocks, kConvRelu, 0, {14}, end);  // a sum of one
  add(__LINE__, blocks, kConcat, 1, {11}, end);
  add(__LINE__, blocks, kCopy, -1, {11}, end);
  add(__LINE__, blocks, kZero, -1, {11}, end);
  add(__LINE__, vertices, kCut, 3, {7}, end);
  add(__LINE__, blocks, kSum, -1, {14, 10, 21}, nullptr);
  add(__LINE__, blocks, kConvRelu, 1, {9}, "units: wanted the channels of what it convolves");
  add(__LINE__, blocks, kConvRelu, 0, {1}, "units: wanted the channels of what it convolves");
  add(__LINE__, vertices, kCut, 1, {4}, "units: wanted channels to cut down to");  // more
  add(__LINE__, blocks, kCut, 5, {2}, "units: wanted channels to cut down to");    // none
  add(__LINE__, blocks, kSum, -1, {2, 9}, "operands: wanted operands of equally many channels");
  add(__LINE__, vertices, kSum, -1, {1, 3}, "operands: wanted operands of equally many channels");
  add(__LINE__, blocks, kSum, -1, {10, 2}, "operands: wanted operands of equally many channels");
}

void check_uses() {
  const auto message = [](int line, const Sections& sections, const char* wanted) {
    check_message(line, wanted, [&] { ProgramTable{small_tables::pack(sections)}; });
  };
  // The identity where a cell has other channels out than in.
  auto sections = small_tables::choice_blocks();
  sections[kNetworks][2] = 0;
  message(__LINE__, sections, "networks: wanted cells of their place's channels");
  for (const auto& shared :
       {std::vector<int32_t>{1, 2, 3, 4, 10}, std::vector<int32_t>{1, 2, 5, 6, 9, 11}}) {
    sections = small_tables::choice_blocks();
    sections[kShared] = shared;
    sections[kSharedBegin].back() = static_cast<int32_t>(shared.size());
    message(__LINE__, sections, "shared: wanted no concatenations");
    sections[kShared].pop_back();
    --sections[kSharedBegin].back();
    ProgramTable{small_tables::pack(sections)};
  }
  // Cuts may be shared.
  sections = small_tables::vertex_cells();
  sections[kShared] = {1, 2, 3, 4, 5};
  sections[kSharedBegin].back() = 5;
  ProgramTable{small_tables::pack(sections)};
}

}  // namespace

int main() {
  check_skeleton();
  check_units();
  check_modes();
  check_expressions();
  check_uses();
  return check::result();
}
