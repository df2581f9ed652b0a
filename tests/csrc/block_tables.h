// SPDX-License-Identifier: MIT
// Two hand-made program tables whose cells end in concatenations, behind a stem with ReLU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "small_tables.h"

namespace small_tables {

// Expressions and templates added one by one; every step of a template writes a register of its
// own.
class CellMaker {
 public:
  explicit CellMaker(Sections& sections) : sections_(sections) {
    using namespace nasfast;
    for (const Section s : {kOperandBegin, kTemplateBegin, kStepOperandBegin}) sections[s] = {0};
    add(kInput, -1, {});
  }

  void add(nasfast::Opcode opcode, int32_t param, const std::vector<int32_t>& operands) {
    using namespace nasfast;
    sections_[kOpcode].push_back(opcode);
    sections_[kParam].push_back(param);
    append(kOperands, kOperandBegin, operands);
    operands_.push_back(operands);
  }

  void add_template(const std::vector<int32_t>& steps) {
    using namespace nasfast;
    const auto register_of = [&](int32_t expression) {
      if (expression == 0) return 0;
      const auto at = std::find(steps.begin(), steps.end(), expression);
      return static_cast<int32_t>(at - steps.begin()) + 1;
    };
    for (size_t k = 0; k < steps.size(); ++k) {
      std::vector<int32_t> sources;
      for (const int32_t operand : operands_[static_cast<size_t>(steps[k])]) {
        sources.push_back(register_of(operand));
      }
      append(kOperandRegisters, kStepOperandBegin, sources);
      sections_[kRegisters].push_back(static_cast<int32_t>(k) + 1);
    }
    append(kSteps, kTemplateBegin, steps);
    sections_[kNumRegisters].push_back(static_cast<int32_t>(steps.size()) + 1);
  }

 private:
  void append(nasfast::Section flat, nasfast::Section begins, const std::vector<int32_t>& numbers) {
    sections_[flat].insert(sections_[flat].end(), numbers.begin(), numbers.end());
    sections_[begins].push_back(static_cast<int32_t>(sections_[flat].size()));
  }

  Sections& sections_;
  std::vector<std::vector<int32_t>> operands_;
};

// Positions in a chain, with their units.
class SkeletonMaker {
 public:
  SkeletonMaker(Sections& sections, int32_t image_channels)
      : sections_(sections), channels_(image_channels) {}

  // Kernel, input and output channels of units; kernel 0 with channels: the classifier.
  using Units = std::vector<std::vector<int32_t>>;
  void add(nasfast::PositionKind kind, int32_t out_channels, const Units& units) {
    using namespace nasfast;
    const bool is_cell = kind == kCell;
    sections_[kPositions].insert(sections_[kPositions].end(),
                                 {kind, channels_, out_channels, halvings_, num_units_,
                                  is_cell ? cells_ : -1, is_cell ? cells_ : -1});
    channels_ = out_channels;
    halvings_ += halves(kind);
    cells_ += is_cell;
    for (const auto& unit : units) {
      const bool is_classifier = is_head(kind) && &unit == &units.back();
      const int32_t norm = unit[0] > 0 ? 0 : -1, weight = is_classifier ? 0 : norm;
      // Some convolutions have a bias, as a few spaces do, which a batch norm cancels.
      const int32_t bias = is_classifier || (is_cell && unit[0] == 3) ? 0 : -1;
      sections_[kUnits].insert(sections_[kUnits].end(),
                               {weight, bias, norm, norm, norm, norm, unit[0], unit[1], unit[2],
                                3000 + 1000 * num_units_});
      ++num_units_;
    }
  }

 private:
  Sections& sections_;
  int32_t channels_, halvings_ = 0, num_units_ = 0, cells_ = 0;
};

// Channels of the images, behind the stem, of the blocks in the two stages (whose cells put out
// three times as many) and of the head's projection.
struct BlockSizes {
  int32_t image = 3, stem = 4, first = 2, second = 3, projection = 4;
};

// Choice blocks: three cells of three slots in two stages, max pooling with a padding of 1 between
// them, and a projected head. Template 0 is the identity, which only the second cell can be.
constexpr int32_t kNumBlockTemplates = 11;
inline Sections choice_blocks(const BlockSizes& sizes = {},
                              int32_t alignment = nasfast::kArenaAlignment) {
  using namespace nasfast;
  Sections sections(kNumSections);
  sections[kSettings] = {0, 1, 6, 0, 6, 1, 1, 4, 8, 6, 1};
  SkeletonMaker skeleton(sections, sizes.image);
  const auto add_cell = [&](int32_t in, int32_t c) {
    skeleton.add(kCell, 3 * c,
                 {{1, in, c}, {3, c, c}, {1, c, c}, {1, in, 3 * c}, {3, c, c}, {0, 0, 0}});
  };
  const int32_t most = 3 * sizes.second;
  skeleton.add(kReluStem, sizes.stem, {{3, sizes.image, sizes.stem}});
  add_cell(sizes.stem, sizes.first);
  add_cell(3 * sizes.first, sizes.first);
  skeleton.add(kPooling, 3 * sizes.first, {});
  add_cell(3 * sizes.first, sizes.second);
  skeleton.add(kProjectedHead, 5, {{1, most, sizes.projection}, {0, 0, 0}});
  CellMaker cell(sections);
  cell.add(kConvRelu, 0, {0});          // 1: projection for the blocks
  cell.add(kConvRelu, 1, {1});          // 2
  cell.add(kMaxPool, 3, {1});           // 3
  cell.add(kConvRelu, 2, {1});          // 4
  cell.add(kSum, -1, {1, 2});           // 5
  cell.add(kConvRelu, 4, {5});          // 6
  cell.add(kSum, -1, {1, 2, 3});        // 7
  cell.add(kMaxPool, 5, {7});           // 8
  cell.add(kConvRelu, 3, {0});          // 9: projection for the output
  cell.add(kConcat, 0b111, {2, 3, 4});  // 10
  cell.add(kConcat, 0b101, {2, 6});     // 11
  cell.add(kSum, -1, {9, 11});          // 12
  cell.add(kConcat, 0b110, {7, 8});     // 13: a sum as a part that others read too
  cell.add(kSum, -1, {9, 13});          // 14
  cell.add(kSum, -1, {12, 11});         // 15: a concatenation once more
  cell.add(kAvgPool, 3, {4});           // 16
  cell.add(kCopy, -1, {16});            // 17
  cell.add(kConcat, 0b001, {17});       // 18
  cell.add(kConcat, 0b110, {4, 3});     // 19
  cell.add(kConcat, 0b011, {3, 4});     // 20
  cell.add(kSum, -1, {19, 20});         // 21: other slots
  cell.add(kConcat, 0b101, {3, 4});     // 22
  cell.add(kSum, -1, {11, 22});         // 23: the same slots
  cell.add(kZero, -1, {1});             // 24
  cell.add(kConcat, 0b101, {24, 4});    // 25
  for (const auto& steps : std::vector<std::vector<int32_t>>{{0},
                                                             {1, 2, 3, 4, 10},
                                                             {1, 2, 5, 6, 11},
                                                             {9, 1, 2, 3, 7, 8, 13, 14},
                                                             {1, 2, 5, 6, 11, 9, 12, 15},
                                                             {1, 4, 16, 17, 18},
                                                             {9},
                                                             {1, 4, 3, 19, 20, 21},
                                                             {1, 2, 5, 6, 3, 4, 11, 22, 23},
                                                             {1, 2, 9},  // nobody reads 2
                                                             {1, 24, 4, 25}}) {
    cell.add_template(steps);
  }
  lay_out(sections, alignment);
  std::vector<std::vector<int32_t>> networks;
  for (int32_t n = 0; n < kNumBlockTemplates; ++n) {
    networks.push_back({std::max(n, 1), (n + 5) % kNumBlockTemplates, 1 + (n + 6) % 10});
  }
  set_networks(sections, networks);
  return sections;
}

// As NAS-Bench-101: two cells whose vertices have different channels, which together fill the
// output, each with max pooling behind it, and a linear head. `channels`: of images, stem and
// cells.
constexpr int32_t kNumVertexTemplates = 7;
inline Sections vertex_cells(const std::vector<int32_t>& channels = {3, 4, 5, 7},
                             int32_t alignment = nasfast::kArenaAlignment) {
  using namespace nasfast;
  Sections sections(kNumSections);
  sections[kSettings] = {0, 1, 6, 0, 7, 1, 1, 4, 8, 6, 0};
  SkeletonMaker skeleton(sections, channels[0]);
  skeleton.add(kReluStem, channels[1], {{3, channels[0], channels[1]}});
  for (const size_t i : {size_t{2}, size_t{3}}) {
    const int32_t in = channels[i - 1], out = channels[i], a = (out + 1) / 2, b = out / 2;
    skeleton.add(
        kCell, out,
        {{1, in, a}, {3, a, a}, {1, in, b}, {1, b, b}, {1, in, out}, {3, b, b}, {1, a, a}});
    skeleton.add(kPooling, out, {});
  }
  skeleton.add(kLinearHead, 5, {{0, 0, 0}});
  CellMaker cell(sections);
  cell.add(kConvRelu, 0, {0});        // 1: projection for the wider vertex
  cell.add(kConvRelu, 1, {1});        // 2
  cell.add(kCut, 3, {2});             // 3
  cell.add(kConvRelu, 2, {0});        // 4: projection for the other one
  cell.add(kSum, -1, {4, 3});         // 5
  cell.add(kConvRelu, 3, {5});        // 6
  cell.add(kConcat, 0b11, {2, 6});    // 7
  cell.add(kConvRelu, 4, {0});        // 8: projection for the output
  cell.add(kSum, -1, {8, 7});         // 9
  cell.add(kMaxPool, 3, {5});         // 10
  cell.add(kConcat, 0b11, {2, 10});   // 11
  cell.add(kCut, 3, {1});             // 12
  cell.add(kSum, -1, {12, 3});        // 13
  cell.add(kConvRelu, 5, {13});       // 14
  cell.add(kConcat, 0b11, {1, 14});   // 15
  cell.add(kCut, 1, {2});             // 16: down to all of them
  cell.add(kConvRelu, 6, {16});       // 17
  cell.add(kConcat, 0b11, {17, 14});  // 18
  cell.add(kSum, -1, {8, 18});        // 19
  cell.add(kSum, -1, {1, 2});         // 20
  cell.add(kConvRelu, 6, {20});       // 21
  cell.add(kCut, 3, {20});            // 22: of a sum that others read too
  cell.add(kConvRelu, 5, {22});       // 23
  cell.add(kConcat, 0b11, {21, 23});  // 24
  for (const auto& steps :
       std::vector<std::vector<int32_t>>{{1, 2, 4, 3, 5, 6, 7},
                                         {8, 1, 2, 4, 3, 5, 6, 7, 9},
                                         {1, 2, 4, 3, 5, 10, 11},
                                         {1, 2, 12, 3, 13, 14, 15},
                                         {8, 1, 2, 16, 17, 12, 3, 13, 14, 18, 19},
                                         {1, 2, 20, 21, 22, 23, 24},
                                         {8}}) {
    cell.add_template(steps);
  }
  lay_out(sections, alignment);
  std::vector<std::vector<int32_t>> networks;
  for (int32_t n = 0; n < kNumVertexTemplates; ++n) {
    networks.push_back({n, (n + 3) % kNumVertexTemplates});
  }
  set_networks(sections, networks);
  return sections;
}

}  // namespace small_tables
