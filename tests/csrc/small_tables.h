// SPDX-License-Identifier: MIT
// Two hand-made program tables, and variations of them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "program/program_table.h"

namespace small_tables {

using Sections = std::vector<std::vector<int32_t>>;

// One cell of 2 channels between a stem for 3 and a head for 5 classes; one lane. The cell is
// conv3x3(x) + avg_pool(x): expressions 0 input, 1 conv, 2 pool, 3 sum. The convolution is shared.
inline Sections one_cell() {
  return {
      {0, 0, 6, 192, 1, 1, 1, 4, 8, 6},  // settings
      {0, 3, 2, 0, 0, -1, -1,            // positions
       1, 2, 2, 0, 1, 0,  0,             //
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
}

// Two stages of one cell, 2 and 4 channels, with every operation; running statistics everywhere.
// Units of a cell: none, conv1x1, conv3x3. Templates: the identity; conv1x1(x) + avg_pool(x);
// x + copy(x) + conv3x3(conv1x1(x)) + 0; max_pool(conv1x1(x) + avg_pool(x)). Four lanes in three
// chunks, of two weight sets and two data orders.
inline Sections two_stages() {
  return {
      {1, 1, 6, 1312, 3, 2, 2, 4, 8, 6},  // settings
      {0, 3, 2, 0, 0,  -1, -1,            // positions
       1, 2, 2, 0, 1,  0,  0,             //
       2, 2, 4, 0, 4,  1,  -1,            //
       1, 4, 4, 1, 7,  2,  1,             //
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

// Sets the channels of {image, first stage, ...} and lays the tensors of the units out anew, at
// multiples of `alignment` numbers.
inline void resize(Sections& sections, const std::vector<int32_t>& channels, int32_t alignment) {
  constexpr int32_t kColumns = 7;
  auto& units = sections[nasfast::kUnits];
  size_t stage = 0, unit = 0;
  int32_t end = 0;
  for (size_t p = 0; p < sections[nasfast::kPositions].size(); p += kColumns) {
    int32_t* position = &sections[nasfast::kPositions][p];
    const bool is_head = position[0] == nasfast::kHead, is_reduction = position[0] == 2;
    const int32_t in = position[1] = channels[stage];
    if (position[0] == nasfast::kStem || is_reduction) ++stage;
    const int32_t out = position[2] = is_head ? position[2] : channels[stage];
    const int32_t count = is_head                         ? 2
                          : is_reduction                  ? 3
                          : position[0] == nasfast::kStem ? 1
                                                          : sections[nasfast::kSettings][4];
    for (int32_t i = 0; i < count; ++i, ++unit) {
      int32_t* offsets = &units[unit * kColumns];
      const int32_t kernel = is_head ? 1 : offsets[6];
      const int32_t sources = is_reduction && i == 1 ? out : in;
      for (int32_t field = 0; field < 6; ++field) {
        if (offsets[field] < 0) continue;
        const int32_t size = field == 0          ? sources * out * kernel * kernel
                             : is_head && i == 0 ? in
                                                 : out;
        offsets[field] = end;
        end = (end + size + alignment - 1) / alignment * alignment;
      }
    }
  }
  sections[nasfast::kSettings][3] = end;
}

// Lanes of one weight set, one for each pair of templates, in chunks of `chunk` lanes that each
// share `shared`. Of tables with two cells.
inline void set_every_network(Sections& sections, int32_t chunk,
                              const std::vector<int32_t>& shared) {
  const auto templates = static_cast<int32_t>(sections[nasfast::kNumRegisters].size());
  using namespace nasfast;
  for (const Section s : {kNetworks, kLanes, kLaneOrder, kChunkBegin, kSharedBegin, kShared}) {
    sections[s].clear();
  }
  sections[kSettings][5] = sections[kSettings][6] = 1;
  for (int32_t n = 0; n < templates * templates; ++n) {
    sections[kNetworks].insert(sections[kNetworks].end(), {n / templates, n % templates});
    sections[kLanes].insert(sections[kLanes].end(), {n, 0, 0});
    sections[kLaneOrder].push_back(n);
    if (n % chunk != 0) continue;
    sections[kChunkBegin].push_back(n);
    sections[kSharedBegin].push_back(static_cast<int32_t>(sections[kShared].size()));
    sections[kShared].insert(sections[kShared].end(), shared.begin(), shared.end());
  }
  sections[kChunkBegin].push_back(templates * templates);
  sections[kSharedBegin].push_back(static_cast<int32_t>(sections[kShared].size()));
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
