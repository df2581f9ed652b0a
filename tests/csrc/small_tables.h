// SPDX-License-Identifier: MIT
// Two hand-made program tables, and variations of them.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "program/program_table.h"

namespace small_tables {

using Sections = std::vector<std::vector<int32_t>>;

constexpr size_t kPositionColumns = 7, kUnitColumns = 10;

inline int32_t units_of(int32_t kind, int32_t units_per_cell) {
  return std::array{1, units_per_cell, 3, 2, 1, 0, 2, 1}[static_cast<size_t>(kind)];
}

// Calls visit(position, unit, which of the position's units), each a row of its section; ends where
// one of the two sections does.
template <typename Visit>
void for_each_unit(Sections& sections, const Visit& visit) {
  auto& positions = sections[nasfast::kPositions];
  auto& units = sections[nasfast::kUnits];
  size_t unit = 0;
  for (size_t p = 0; p + kPositionColumns <= positions.size(); p += kPositionColumns) {
    const int32_t count = units_of(positions[p], sections[nasfast::kSettings][4]);
    for (int32_t i = 0; i < count && unit + kUnitColumns <= units.size(); ++i) {
      visit(&positions[p], &units[unit], i);
      unit += kUnitColumns;
    }
  }
}

// Where units lack their last three columns: channels of convolutions as their position has them,
// and a tenth for a new minibatch in running statistics.
inline void complete_units(Sections& sections) {
  const auto short_rows = std::exchange(sections[nasfast::kUnits], {});
  for (size_t i = 0; i < short_rows.size(); ++i) {
    sections[nasfast::kUnits].push_back(short_rows[i]);
    if (i % 7 == 6) {
      sections[nasfast::kUnits].insert(sections[nasfast::kUnits].end(), {0, 0, 100000});
    }
  }
  for_each_unit(sections, [](const int32_t* position, int32_t* unit, int32_t i) {
    if (unit[6] <= 0) return;
    unit[7] = position[position[0] == nasfast::kReduction && i == 1 ? 2 : 1];
    unit[8] = position[2];
  });
}

// One cell of 2 channels between a stem for 3 and a head for 5 classes; one lane. The cell is
// conv3x3(x) + avg_pool(x): expressions 0 input, 1 conv, 2 pool, 3 sum. The convolution is shared.
inline Sections one_cell() {
  Sections sections = {
      {0, 0, 6, 192, 1, 1, 1, 4, 8, 6, 0},  // settings
      {0, 3, 2, 0, 0, -1, -1,               // positions
       1, 2, 2, 0, 1, 0,  0,                //
       3, 2, 5, 0, 2, -1, -1},
      {0,   -1,  -1,  -1,  -1, -1, 3,  // units
       64,  112, -1,  -1,  -1, -1, 3,  //
       -1,  -1,  128, 144, -1, -1, 0,  //
       160, 176, -1,  -1,  -1, -1, 0},
      {0, 4, 5, 3},     // opcode: input, conv, avg_pool, sum
      {-1, 0, 3, -1},   // param
      {0, 0, 1, 2, 4},  // operand_begin
      {0, 0, 1, 2},     // operands
      {0, 3},           // template_begin
      {1, 2, 3},        // steps
      {1, 2, 3},        // registers
      {0, 1, 2, 4},     // step_operand_begin
      {0, 0, 1, 2},     // operand_registers
      {4},              // num_registers
      {0},              // networks
      {0, 0, 0},        // lanes
      {0},              // lane_order
      {0, 1},           // chunk_begin
      {0, 1},           // shared_begin
      {1},              // shared
  };
  complete_units(sections);
  return sections;
}

// Two stages of one cell, 2 and 4 channels, with every operation; running statistics everywhere.
// Units of a cell: none, conv1x1, conv3x3. Templates: the identity; conv1x1(x) + avg_pool(x);
// x + copy(x) + conv3x3(conv1x1(x)) + 0; max_pool(conv1x1(x) + avg_pool(x)). Four lanes in three
// chunks, of two weight sets and two data orders.
inline Sections two_stages() {
  Sections sections = {
      {1, 1, 6, 1312, 3, 2, 2, 4, 8, 6, 0},  // settings
      {0, 3, 2, 0, 0,  -1, -1,               // positions
       1, 2, 2, 0, 1,  0,  0,                //
       2, 2, 4, 0, 4,  1,  -1,               //
       1, 4, 4, 1, 7,  2,  1,                //
       3, 4, 5, 1, 10, -1, -1},
      {0,    -1,   64,   80,   96,   112,  3,  // units: stem
       -1,   -1,   -1,   -1,   -1,   -1,   0,  // first cell
       128,  144,  160,  176,  192,  208,  1,  //
       224,  272,  288,  304,  320,  336,  3,  //
       352,  -1,   432,  448,  464,  480,  3,  // reduction
       496,  -1,   640,  656,  672,  688,  3,  //
       704,  -1,   -1,   -1,   -1,   -1,   1,  //
       -1,   -1,   -1,   -1,   -1,   -1,   0,  // second cell
       720,  736,  752,  768,  784,  800,  1,  //
       816,  960,  976,  992,  1008, 1024, 3,  //
       -1,   -1,   1040, 1056, 1072, 1088, 0,  // head
       1104, 1136, -1,   -1,   -1,   -1,   0},
      {0, 4, 4, 5, 3, 6, 1, 2, 3},           // opcode
      {-1, 1, 2, 3, -1, 3, -1, -1, -1},      // param
      {0, 0, 1, 2, 3, 5, 6, 6, 7, 11},       // operand_begin
      {0, 1, 0, 1, 3, 4, 0, 0, 7, 2, 6},     // operands
      {0, 1, 4, 9, 13},                      // template_begin
      {0, 1, 3, 4, 1, 2, 6, 7, 8,            // steps
       1, 3, 4, 5},                          //
      {1, 1, 2, 3, 1, 2, 1, 3, 4,            // registers
       1, 2, 3, 1},                          //
      {0, 0, 1, 2, 4, 5, 6, 6, 7, 11,        // step_operand_begin
       12, 13, 15, 16},                      //
      {0, 0, 1, 2, 0, 1, 0, 0, 3, 2, 1,      // operand_registers
       0, 0, 1, 2, 3},                       //
      {2, 4, 5, 4},                          // num_registers
      {0, 1, 2, 3, 1, 1},                    // networks
      {0, 0, 0, 1, 0, 0, 2, 1, 0, 1, 1, 1},  // lanes
      {1, 0, 2, 3},                          // lane_order
      {0, 2, 3, 4},                          // chunk_begin
      {0, 2, 3, 5},                          // shared_begin
      {1, 2, 1, 1, 2},                       // shared
  };
  complete_units(sections);
  return sections;
}

// The same with mixes for its sums: of conv1x1(x) and avg_pool(x) with the weights 1 and 2, and of
// x, copy(x), conv3x3(conv1x1(x)) and 0 with the weights 3 to 6.
inline Sections mixed_stages() {
  auto sections = two_stages();
  for (const auto& [expression, first_weight] : {std::pair{4, 1}, std::pair{8, 3}}) {
    sections[nasfast::kOpcode][static_cast<size_t>(expression)] = nasfast::kMix;
    sections[nasfast::kParam][static_cast<size_t>(expression)] = first_weight;
  }
  return sections;
}

// Lays the tensors that units have out anew, at multiples of `alignment` numbers.
inline void lay_out(Sections& sections, int32_t alignment) {
  int32_t end = 0, features = 0;
  for_each_unit(sections, [&](const int32_t* position, int32_t* unit, int32_t i) {
    const int32_t kind = position[0];
    const bool is_classifier = nasfast::is_head(kind) && i + 1 == units_of(kind, 0);
    if (i == 0) features = kind == nasfast::kProjectedHead ? unit[8] : position[1];
    for (int32_t field = 0; field < 6; ++field) {
      if (unit[field] < 0) continue;
      int32_t size = unit[8];
      if (is_classifier) {
        size = field == 0 ? features * position[2] : position[2];
      } else if (kind == nasfast::kHead) {
        size = features;
      } else if (field == 0) {
        size = unit[6] * unit[6] * unit[7] * unit[8];
      }
      unit[field] = end;
      end = (end + size + alignment - 1) / alignment * alignment;
    }
  });
  sections[nasfast::kSettings][3] = end;
}

// Sets the channels of {image, first stage, ...} and lays the tensors of the units out anew.
inline void resize(Sections& sections, const std::vector<int32_t>& channels, int32_t alignment) {
  size_t stage = 0;
  for (size_t p = 0; p < sections[nasfast::kPositions].size(); p += kPositionColumns) {
    int32_t* position = &sections[nasfast::kPositions][p];
    position[1] = channels[stage];
    if (position[0] == nasfast::kStem || position[0] == nasfast::kReduction) ++stage;
    if (position[0] != nasfast::kHead) position[2] = channels[stage];
  }
  for_each_unit(sections, [](const int32_t* position, int32_t* unit, int32_t i) {
    if (unit[6] == 0) return;
    unit[7] = position[position[0] == nasfast::kReduction && i == 1 ? 2 : 1];
    unit[8] = position[2];
  });
  lay_out(sections, alignment);
}

// Windows of other sizes than 3, of convolutions and pools.
inline Sections with_kernels(Sections sections, int32_t kernel, int32_t of_pools,
                             int32_t alignment = nasfast::kArenaAlignment) {
  using namespace nasfast;
  for_each_unit(sections, [&](const int32_t*, int32_t* unit, int32_t) {
    if (unit[6] == 3) unit[6] = kernel;
  });
  for (size_t x = 0; x < sections[kOpcode].size(); ++x) {
    const int32_t opcode = sections[kOpcode][x];
    if (opcode == kAvgPool || opcode == kMaxPool) sections[kParam][x] = of_pools;
  }
  lay_out(sections, alignment);
  return sections;
}

// One cell before a classifier of more classes than a block of a device has threads.
inline Sections many_classes() {
  auto sections = one_cell();
  auto& positions = sections[nasfast::kPositions];
  positions[positions.size() - kPositionColumns + 2] = 131;
  lay_out(sections, nasfast::kArenaAlignment);
  return sections;
}

// Chunks of `chunk` lanes, in the order of the lanes, that each share `shared`.
inline void set_chunks(Sections& sections, int32_t chunk, const std::vector<int32_t>& shared) {
  using namespace nasfast;
  for (const Section s : {kLaneOrder, kChunkBegin, kSharedBegin, kShared}) sections[s].clear();
  const auto count = static_cast<int32_t>(sections[kLanes].size()) / 3;
  for (int32_t lane = 0; lane < count; ++lane) {
    sections[kLaneOrder].push_back(lane);
    if (lane % chunk != 0) continue;
    sections[kChunkBegin].push_back(lane);
    sections[kSharedBegin].push_back(static_cast<int32_t>(sections[kShared].size()));
    sections[kShared].insert(sections[kShared].end(), shared.begin(), shared.end());
  }
  sections[kChunkBegin].push_back(count);
  sections[kSharedBegin].push_back(static_cast<int32_t>(sections[kShared].size()));
}

// Every `stride`-th lane alone, in one chunk.
inline Sections every_lane(Sections sections, size_t stride,
                           const std::vector<int32_t>& shared = {}) {
  const auto lanes = std::exchange(sections[nasfast::kLanes], {});
  for (size_t k = 0; 3 * k < lanes.size(); k += stride) {
    const auto row = lanes.begin() + static_cast<int64_t>(3 * k);
    sections[nasfast::kLanes].insert(sections[nasfast::kLanes].end(), row, row + 3);
  }
  set_chunks(sections, static_cast<int32_t>(sections[nasfast::kLanes].size()) / 3, shared);
  return sections;
}

// Lanes of one weight set in one chunk, one for each network (its templates by cell).
inline void set_networks(Sections& sections, const std::vector<std::vector<int32_t>>& networks) {
  using namespace nasfast;
  sections[kNetworks].clear();
  sections[kLanes].clear();
  sections[kSettings][5] = sections[kSettings][6] = 1;
  const auto count = static_cast<int32_t>(networks.size());
  for (int32_t n = 0; n < count; ++n) {
    const auto& templates = networks[static_cast<size_t>(n)];
    sections[kNetworks].insert(sections[kNetworks].end(), templates.begin(), templates.end());
    sections[kLanes].insert(sections[kLanes].end(), {n, 0, 0});
  }
  set_chunks(sections, count, {});
}

// A lane for each pair of templates. Of tables with two cells.
inline void set_every_network(Sections& sections, int32_t chunk,
                              const std::vector<int32_t>& shared) {
  const auto templates = static_cast<int32_t>(sections[nasfast::kNumRegisters].size());
  std::vector<std::vector<int32_t>> networks;
  for (int32_t n = 0; n < templates * templates; ++n) {
    networks.push_back({n / templates, n % templates});
  }
  set_networks(sections, networks);
  set_chunks(sections, chunk, shared);
}

inline std::vector<int32_t> pack(const Sections& sections) {
  std::vector<int32_t> table = {nasfast::kTableMagic, nasfast::kTableVersion,
                                static_cast<int32_t>(sections.size())};
  size_t offset = 3 + 2 * sections.size(), total = offset;
  for (const auto& section : sections) total += section.size();
  table.reserve(total);  // no room behind the end, where a sanitizer would miss a read
  for (const auto& section : sections) {
    table.push_back(static_cast<int32_t>(offset));
    table.push_back(static_cast<int32_t>(section.size()));
    offset += section.size();
  }
  for (const auto& section : sections) table.insert(table.end(), section.begin(), section.end());
  return table;
}

}  // namespace small_tables
