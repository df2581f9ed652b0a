// SPDX-License-Identifier: MIT
// The packed instruction table of a program: one int32 array that a backend walks without Python.
//
// Header: magic, version, number of sections, then (offset, length) of each section, in numbers.
// Sections, in the order of `Section`; [r, c] is row-major:
//
//   settings        [11]    what the table was made for: batch-norm mode of the cells (0 batch,
//                           1 running, 2 recalibrate), whether that batch norm is affine, level of
//                           merging, numbers in a weight arena, units of a cell, weight sets and
//                           data orders that the lanes name (the largest + 1), then the largest
//                           minibatch, height and width that fit the chunks, and what is padded
//                           before an image is halved (0 or 1)
//   positions       [P, 7]  kind (0 stem, 1 cell, 2 reduction, 3 head, 4 stem with ReLU, 5 max
//                           pooling, 6 projected head, 7 linear head), in_channels, out_channels,
//                           halvings of the image before it, first unit, layer, cell (-1: none)
//   units           [U, 10] arena offsets of weight, bias, gamma, beta, mean, variance (-1: none),
//                           kernel size (0: no convolution), input and output channels of the
//                           convolution, weight of a new minibatch in the running statistics
//                           (millionths)
//   opcode          [X]     operation of each cell expression; expression 0 is the cell's input
//   param           [X]     unit within the cell (conv, conv_relu, cut), kernel (pools), first
//                           mixing weight (mix), slots (concat), otherwise -1
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
// where nothing else is said, and padding kernel / 2; halving a side n gives (n + 1) / 2, with a
// padding of 1 it gives n / 2 + 1.
//   stem       convolution, batch norm, and in a stem with ReLU that. Unit 0.
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
//     conv_relu  convolution, batch norm, ReLU. Unit position.unit + param. Tables have these or
//                conv, never both.
//     concat     its operands side by side, as a cell's output or a term of it. Operand k takes the
//                slot of the k-th set bit of param; free slots are zeros, as wide as the first
//                operand, and so are channels behind the last slot.
//     cut        the first channels of its operand, as many as unit position.unit + param puts out
//   reduction  shortcut + conv_b(conv_a(x)). Units: conv_a (ReLU, convolution of stride 2, batch
//              norm), conv_b (ReLU, convolution, batch norm), shortcut (2x2 mean of stride 2 over
//              what is there, then a 1x1 convolution; neither ReLU nor batch norm).
//   head       batch norm (its first unit), ReLU, mean over the image, linear (its second unit).
//   max_pool   maximum over 2x2 windows of stride 2; padded positions play no part
//   projected  ReLU, 1x1 convolution, batch norm (its first unit), mean, linear (its second unit)
//   linear     mean over the image, linear (its unit)
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
#include <bit>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace nasfast {

constexpr int32_t kTableMagic = 0x4E465354;
constexpr int32_t kTableVersion = 2;

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

enum PositionKind : int32_t {
  kStem,
  kCell,
  kReduction,
  kHead,
  kReluStem,
  kPooling,
  kProjectedHead,
  kLinearHead,
  kNumPositionKinds
};
enum Opcode : int32_t {
  kInput,
  kZero,
  kCopy,
  kSum,
  kConv,
  kAvgPool,
  kMaxPool,
  kMix,
  kConvRelu,
  kConcat,
  kCut,
  kNumOpcodes
};
constexpr bool is_stem(int32_t kind) { return kind == kStem || kind == kReluStem; }
constexpr bool is_head(int32_t kind) {
  return kind == kHead || kind == kProjectedHead || kind == kLinearHead;
}
constexpr bool halves(int32_t kind) { return kind == kReduction || kind == kPooling; }
constexpr bool is_convolution(int32_t opcode) { return opcode == kConv || opcode == kConvRelu; }
constexpr int32_t halved(int32_t side, int32_t padding) { return (side + 1 + padding) / 2; }
constexpr int32_t kMaxSlots = 30;  // of a concatenation
enum BatchNormMode : int32_t { kBatch, kRunning, kRecalibrate, kNumBatchNormModes };
constexpr int32_t kNumMerges = 7;  // levels of nasfast.Merge

struct Settings {
  int32_t cell_mode, cell_affine, merge, arena_size, units_per_cell;
  int32_t num_weight_sets, num_data_orders, batch, height, width, padding;
};
struct Position {
  int32_t kind, in_channels, out_channels, halvings, unit, layer, cell;
};
struct Unit {
  int32_t weight, bias, gamma, beta, mean, variance;
  int32_t kernel, in_channels, out_channels, momentum;
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
    check_channels();
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

  // Channels of every expression in the cell at a position.
  std::vector<int32_t> channels_at(const Position& p) const;

  // Of these, those of a cell's last expression that are not zero whatever the images: a
  // concatenation leaves slots free.
  int64_t present_channels(int32_t expression, std::span<const int32_t> channels) const;

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
    constexpr std::array<int32_t, kNumPositionKinds> kFixed = {1, 0, 3, 2, 1, 0, 2, 1};
    return kind == kCell ? settings().units_per_cell : kFixed[static_cast<size_t>(kind)];
  }
  // Numbers in the weight of a convolution; at most the arena's.
  static int64_t weight_size(const Unit& unit) {
    return int64_t{unit.in_channels} * unit.out_channels * unit.kernel * unit.kernel;
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
  int64_t most_channels() const;
  void check_settings() const;
  void check_skeleton();
  void check_units() const;
  int64_t check_conv(const Unit& unit, int64_t end) const;
  int64_t check_conv(const Unit& unit, int64_t in, int64_t out, int64_t end) const;
  int64_t check_tensors(const Unit& unit, int64_t weight, int64_t channels, int64_t end) const;
  void check_expressions();
  void check_channels() const;
  void check_templates() const;
  void check_lanes() const;
  void check_chunks() const;

  std::span<const int32_t> table_;
  std::array<std::span<const int32_t>, kNumSections> sections_;
  int32_t num_cells_ = 0, mixing_width_ = 0;
};

}  // namespace nasfast

#include "program/program_table_check.inl"
#include "program/program_work.inl"
