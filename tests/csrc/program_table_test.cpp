// SPDX-License-Identifier: MIT
// A hand-made table of one lane, walked and damaged.
#include "host/program_table.h"

#include <vector>

#include "check.h"

namespace {

using nasfast::ProgramTable;
using nasfast::Section;

using Sections = std::vector<std::vector<int32_t>>;

// One cell of 2 channels between a stem for 3 and a head for 5 classes. The cell is
// conv3x3(x) + avg_pool(x): expressions 0 input, 1 conv, 2 pool, 3 sum. The first cell's
// convolution is shared.
Sections small_sections() {
  return {
      {0, 3, 2, 0, 0, -1, -1,  //
       1, 2, 2, 0, 1, 0,  0,   //
       3, 2, 5, 0, 2, -1, -1},
      {0,  -1, -1,  -1,  -1, -1, 3,  //
       64, -1, -1,  -1,  -1, -1, 3,  //
       -1, -1, 112, 128, -1, -1, 0, 144, 160, -1, -1, -1, -1, 0},
      {0, 4, 5, 3},     // opcode: input, conv, avg_pool, sum
      {-1, 0, 3, -1},   // param
      {0, 0, 1, 2, 4},  // operand_begin
      {0, 0, 1, 2},     // operands
      {0, 3},           // template_begin
      {1, 2, 3},        // steps
      {1, 2, 3},        // registers
      {4},              // num_registers
      {0},              // networks
      {0, 0, 0},        // lanes
      {0},              // lane_order
      {0, 1},           // chunk_begin
      {0, 1},           // shared_begin
      {1},              // shared
  };
}

std::vector<int32_t> pack(const Sections& sections) {
  std::vector<int32_t> table = {nasfast::kTableMagic, nasfast::kTableVersion,
                                static_cast<int32_t>(sections.size())};
  auto offset = static_cast<int32_t>(3 + 2 * sections.size());
  for (const auto& section : sections) {
    table.push_back(offset);
    table.push_back(static_cast<int32_t>(section.size()));
    offset += static_cast<int32_t>(section.size());
  }
  for (const auto& section : sections) table.insert(table.end(), section.begin(), section.end());
  return table;
}

void check_small_table() {
  const auto flat = pack(small_sections());
  const ProgramTable table(flat);
  CHECK_EQ(table.num_cells(), 1);
  CHECK_EQ(table.num_templates(), 1);
  CHECK_EQ(table.num_chunks(), 1);
  CHECK_EQ(table.operands(3).size(), size_t{2});
  CHECK_EQ(table.positions()[1].unit, 1);
  CHECK_EQ(table.units()[1].kernel, 3);
  const auto work = table.count_work(4, 6);
  // Stem 9*3*2*24, shared convolution 9*2*2*24, head (2+1)*5.
  CHECK_EQ(work.shared_macs, int64_t{864});
  CHECK_EQ(work.cell_macs, int64_t{864});
  CHECK_EQ(work.macs, int64_t{1296 + 864 + 15});
  CHECK_EQ(work.evaluations[nasfast::kConv], int64_t{1});
  CHECK_EQ(work.evaluations[nasfast::kAvgPool], int64_t{1});
  CHECK_EQ(work.evaluations[nasfast::kSum], int64_t{1});
}

// Each of these breaks one promise that a walk relies on.
void check_damaged_tables() {
  struct Damage {
    Section section;
    std::vector<int32_t> content;
  };
  const std::vector<Damage> damages = {
      {nasfast::kPositions, {0, 3, 2, 0, 0, -1}},
      {nasfast::kPositions, {0, 3, 2, 0, 0, -1, -1, 1, 2, 2, 0, 9, 0, 0, 3, 2, 5, 0, 2, -1, -1}},
      {nasfast::kPositions, {0, 3, 2, 0, 0, -1, -1, 1, 2, 2, 0, 1, 0, 3, 3, 2, 5, 0, 2, -1, -1}},
      {nasfast::kOpcode, {4, 4, 5, 3}},
      {nasfast::kOpcode, {0, 9, 5, 3}},
      {nasfast::kOpcode, {0, 0, 5, 3}},
      {nasfast::kParam, {-1, 7, 3, -1}},
      {nasfast::kParam, {-1, 0, 2, -1}},
      {nasfast::kParam, {-1, 1, 3, -1}},  // a unit without a convolution
      {nasfast::kOperandBegin, {0, 0, 2, 1, 4}},
      {nasfast::kOperandBegin, {0, 0, 1, 2, 5}},
      {nasfast::kOperands, {0, 0, 1, 3}},  // a sum of itself
      {nasfast::kOperands, {0, 0, 1, -1}},
      {nasfast::kSteps, {1, 3, 2}},      // used before it is computed
      {nasfast::kRegisters, {1, 1, 3}},  // overwritten before it is read
      {nasfast::kRegisters, {0, 2, 3}},  // overwrites the input
      {nasfast::kRegisters, {1, 2, 4}},
      {nasfast::kNumRegisters, {-1}},
      {nasfast::kNumRegisters, {1000000000}},
      {nasfast::kNetworks, {1}},
      {nasfast::kNetworks, {}},
      {nasfast::kLanes, {1, 0, 0}},
      {nasfast::kLanes, {0, -1, 0}},
      {nasfast::kLaneOrder, {1}},
      {nasfast::kChunkBegin, {0, 0, 1}},
      {nasfast::kChunkBegin, {}},
      {nasfast::kSharedBegin, {0, 2}},
      {nasfast::kShared, {3}},  // operands not computed
      {nasfast::kShared, {0}},
  };
  for (const Damage& damage : damages) {
    auto sections = small_sections();
    sections[damage.section] = damage.content;
    const auto flat = pack(sections);
    CHECK_THROWS(ProgramTable{flat}, std::invalid_argument);
  }
  auto wrong = pack(small_sections());
  wrong[0] = 0;
  CHECK_THROWS(ProgramTable{wrong}, std::invalid_argument);
  wrong = pack(small_sections());
  wrong[1] = 2;
  CHECK_THROWS(ProgramTable{wrong}, std::invalid_argument);
  const auto whole = pack(small_sections());
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::vector<int32_t> cut(whole.begin(), whole.begin() + static_cast<int64_t>(size));
    CHECK_THROWS(ProgramTable{cut}, std::invalid_argument);
  }
  CHECK_THROWS(ProgramTable{whole}.count_work(0, 4), std::invalid_argument);
}

}  // namespace

int main() {
  check_small_table();
  check_damaged_tables();
  return check::result();
}
