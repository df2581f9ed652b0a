// SPDX-License-Identifier: MIT
// Hand-made tables: what is read from them, and what they cost.
#include "program/program_table.h"

#include <algorithm>
#include <vector>

#include "check.h"
#include "small_tables.h"

namespace {

using nasfast::ProgramTable;
using small_tables::pack;

void check_one_cell() {
  const auto flat = pack(small_tables::one_cell());
  const ProgramTable table(flat);
  CHECK_EQ(table.num_cells(), 1);
  CHECK_EQ(table.num_templates(), 1);
  CHECK_EQ(table.num_chunks(), 1);
  CHECK_EQ(table.operands(3).size(), size_t{2});
  CHECK_EQ(table.positions()[1].unit, 1);
  CHECK_EQ(table.units()[1].kernel, 3);
  CHECK_EQ(table.settings().arena_size, 192);
  CHECK_EQ(table.settings().width, 6);
  const auto work = table.count_work(4, 6);
  // Stem 9*3*2*24, shared convolution 9*2*2*24, head (2+1)*5.
  CHECK_EQ(work.shared_macs, int64_t{864});
  CHECK_EQ(work.cell_macs, int64_t{864});
  CHECK_EQ(work.macs, int64_t{1296 + 864 + 15});
  CHECK_EQ(work.evaluations[nasfast::kConv], int64_t{1});
  CHECK_EQ(work.evaluations[nasfast::kAvgPool], int64_t{1});
  CHECK_EQ(work.evaluations[nasfast::kSum], int64_t{1});
}

void check_two_stages() {
  const auto flat = pack(small_tables::two_stages());
  const ProgramTable table(flat);
  CHECK_EQ(table.num_cells(), 2);
  CHECK_EQ(table.num_templates(), 4);
  CHECK_EQ(table.num_chunks(), 3);
  CHECK_EQ(table.units_of(table.positions()[3]).size(), size_t{3});
  CHECK_EQ(table.units_of(table.positions()[3])[2].weight, 816);
  CHECK(std::ranges::equal(table.operand_registers(2, 4), std::vector{0, 3, 2, 1}));
  CHECK(table.operand_registers(0, 0).empty());
  const auto work = table.count_work(3, 5);
  // 3x5 is halved to 2x3. Chunks: stem 9*3*2*15; lanes: reduction (9*8 + 9*16 + 8)*6, head (4+1)*5.
  // First cells: conv1x1 4*15 and conv3x3 36*15, shared in the first and third chunk, conv1x1 alone
  // in the second. Second cells, by lane: conv1x1 in templates 1, 3, 1 and both in none.
  const int64_t first = (40 + 4 + 40) * 15, second = 4 * 16 * 6;
  CHECK_EQ(work.shared_macs, first);
  CHECK_EQ(work.cell_macs, first + second);
  CHECK_EQ(work.macs, first + second + 3 * 810 + 4 * (224 * 6 + 25));
}

void check_mixes() {
  const auto flat = pack(small_tables::mixed_stages()), plain = pack(small_tables::two_stages());
  const ProgramTable table(flat);
  CHECK_EQ(table.mixing_width(), 7);
  CHECK_EQ(ProgramTable(plain).mixing_width(), 0);
  const auto work = table.count_work(3, 5), without = ProgramTable(plain).count_work(3, 5);
  CHECK_EQ(work.macs, without.macs);
  CHECK_EQ(work.evaluations[nasfast::kSum], int64_t{0});
  CHECK_EQ(work.evaluations[nasfast::kMix], without.evaluations[nasfast::kSum]);
  // One operand is enough, and the last weight of a cell is one too.
  auto sections = small_tables::one_cell();
  sections[nasfast::kOpcode] = {0, 4, 5, 7, 7};
  sections[nasfast::kParam] = {-1, 0, 3, 0, nasfast::kMaxMixing - 1};
  sections[nasfast::kOperandBegin] = {0, 0, 1, 2, 4, 5};
  sections[nasfast::kOperands] = {0, 0, 1, 2, 1};
  const auto wide = pack(sections);
  CHECK_EQ(ProgramTable(wide).mixing_width(), nasfast::kMaxMixing);
}

void check_modes() {
  using nasfast::kBatch, nasfast::kRecalibrate, nasfast::kRunning;
  const auto with = pack(small_tables::two_stages()), without = pack(small_tables::one_cell());
  ProgramTable(with).check_modes(kRunning, kRunning);
  ProgramTable(without).check_modes(kBatch, kRecalibrate);
  CHECK_THROWS(ProgramTable(without).check_modes(kRunning, kBatch), std::invalid_argument);
  CHECK_THROWS(ProgramTable(without).check_modes(kBatch, kRunning), std::invalid_argument);
  for (const size_t unit : {0, 2, 3, 4, 5, 8, 9, 10}) {
    auto sections = small_tables::two_stages();
    int32_t* row = &sections[nasfast::kUnits][unit * small_tables::kUnitColumns];
    row[4] = row[5] = -1;
    const auto flat = pack(sections);
    CHECK_THROWS(ProgramTable(flat).check_modes(kRunning, kRunning), std::invalid_argument);
  }
}

// Sums that leave int64 are refused, not wrapped around.
void check_large_counts() {
  const auto flat = pack(small_tables::one_cell());
  const ProgramTable table(flat);
  for (const int64_t side : {int64_t{0}, int64_t{-1}, int64_t{65537}, INT64_MAX}) {
    CHECK_THROWS(table.count_work(side, 4), std::invalid_argument);
    CHECK_THROWS(table.count_work(4, side), std::invalid_argument);
  }
  CHECK_EQ(table.count_work(65536, 65536).macs, (int64_t{90} << 32) + 15);
  auto sections = small_tables::one_cell();
  auto& positions = sections[nasfast::kPositions];
  auto& units = sections[nasfast::kUnits];
  // 9 * 15000^2 weights in one cell's convolution.
  positions[2] = positions[8] = positions[9] = positions[15] = 15000;
  for (const size_t row : {size_t{0}, size_t{1}})
    units[row * small_tables::kUnitColumns + 8] = 15000;
  units[small_tables::kUnitColumns + 7] = 15000;
  small_tables::lay_out(sections, nasfast::kArenaAlignment);
  const auto large = pack(sections);
  CHECK(ProgramTable(large).count_work(65536, 16).macs > int64_t{1} << 40);
  CHECK(ProgramTable(large).count_work(65536, 65536).macs > int64_t{1} << 62);
  sections[nasfast::kLanes] = {0, 0, 0, 0, 0, 0};
  sections[nasfast::kLaneOrder] = {0, 1};
  sections[nasfast::kChunkBegin] = {0, 1, 2};
  sections[nasfast::kSharedBegin] = {0, 1, 2};
  sections[nasfast::kShared] = {1, 1};
  const auto larger = pack(sections);
  CHECK_THROWS(ProgramTable(larger).count_work(65536, 65536), std::invalid_argument);
  // Values of 2^24 images whose bytes do not fit int64.
  auto& settings = sections[nasfast::kSettings];
  settings[7] = nasfast::kMaxBatch;
  settings[8] = settings[9] = nasfast::kMaxSide;
  const auto huge = pack(sections);
  CHECK_THROWS(ProgramTable{huge}, std::invalid_argument);
}

}  // namespace

int main() {
  check_one_cell();
  check_two_stages();
  check_mixes();
  check_modes();
  check_large_counts();
  return check::result();
}
