// SPDX-License-Identifier: MIT
// The packed instruction table of a program: one int32 array that a backend walks without Python.
//
// Header: magic, version, number of sections, then (offset, length) of each section, in numbers.
// Sections, in the order of `Section`; [r, c] is row-major:
//
//   settings        [10]    what the table was made for: batch-norm mode of the cells (0 batch,
//                           1 running, 2 recalibrate), whether that batch norm is affine, level of
//                           merging, numbers in a weight arena, units of a cell, weight sets and
//                           data orders that the lanes name (the largest + 1), then the largest
//                           minibatch, height and width that fit the chunks
//   positions       [P, 7]  kind (0 stem, 1 cell, 2 reduction, 3 head), in_channels, out_channels,
//                           halvings of the image before it, first unit, layer, cell (-1: none)
//   units           [U, 7]  arena offsets of weight, bias, gamma, beta, mean, variance (-1: none),
//                           kernel size (0: no convolution)
//   opcode          [X]     operation of each cell expression; expression 0 is the cell's input
//   param           [X]     unit within the cell (conv), kernel (pools), first mixing weight (mix),
//                           otherwise -1
//   operand_begin   [X + 1] operands of expression x: operands[operand_begin[x]...]
//   operands        [...]   always earlier expressions
//   template_begin  [T + 1] steps of template t: steps[template_begin[t]...]
//   steps           [S]     expressions in the order of execution, the root last
//   registers       [S]     register that each step writes: never 0, which holds the cell's input,
//                           and never one that it reads
//   step_operand_begin [S + 1], operand_registers [...]
//                           registers that step s reads, one for each operand of its expression and
//                           in their order: operand_registers[step_operand_begin[s]...]
//   num_registers   [T]     registers of each template
//   networks        [N, C]  template of each search cell
//   lanes           [L, 3]  network, weight set, data order
//   lane_order      [L]     a permutation of the lanes
//   chunk_begin     [K + 1] lanes of chunk k: lane_order[chunk_begin[k]...]; one weight set and one
//                           data order a chunk
//   shared_begin    [K + 1] shared expressions of chunk k: shared[shared_begin[k]...]
//   shared          [...]   expressions of the first cell, computed once for the chunk, ascending
//                           (so operands come before users) and with all their operands
//
// How a table is run (nasfast/reference.py is the definition). Convolutions and pools have stride 1
// where nothing else is said, and padding kernel / 2; halving a side n gives (n + 1) / 2.
//   stem       convolution, batch norm. Unit 0.
//   cell       the steps of its template; the last value is the cell's. Opcodes:
//     input      a copy of register 0 (the identity template has this one step)
//     zero       zeros like register 0, even where an operand is not finite
//     copy       its operand
//     sum        of its operands, left to right
//     conv       ReLU, convolution, batch norm. Unit position.unit + param.
//     avg_pool   mean over the window; padded positions are not counted
//     max_pool   maximum over the window; padded positions play no part
//     mix        of its operands, left to right, operand k times mixing weight param + k. A zero
//                operand contributes nothing, and the gradient of its weight is exactly 0.
//   reduction  shortcut + conv_b(conv_a(x)). Units: conv_a (ReLU, convolution of stride 2, batch
//              norm), conv_b (ReLU, convolution, batch norm), shortcut (2x2 mean of stride 2 over
//              what is there, then a 1x1 convolution; neither ReLU nor batch norm).
//   head       batch norm (its first unit), ReLU, mean over the image, linear (its second unit).
// A chunk computes the stem and its shared expressions once, the latter as in its first cell
// (position 1). Its lanes do not compute a step of the first cell that is shared: the register of
// that step then names the shared value, which a later step writing the same register leaves as it
// is. The slot of a shared expression is its place in the chunk's list; no slots are stored, as a
// backend finds them in one pass over the list (or by bisection, as it ascends).
//
// Mixing weights are no part of a table or an arena but an argument of a run, [cells, width], width
// being mixing_width(): operation k of edge e has number e * operations + k of the cell's row, as
// far as the table reads. Every operand but zero is computed, whatever its weight: what may
// rest is left out when the program is built. A mix is never shared.
//
// An arena is one weight set, float32. Offsets are multiples of kArenaAlignment; the tensors lie in
// the order of units and columns without overlap:
//   weight          [out, in, kernel, kernel], of the classifier [out, in]
//   bias            [out], added by the convolution or the classifier
//   gamma, beta     [out] of the batch norm behind the convolution, of the head's own [in]
//   mean, variance  likewise, running statistics: read in mode `running`, updated by training
// Batch norm is (x - mean) / sqrt(variance + kBatchNormEpsilon) * gamma + beta, with mean and
// biased variance of the minibatch (mode batch) or of all calibration images together
// (recalibrate). The modes of stem and reductions and of the head are arguments of a run, not of
// the table; see check_modes().
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace nasfast {

constexpr int32_t kTableMagic = 0x4E465354;
constexpr int32_t kTableVersion = 1;

constexpr double kBatchNormEpsilon = 1e-5;
constexpr int32_t kArenaAlignment = 16;
constexpr int32_t kMaxChannels = 65536;
constexpr int32_t kMaxKernel = 31;
constexpr int32_t kMaxSide = 65536;  // height or width of an image
constexpr int32_t kMaxBatch = 1 << 24;
constexpr int32_t kMaxMixing = 1 << 16;  // mixing weights of a cell

enum Section : int {
  kSettings,
  kPositions,
  kUnits,
  kOpcode,
  kParam,
  kOperandBegin,
  kOperands,
  kTemplateBegin,
  kSteps,
  kRegisters,
  kStepOperandBegin,
  kOperandRegisters,
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
    "settings",           "positions",         "units",          "opcode",   "param",
    "operand_begin",      "operands",          "template_begin", "steps",    "registers",
    "step_operand_begin", "operand_registers", "num_registers",  "networks", "lanes",
    "lane_order",         "chunk_begin",       "shared_begin",   "shared"};

enum PositionKind : int32_t { kStem, kCell, kReduction, kHead, kNumPositionKinds };
enum Opcode : int32_t { kInput, kZero, kCopy, kSum, kConv, kAvgPool, kMaxPool, kMix, kNumOpcodes };
enum BatchNormMode : int32_t { kBatch, kRunning, kRecalibrate, kNumBatchNormModes };
constexpr int32_t kNumMerges = 7;  // levels of nasfast.Merge

struct Settings {
  int32_t cell_mode, cell_affine, merge, arena_size, units_per_cell;
  int32_t num_weight_sets, num_data_orders, batch, height, width;
};
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
  std::vector<int64_t> chunk_macs;                 // macs of each chunk
};

// A view of a table; owns nothing. The constructor checks everything a walk relies on, so that a
// damaged table is an error and never an access out of bounds: every index, every channel and
// tensor of the arena, that registers hold what is read, and that the numbers of any value fit
// int64.
class ProgramTable {
 public:
  explicit ProgramTable(std::span<const int32_t> table) : table_(table) {
    find_sections();
    check_settings();
    check_skeleton();
    check_units();
    check_expressions();
    check_templates();
    check_lanes();
    check_chunks();
  }

  // Checks that there are running statistics in every part that is to use them; of the cells, the
  // table knows the mode itself. `fixed` is the mode of stem and reductions, `last` the head's.
  void check_modes(BatchNormMode fixed, BatchNormMode last) const;

  std::span<const int32_t> section(Section s) const { return sections_[s]; }
  const Settings& settings() const { return rows<Settings>(kSettings)[0]; }
  std::span<const Position> positions() const { return rows<Position>(kPositions); }
  std::span<const Unit> units() const { return rows<Unit>(kUnits); }
  std::span<const Lane> lanes() const { return rows<Lane>(kLanes); }
  int32_t num_cells() const { return num_cells_; }
  int32_t num_templates() const { return static_cast<int32_t>(sections_[kNumRegisters].size()); }
  int32_t num_chunks() const { return static_cast<int32_t>(sections_[kChunkBegin].size()) - 1; }

  std::span<const Unit> units_of(const Position& p) const {
    return units().subspan(static_cast<size_t>(p.unit), static_cast<size_t>(num_units(p.kind)));
  }
  std::span<const int32_t> operands(int32_t expression) const {
    return slice(kOperandBegin, kOperands, expression);
  }
  std::span<const int32_t> steps(int32_t t) const { return slice(kTemplateBegin, kSteps, t); }
  std::span<const int32_t> registers(int32_t t) const {
    return slice(kTemplateBegin, kRegisters, t);
  }
  // Registers that step `k` of template `t` reads.
  std::span<const int32_t> operand_registers(int32_t t, int32_t k) const {
    const int32_t step = sections_[kTemplateBegin][static_cast<size_t>(t)] + k;
    return slice(kStepOperandBegin, kOperandRegisters, step);
  }
  std::span<const int32_t> chunk(int32_t k) const { return slice(kChunkBegin, kLaneOrder, k); }
  std::span<const int32_t> shared(int32_t k) const { return slice(kSharedBegin, kShared, k); }
  std::span<const int32_t> network(int32_t n) const {
    return sections_[kNetworks].subspan(static_cast<size_t>(n) * num_cells_, num_cells_);
  }

  // Mixing weights that a cell reads, up to the last; 0: the table mixes nothing.
  int32_t mixing_width() const { return mixing_width_; }

  // Counts the work of running every lane on one image of height x width.
  Work count_work(int64_t height, int64_t width) const;

 private:
  template <typename Row>
  std::span<const Row> rows(Section s) const {
    static_assert(sizeof(Row) % sizeof(int32_t) == 0 && alignof(Row) == alignof(int32_t));
    const auto flat = sections_[s];
    return {reinterpret_cast<const Row*>(flat.data()), flat.size() * sizeof(int32_t) / sizeof(Row)};
  }
  std::span<const int32_t> slice(Section begins, Section flat, int32_t index) const {
    const auto begin = sections_[begins];
    const auto from = static_cast<size_t>(begin[index]);
    return sections_[flat].subspan(from, static_cast<size_t>(begin[index + 1]) - from);
  }
  int32_t num_units(int32_t kind) const {
    constexpr std::array<int32_t, kNumPositionKinds> kFixed = {1, 0, 3, 2};
    return kind == kCell ? settings().units_per_cell : kFixed[static_cast<size_t>(kind)];
  }
  // Numbers in the weight of a convolution from `in` to `out` channels; at most the arena's.
  static int64_t weight_size(const Unit& unit, int64_t in, int64_t out) {
    return in * out * unit.kernel * unit.kernel;
  }

  [[noreturn]] static void fail(const std::string& what) {
    throw std::invalid_argument("program table: " + what);
  }
  static void require(bool ok, Section s, const char* wanted) {
    if (!ok) fail(std::string(kSectionNames[s]) + ": wanted " + wanted);
  }
  void find_sections();
  void require_range(Section s, int64_t low, int64_t high) const;
  void require_begins(Section begins, Section flat, size_t count) const;
  void check_settings() const;
  void check_skeleton();
  void check_units() const;
  int64_t check_conv(const Unit& unit, int64_t in, int64_t out, int64_t end) const;
  int64_t check_tensors(const Unit& unit, int64_t weight, int64_t channels, int64_t end) const;
  void check_expressions();
  void check_templates() const;
  void check_lanes() const;
  void check_chunks() const;

  std::span<const int32_t> table_;
  std::array<std::span<const int32_t>, kNumSections> sections_;
  int32_t num_cells_ = 0, mixing_width_ = 0;
};

// Products stay below 2^63: a weight has less than 2^31 numbers and an image at most 2^32 pixels.
inline Work ProgramTable::count_work(int64_t height, int64_t width) const {
  if (std::min(height, width) < 1 || std::max(height, width) > kMaxSide) {
    fail("count_work: wanted an image of 1x1 to 65536x65536");
  }
  const auto add = [](int64_t& total, int64_t amount) {
    if (amount > std::numeric_limits<int64_t>::max() - total) {
      fail("count_work: 2^63 multiply-accumulates or more");
    }
    total += amount;
  };
  std::vector<int64_t> pixels;  // of the image behind each number of halvings
  for (int64_t h = height, w = width; pixels.size() <= positions().size();) {
    pixels.push_back(h * w);
    h = (h + 1) / 2, w = (w + 1) / 2;
  }
  const auto conv_macs = [&](const Unit& unit, int64_t in, int64_t out, int32_t halvings) {
    return weight_size(unit, in, out) * pixels[static_cast<size_t>(halvings)];
  };
  const auto opcode = sections_[kOpcode], param = sections_[kParam];
  const auto macs_of = [&](size_t x, const Position& p) {
    if (opcode[x] != kConv) return int64_t{0};
    const Unit& unit = units_of(p)[static_cast<size_t>(param[x])];
    return conv_macs(unit, p.in_channels, p.out_channels, p.halvings);
  };
  int64_t stem = 0, per_lane = 0;  // the latter: reductions and head
  for (const Position& p : positions()) {
    const int64_t in = p.in_channels, out = p.out_channels;
    const auto own = units_of(p);
    if (p.kind == kStem) add(stem, conv_macs(own[0], in, out, 0));
    if (p.kind == kHead) add(per_lane, (in + 1) * out);
    if (p.kind != kReduction) continue;
    add(per_lane, conv_macs(own[0], in, out, p.halvings + 1));
    add(per_lane, conv_macs(own[1], out, out, p.halvings + 1));
    add(per_lane, conv_macs(own[2], in, out, p.halvings + 1));
  }
  Work work;
  int64_t before = 0;                                // of the chunks so far
  std::vector<int32_t> computed(opcode.size(), -1);  // the last chunk that shares an expression
  for (int32_t k = 0; k < num_chunks(); ++k) {
    add(work.macs, stem);
    for (const int32_t shared_expression : shared(k)) {
      const auto x = static_cast<size_t>(shared_expression);
      computed[x] = k;
      ++work.evaluations[static_cast<size_t>(opcode[x])];
      add(work.shared_macs, macs_of(x, positions()[1]));
    }
    for (const int32_t lane : chunk(k)) {
      add(work.macs, per_lane);
      const auto templates = network(lanes()[static_cast<size_t>(lane)].network);
      for (const Position& p : positions()) {
        if (p.kind != kCell) continue;
        for (const int32_t step : steps(templates[static_cast<size_t>(p.cell)])) {
          const auto x = static_cast<size_t>(step);
          if (p.cell == 0 && computed[x] == k) continue;
          ++work.evaluations[static_cast<size_t>(opcode[x])];
          add(work.cell_macs, macs_of(x, p));
        }
      }
    }
    int64_t so_far = work.macs;
    add(so_far, work.cell_macs);
    add(so_far, work.shared_macs);
    work.chunk_macs.push_back(so_far - before);
    before = so_far;
  }
  add(work.cell_macs, work.shared_macs);
  add(work.macs, work.cell_macs);
  return work;
}

}  // namespace nasfast

#include "program/program_table_check.inl"
