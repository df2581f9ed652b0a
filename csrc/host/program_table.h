// SPDX-License-Identifier: MIT
// The packed instruction table of a program: one int32 array that a backend walks without Python.
//
// Header: magic, version, number of sections, then (offset, length) of each section, in numbers.
// Sections, in the order of `Section`; [r, c] is row-major:
//
//   positions       [P, 7]  kind (0 stem, 1 cell, 2 reduction, 3 head), in_channels, out_channels,
//                           halvings of the image before it, first unit, layer, cell (-1: none)
//   units           [U, 7]  arena offsets of weight, bias, gamma, beta, mean, variance (-1: none),
//                           kernel size (0: no convolution)
//   opcode          [X]     operation of each cell expression; expression 0 is the cell's input
//   param           [X]     unit within the cell (conv) or kernel (pools)
//   operand_begin   [X + 1] operands of expression x: operands[operand_begin[x]...]
//   operands        [...]   always earlier expressions
//   template_begin  [T + 1] steps of template t: steps[template_begin[t]...]
//   steps           [S]     expressions in the order of execution, the root last
//   registers       [S]     register that each step writes; register 0 holds the cell's input
//   num_registers   [T]     registers of each template
//   networks        [N, C]  template of each search cell
//   lanes           [L, 3]  network, weight set, data order
//   lane_order      [L]     a permutation of the lanes
//   chunk_begin     [K + 1] lanes of chunk k: lane_order[chunk_begin[k]...]; one weight set and one
//                           data order a chunk
//   shared_begin    [K + 1] shared expressions of chunk k: shared[shared_begin[k]...]
//   shared          [...]   expressions of the first cell, computed once for the chunk, operands
//                           before users
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace nasfast {

constexpr int32_t kTableMagic = 0x4E465354;
constexpr int32_t kTableVersion = 1;

enum Section : int {
  kPositions,
  kUnits,
  kOpcode,
  kParam,
  kOperandBegin,
  kOperands,
  kTemplateBegin,
  kSteps,
  kRegisters,
  kNumRegisters,
  kNetworks,
  kLanes,
  kLaneOrder,
  kChunkBegin,
  kSharedBegin,
  kShared,
  kNumSections
};

constexpr std::array<const char*, kNumSections> kSectionNames = {
    "positions",      "units",       "opcode",       "param",         "operand_begin", "operands",
    "template_begin", "steps",       "registers",    "num_registers", "networks",      "lanes",
    "lane_order",     "chunk_begin", "shared_begin", "shared"};

enum PositionKind : int32_t { kStem, kCell, kReduction, kHead, kNumPositionKinds };
enum Opcode : int32_t { kInput, kZero, kCopy, kSum, kConv, kAvgPool, kMaxPool, kNumOpcodes };

struct Position {
  int32_t kind, in_channels, out_channels, halvings, unit, layer, cell;
};
struct Unit {
  int32_t weight, bias, gamma, beta, mean, variance, kernel;
};
struct Lane {
  int32_t network, weight_set, data_order;
};

// Multiply-accumulates and evaluations of a whole table for one image.
struct Work {
  std::array<int64_t, kNumOpcodes> evaluations{};  // of cell expressions, shared ones once a chunk
  int64_t macs = 0;                                // convolutions and classifier, with its bias
  int64_t cell_macs = 0;                           // of these, in search cells
  int64_t shared_macs = 0;                         // of these, in the shared part of first cells
};

// A view of a table; owns nothing. The constructor checks everything a walk relies on, so that a
// damaged table is an error and never an access out of bounds.
class ProgramTable {
 public:
  explicit ProgramTable(std::span<const int32_t> table) : table_(table) {
    find_sections();
    check_skeleton();
    check_expressions();
    check_templates();
    check_lanes();
    check_chunks();
  }

  std::span<const int32_t> section(Section s) const { return sections_[s]; }
  std::span<const Position> positions() const { return rows<Position>(kPositions); }
  std::span<const Unit> units() const { return rows<Unit>(kUnits); }
  std::span<const Lane> lanes() const { return rows<Lane>(kLanes); }
  int32_t num_cells() const { return num_cells_; }
  int32_t num_templates() const { return static_cast<int32_t>(sections_[kNumRegisters].size()); }
  int32_t num_chunks() const { return static_cast<int32_t>(sections_[kChunkBegin].size()) - 1; }

  std::span<const int32_t> operands(int32_t expression) const {
    return run(kOperandBegin, kOperands, expression);
  }
  std::span<const int32_t> steps(int32_t t) const { return run(kTemplateBegin, kSteps, t); }
  std::span<const int32_t> registers(int32_t t) const { return run(kTemplateBegin, kRegisters, t); }
  std::span<const int32_t> chunk(int32_t k) const { return run(kChunkBegin, kLaneOrder, k); }
  std::span<const int32_t> shared(int32_t k) const { return run(kSharedBegin, kShared, k); }
  std::span<const int32_t> network(int32_t n) const {
    return sections_[kNetworks].subspan(static_cast<size_t>(n) * num_cells_, num_cells_);
  }

  // Counts the work of running every lane on one image of height x width.
  Work count_work(int64_t height, int64_t width) const;

 private:
  template <typename Row>
  std::span<const Row> rows(Section s) const {
    static_assert(sizeof(Row) % sizeof(int32_t) == 0 && alignof(Row) == alignof(int32_t));
    const auto flat = sections_[s];
    return {reinterpret_cast<const Row*>(flat.data()), flat.size() * sizeof(int32_t) / sizeof(Row)};
  }
  std::span<const int32_t> run(Section begins, Section flat, int32_t index) const {
    const auto begin = sections_[begins];
    const auto from = static_cast<size_t>(begin[index]);
    return sections_[flat].subspan(from, static_cast<size_t>(begin[index + 1]) - from);
  }

  [[noreturn]] static void fail(const std::string& what) {
    throw std::invalid_argument("program table: " + what);
  }
  static void require(bool ok, Section s, const char* wanted) {
    if (!ok) fail(std::string(kSectionNames[s]) + ": wanted " + wanted);
  }
  void require_range(Section s, int64_t low, int64_t high) const;
  void require_begins(Section begins, Section flat, size_t count) const;
  void find_sections();
  void check_skeleton();
  void check_expressions() const;
  void check_templates() const;
  void check_lanes() const;
  void check_chunks() const;
  int64_t conv_macs(int32_t expression, const Position& cell, int64_t pixels) const;

  std::span<const int32_t> table_;
  std::array<std::span<const int32_t>, kNumSections> sections_;
  int32_t num_cells_ = 0;
};

inline void ProgramTable::find_sections() {
  constexpr size_t kHeader = 3 + 2 * kNumSections;
  if (table_.size() < kHeader) fail("truncated header");
  if (table_[0] != kTableMagic) fail("not a program table (wrong magic number)");
  if (table_[1] != kTableVersion) {
    fail("wanted version " + std::to_string(kTableVersion) + ", got " + std::to_string(table_[1]));
  }
  if (table_[2] != kNumSections) fail("wrong number of sections");
  size_t end = kHeader;
  for (int s = 0; s < kNumSections; ++s) {
    const int32_t offset = table_[3 + 2 * s], length = table_[4 + 2 * s];
    if (offset < 0 || length < 0 || static_cast<size_t>(offset) != end ||
        static_cast<size_t>(length) > table_.size() - end) {
      fail(std::string("truncated or damaged at section ") + kSectionNames[s]);
    }
    sections_[s] = table_.subspan(end, static_cast<size_t>(length));
    end += static_cast<size_t>(length);
  }
  if (end != table_.size()) fail("numbers left over at the end");
}

inline void ProgramTable::require_range(Section s, int64_t low, int64_t high) const {
  for (const int32_t value : sections_[s]) {
    if (value < low || value >= high) {
      fail(std::string(kSectionNames[s]) + ": wanted " + std::to_string(low) + ".." +
           std::to_string(high - 1) + ", got " + std::to_string(value));
    }
  }
}

inline void ProgramTable::require_begins(Section begins, Section flat, size_t count) const {
  const auto b = sections_[begins];
  require(b.size() == count + 1 && b.front() == 0, begins, "one start for each row, and the end");
  require(static_cast<size_t>(b.back()) == sections_[flat].size(), begins, "to cover every entry");
  for (size_t i = 0; i + 1 < b.size(); ++i) require(b[i] <= b[i + 1], begins, "ascending starts");
}

inline void ProgramTable::check_skeleton() {
  require(sections_[kPositions].size() % 7 == 0, kPositions, "7 columns");
  require(sections_[kUnits].size() % 7 == 0, kUnits, "7 columns");
  require_range(kUnits, -1, int64_t{1} << 31);
  const auto all = positions();
  const auto num_units = static_cast<int32_t>(units().size());
  require(all.size() >= 3 && all.front().kind == kStem && all.back().kind == kHead, kPositions,
          "a stem first and a head last");
  constexpr std::array<int32_t, kNumPositionKinds> kUnitsUsed = {1, 0, 3, 2};
  for (size_t i = 0; i < all.size(); ++i) {
    const Position& p = all[i];
    require(p.kind >= kStem && p.kind <= kHead, kPositions, "a known kind");
    require((p.kind == kStem) == (i == 0), kPositions, "one stem");
    require((p.kind == kHead) == (i + 1 == all.size()), kPositions, "one head");
    require(p.in_channels > 0 && p.out_channels > 0, kPositions, "positive channels");
    require(p.halvings >= 0 && p.halvings < 31, kPositions, "0..30 halvings");
    require(p.unit >= 0 && p.unit <= num_units - kUnitsUsed[p.kind], kPositions,
            "units that exist");
    require((p.kind == kCell) == (p.cell >= 0), kPositions, "a cell number for cells alone");
    if (p.kind == kCell) require(p.cell == num_cells_++, kPositions, "cells in order");
  }
  require(num_cells_ > 0 && all[1].kind == kCell, kPositions, "a search cell behind the stem");
}

inline void ProgramTable::check_expressions() const {
  const auto opcode = sections_[kOpcode];
  require(!opcode.empty() && opcode[0] == kInput, kOpcode, "the cell's input first");
  require(sections_[kParam].size() == opcode.size(), kParam, "one entry for each expression");
  require_range(kOpcode, 0, kNumOpcodes);
  require_begins(kOperandBegin, kOperands, opcode.size());
  // Every cell has units of its own, as many as the last one at most.
  auto cell_units = static_cast<int32_t>(units().size());
  for (const Position& p : positions()) {
    if (p.kind == kCell) {
      cell_units = std::min(cell_units, static_cast<int32_t>(units().size()) - p.unit);
    }
  }
  for (int32_t x = 0; x < static_cast<int32_t>(opcode.size()); ++x) {
    const auto args = operands(x);
    for (const int32_t arg : args) require(arg >= 0 && arg < x, kOperands, "earlier expressions");
    const int32_t param = sections_[kParam][x];
    switch (opcode[x]) {
      case kInput:
        require(x == 0 && args.empty(), kOpcode, "one input, without operands");
        break;
      case kZero:
        require(args.size() <= 1, kOperands, "at most one operand of zero");
        break;
      case kSum:
        require(args.size() >= 2, kOperands, "at least two operands of a sum");
        break;
      case kConv:
        require(param >= 0 && param < cell_units, kParam, "a unit of the cell");
        [[fallthrough]];
      default:
        require(args.size() == 1, kOperands, "one operand");
        break;
    }
    if (opcode[x] == kAvgPool || opcode[x] == kMaxPool) {
      require(param >= 1 && param % 2 == 1, kParam, "an odd pooling kernel");
    }
  }
  for (const Position& p : positions()) {
    if (p.kind != kCell) continue;
    for (size_t x = 0; x < opcode.size(); ++x) {
      if (opcode[x] != kConv) continue;
      const Unit& unit = units()[static_cast<size_t>(p.unit + sections_[kParam][x])];
      require(unit.kernel >= 1 && unit.kernel % 2 == 1 && unit.weight >= 0, kUnits,
              "a convolution where one is used");
    }
  }
}

// Walks every template as a backend would, checking that each register still holds what is read.
inline void ProgramTable::check_templates() const {
  require_begins(kTemplateBegin, kSteps, sections_[kNumRegisters].size());
  require(sections_[kRegisters].size() == sections_[kSteps].size(), kRegisters,
          "one for each step");
  require_range(kSteps, 0, static_cast<int64_t>(sections_[kOpcode].size()));
  std::vector<int32_t> holds;
  for (int32_t t = 0; t < num_templates(); ++t) {
    const int32_t count = sections_[kNumRegisters][t];
    const auto template_steps = steps(t);
    require(!template_steps.empty(), kTemplateBegin, "at least one step a template");
    require(count >= 1 && static_cast<size_t>(count) <= template_steps.size() + 1, kNumRegisters,
            "at most one register a step, and the input's");
    holds.assign(static_cast<size_t>(count), -1);
    holds[0] = 0;
    for (size_t k = 0; k < template_steps.size(); ++k) {
      for (const int32_t arg : operands(template_steps[k])) {
        bool found = false;
        for (const int32_t held : holds) found |= held == arg;
        require(found, kRegisters, "operands still in a register when they are read");
      }
      const int32_t out = registers(t)[k];
      const bool is_input = template_steps[k] == 0;
      require(out >= (is_input ? 0 : 1) && out < count, kRegisters, "a register of the template");
      holds[static_cast<size_t>(out)] = template_steps[k];
    }
  }
}

inline void ProgramTable::check_lanes() const {
  require(sections_[kLanes].size() % 3 == 0, kLanes, "3 columns");
  require(sections_[kNetworks].size() % static_cast<size_t>(num_cells_) == 0, kNetworks,
          "one template for each search cell");
  require_range(kNetworks, 0, num_templates());
  const auto num_networks = static_cast<int32_t>(sections_[kNetworks].size()) / num_cells_;
  for (const Lane& lane : lanes()) {
    require(lane.network >= 0 && lane.network < num_networks, kLanes, "a network that exists");
    require(lane.weight_set >= 0 && lane.data_order >= 0, kLanes,
            "no negative weight set or order");
  }
}

inline void ProgramTable::check_chunks() const {
  const auto order = sections_[kLaneOrder];
  require(order.size() == lanes().size(), kLaneOrder, "every lane once");
  require_range(kLaneOrder, 0, static_cast<int64_t>(order.size()));
  std::vector<bool> seen(order.size(), false);
  for (const int32_t lane : order) {
    require(!seen[static_cast<size_t>(lane)], kLaneOrder, "every lane once");
    seen[static_cast<size_t>(lane)] = true;
  }
  require(!sections_[kChunkBegin].empty(), kChunkBegin, "one start for each row, and the end");
  require_begins(kChunkBegin, kLaneOrder, sections_[kChunkBegin].size() - 1);
  require_begins(kSharedBegin, kShared, sections_[kChunkBegin].size() - 1);
  require_range(kShared, 1, static_cast<int64_t>(sections_[kOpcode].size()));
  std::vector<int32_t> computed(sections_[kOpcode].size(), -1);
  for (int32_t k = 0; k < num_chunks(); ++k) {
    const auto members = chunk(k);
    require(!members.empty(), kChunkBegin, "no empty chunk");
    for (const int32_t lane : members) {
      const Lane &a = lanes()[static_cast<size_t>(lane)],
                 &b = lanes()[static_cast<size_t>(members[0])];
      require(a.weight_set == b.weight_set && a.data_order == b.data_order, kLaneOrder,
              "one weight set and one data order a chunk");
    }
    for (const int32_t x : shared(k)) {
      for (const int32_t arg : operands(x)) {
        require(arg == 0 || computed[static_cast<size_t>(arg)] == k, kShared,
                "operands before their users");
      }
      computed[static_cast<size_t>(x)] = k;
    }
  }
}

inline int64_t ProgramTable::conv_macs(int32_t x, const Position& cell, int64_t pixels) const {
  if (sections_[kOpcode][static_cast<size_t>(x)] != kConv) return 0;
  const auto unit = static_cast<size_t>(cell.unit + sections_[kParam][static_cast<size_t>(x)]);
  const int64_t kernel = units()[unit].kernel;
  return kernel * kernel * cell.in_channels * cell.out_channels * pixels;
}

inline Work ProgramTable::count_work(int64_t height, int64_t width) const {
  if (height < 1 || width < 1) fail("count_work: wanted an image of at least 1x1");
  const auto pixels = [&](int32_t halvings) {
    int64_t h = height, w = width;
    for (int32_t i = 0; i < halvings; ++i) h = (h + 1) / 2, w = (w + 1) / 2;
    return h * w;
  };
  Work work;
  int64_t per_lane = 0;  // what every lane computes whatever its network: reductions and head
  for (const Position& p : positions()) {
    const int64_t in = p.in_channels, out = p.out_channels;
    if (p.kind == kReduction) {
      per_lane += (9 * in * out + 9 * out * out + in * out) * pixels(p.halvings + 1);
    } else if (p.kind == kHead) {
      per_lane += (in + 1) * out;
    }
  }
  const Position& stem = positions()[0];
  const auto opcode = sections_[kOpcode];
  std::vector<int32_t> computed(opcode.size(), -1);
  for (int32_t k = 0; k < num_chunks(); ++k) {
    work.macs += 9 * static_cast<int64_t>(stem.in_channels) * stem.out_channels * pixels(0);
    for (const int32_t x : shared(k)) {
      computed[static_cast<size_t>(x)] = k;
      ++work.evaluations[static_cast<size_t>(opcode[static_cast<size_t>(x)])];
      work.shared_macs += conv_macs(x, positions()[1], pixels(0));
    }
    for (const int32_t lane : chunk(k)) {
      work.macs += per_lane;
      const auto templates = network(lanes()[static_cast<size_t>(lane)].network);
      for (const Position& p : positions()) {
        if (p.kind != kCell) continue;
        for (const int32_t x : steps(templates[static_cast<size_t>(p.cell)])) {
          if (p.cell == 0 && computed[static_cast<size_t>(x)] == k) continue;
          ++work.evaluations[static_cast<size_t>(opcode[static_cast<size_t>(x)])];
          work.cell_macs += conv_macs(x, p, pixels(p.halvings));
        }
      }
    }
  }
  work.cell_macs += work.shared_macs;
  work.macs += work.cell_macs;
  return work;
}

}  // namespace nasfast
