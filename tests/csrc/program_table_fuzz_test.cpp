// SPDX-License-Identifier: MIT
// Random damage: a table is refused, or a backend in miniature walks it without a read out of
// bounds.
#define _GLIBCXX_ASSERTIONS  // checks every index into a span or vector

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "block_tables.h"
#include "check.h"
#include "program/program_table.h"
#include "small_tables.h"

namespace {

using nasfast::BatchNormMode;
using nasfast::Position;
using nasfast::ProgramTable;
using nasfast::Unit;
using small_tables::Sections;

constexpr int kMutations = 200000;
constexpr int64_t kHeight = 8, kWidth = 6;

size_t at(int32_t index) { return static_cast<size_t>(index); }

// All that is kept of a value. `present`: channels that a concatenation has not left free.
struct Value {
  int32_t expression = -1, channels = 0;
  int64_t height = 0, width = 0, present = channels;
};

// Runs every lane as a backend would: reads all that it reads, and counts multiply-accumulates.
class Walker {
 public:
  // `others` is the batch-norm mode of all parts but the cells.
  Walker(const ProgramTable& table, BatchNormMode others)
      : table_(table),
        cells_(static_cast<BatchNormMode>(table.settings().cell_mode)),
        others_(others) {
    // An arena that damage made huge is not allocated; its bounds are checked all the same.
    const auto size = at(table.settings().arena_size);
    if (size <= 4096) arena_.reset(new float[size]());
    mixing_.resize(at(table.mixing_width()));
  }

  int64_t run() {
    for (int32_t k = 0; k < table_.num_chunks(); ++k) chunk(k);
    return macs_;
  }

 private:
  void chunk(int32_t k) {
    const Position& first = table_.positions()[0];
    const Value image = {0, first.in_channels, kHeight, kWidth};
    const Value stem = conv(image, table_.units()[at(first.unit)], 1, others_);
    CHECK_EQ(stem.channels, first.out_channels);
    std::vector<Value> shared;
    slot_.assign(table_.section(nasfast::kOpcode).size(), -1);
    for (const int32_t x : table_.shared(k)) {
      std::vector<Value> inputs;
      for (const int32_t arg : table_.operands(x)) {
        inputs.push_back(arg == 0 ? stem : shared[at(slot_[at(arg)])]);
        CHECK_EQ(inputs.back().expression, arg);
      }
      slot_[at(x)] = static_cast<int32_t>(shared.size());
      shared.push_back(evaluate(x, inputs, stem, table_.positions()[1]));
    }
    for (const int32_t lane : table_.chunk(k)) {
      const auto& row = table_.lanes()[at(lane)];
      CHECK(row.weight_set >= 0 && row.weight_set < table_.settings().num_weight_sets);
      CHECK(row.data_order >= 0 && row.data_order < table_.settings().num_data_orders);
      network(table_.network(row.network), stem, shared);
    }
  }

  void network(std::span<const int32_t> templates, Value x, const std::vector<Value>& shared) {
    for (const Position& p : table_.positions().subspan(1)) {
      CHECK_EQ(x.channels, p.in_channels);
      const auto unit = [&](int32_t k) { return table_.units()[at(p.unit + k)]; };
      if (p.kind == nasfast::kCell) {
        x = cell(templates[at(p.cell)], x, p.cell == 0 ? shared : std::vector<Value>{}, p);
      } else if (p.kind == nasfast::kReduction) {
        const Value y = conv(x, unit(0), 2, others_);
        conv(y, unit(1), 1, others_);
        const Value pooled = {0, x.channels, y.height, y.width};
        x = conv(pooled, unit(2), 1, nasfast::kBatch);
      } else if (p.kind == nasfast::kPooling) {
        const int64_t more = 1 + table_.settings().padding;
        x.height = (x.height + more) / 2, x.width = (x.width + more) / 2;
      } else {
        head(p, x);
      }
      CHECK_EQ(x.channels, nasfast::is_head(p.kind) ? p.in_channels : p.out_channels);
    }
  }

  void head(const Position& p, Value x) {
    const Unit* unit = &table_.units()[at(p.unit)];
    if (p.kind == nasfast::kHead) {
      norm(*unit++, x.channels, others_);
    } else if (p.kind == nasfast::kProjectedHead) {
      CHECK_EQ(unit->kernel, 1);
      x = conv(x, *unit++, 1, others_);
    } else {
      CHECK(p.kind == nasfast::kLinearHead);
    }
    CHECK_EQ(unit - table_.units().data() + 1, static_cast<int64_t>(table_.units().size()));
    read(unit->weight, int64_t{x.channels} * p.out_channels);
    read(unit->bias, p.out_channels);
    macs_ += (int64_t{x.channels} + 1) * p.out_channels;
  }

  Value cell(int32_t t, Value x, const std::vector<Value>& shared, const Position& p) {
    std::vector<Value> registers(at(table_.section(nasfast::kNumRegisters)[at(t)]));
    x.expression = 0;
    registers[0] = x;
    const auto steps = table_.steps(t);
    for (size_t k = 0; k < steps.size(); ++k) {
      const int32_t step = steps[k], out = table_.registers(t)[k];
      const auto operands = table_.operands(step);
      const auto sources = table_.operand_registers(t, static_cast<int32_t>(k));
      CHECK_EQ(sources.size(), operands.size());
      std::vector<Value> inputs;
      for (size_t i = 0; i < sources.size(); ++i) {
        inputs.push_back(registers[at(sources[i])]);
        CHECK_EQ(inputs.back().expression, operands[i]);
        CHECK(sources[i] != out);
      }
      CHECK(out != 0);
      const bool is_shared = !shared.empty() && slot_[at(step)] >= 0;
      registers[at(out)] = is_shared ? shared[at(slot_[at(step)])] : evaluate(step, inputs, x, p);
    }
    Value root = registers[at(table_.registers(t).back())];
    if (root.expression == 0) root.present = x.present;
    return root;
  }

  Value evaluate(int32_t x, const std::vector<Value>& inputs, const Value& cell_input,
                 const Position& p) {
    const int32_t opcode = table_.section(nasfast::kOpcode)[at(x)];
    const int32_t param = table_.section(nasfast::kParam)[at(x)];
    Value result = inputs.empty() ? cell_input : inputs[0];
    if (nasfast::is_convolution(opcode)) {
      CHECK(param >= 0 && param < table_.settings().units_per_cell);
      result = conv(inputs[0], table_.units()[at(p.unit + param)], 1, cells_);
    } else if (opcode == nasfast::kCut) {
      CHECK(param >= 0 && param < table_.settings().units_per_cell);
      result.channels = table_.units()[at(p.unit + param)].out_channels;
      CHECK(result.channels >= 1 && result.channels <= inputs[0].channels);
    } else if (opcode == nasfast::kConcat) {
      result = concatenation(static_cast<uint32_t>(param), inputs, p.out_channels);
    } else if (opcode == nasfast::kAvgPool || opcode == nasfast::kMaxPool) {
      CHECK(param % 2 == 1 && param <= nasfast::kMaxKernel);
    } else if (opcode == nasfast::kMix) {
      CHECK(!inputs.empty());
      for (size_t k = 0; k < inputs.size(); ++k) sum_ = sum_ + mixing_[at(param) + k];
    }
    const bool is_alike =
        !nasfast::is_convolution(opcode) && opcode != nasfast::kCut && opcode != nasfast::kConcat;
    for (const Value& input : inputs) CHECK(!is_alike || input.channels == result.channels);
    if (opcode != nasfast::kConcat) result.present = result.channels;
    result.expression = x;
    return result;
  }

  // Every operand in its slot, within the cell's channels and beside the one before.
  static Value concatenation(uint32_t slots, const std::vector<Value>& inputs, int32_t channels) {
    Value result = inputs.at(0);
    result.present = 0;
    int64_t end = 0;
    size_t next = 0;
    for (; slots != 0; slots >>= 1) {
      const Value& input = (slots & 1) != 0 ? inputs.at(next++) : inputs[0];
      if ((slots & 1) != 0) result.present += input.channels;
      end += input.channels;
    }
    CHECK_EQ(next, inputs.size());
    CHECK(end <= channels);
    result.channels = channels;
    return result;
  }

  Value conv(const Value& x, const Unit& unit, int32_t stride, BatchNormMode mode) {
    const int64_t kernel = unit.kernel, taps = kernel * kernel;
    const int32_t out = unit.out_channels;
    CHECK(kernel % 2 == 1 && kernel <= nasfast::kMaxKernel);
    CHECK_EQ(x.channels, unit.in_channels);
    const Value y = {0, out, (x.height + stride - 1) / stride, (x.width + stride - 1) / stride};
    read(unit.weight, taps * x.channels * out);
    if (unit.bias >= 0) read(unit.bias, out);
    norm(unit, out, mode);
    macs_ += taps * x.present * out * y.height * y.width;
    return y;
  }

  void norm(const Unit& unit, int32_t channels, BatchNormMode mode) {
    if (unit.gamma >= 0) {
      read(unit.gamma, channels);
      read(unit.beta, channels);
    }
    if (mode == nasfast::kRunning || unit.mean >= 0) {  // training updates them in any mode
      read(unit.mean, channels);
      read(unit.variance, channels);
    }
  }

  void read(int64_t offset, int64_t size) {
    CHECK(size > 0 && offset >= 0 && offset % nasfast::kArenaAlignment == 0);
    CHECK(offset + size <= table_.settings().arena_size);
    if (arena_ != nullptr)
      sum_ = sum_ + arena_[static_cast<size_t>(offset)] +
             arena_[static_cast<size_t>(offset + size - 1)];
  }

  const ProgramTable& table_;
  BatchNormMode cells_, others_;
  std::unique_ptr<float[]> arena_;
  std::vector<float> mixing_;  // weights of one cell
  std::vector<int32_t> slot_;  // of each expression in the shared values of the chunk
  volatile float sum_ = 0;
  int64_t macs_ = 0;
};

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  // Damages one or two places of the sections, and now and then the header.
  std::vector<int32_t> damage(Sections sections) {
    for (uint32_t n = 1 + below(6) / 3; n > 0; --n) mutate(sections[below(sections.size())]);
    auto table = small_tables::pack(sections);
    if (below(20) == 0) table[below(3 + 2 * sections.size())] = extreme();
    return table;
  }

 private:
  uint32_t below(size_t end) { return static_cast<uint32_t>(random_() % end); }

  int32_t extreme() {
    constexpr std::array<int32_t, 16> kExtremes = {
        0, -1, 1, 2, 3, 5, 16, 31, 33, 1000, 46341, 65536, 65537, 1 << 30, INT32_MAX, INT32_MIN};
    return kExtremes[below(kExtremes.size())];
  }

  void mutate(std::vector<int32_t>& section) {
    const uint32_t place = below(section.size() + 1);
    const uint32_t kind = below(8);
    if (kind == 0 || place == section.size()) {
      section.insert(section.begin() + place, static_cast<int32_t>(below(8)));
    } else if (kind == 1) {
      section.erase(section.begin() + place);
    } else if (kind == 2) {
      std::swap(section[place], section[below(section.size())]);
    } else if (kind == 3) {
      section[place] = extreme();
    } else {
      // An offset that is aligned too, or a near number.
      const int64_t step = kind == 4 ? 16 * (int64_t{below(5)} - 2) : int64_t{below(7)} - 3;
      section[place] = static_cast<int32_t>(section[place] + step);  // wraps around
    }
  }

  std::mt19937 random_;
};

bool allows(const ProgramTable& table, BatchNormMode others) {
  try {
    table.check_modes(others, others);
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

// Whether a table is accepted; then everything that a backend reads of it is there.
bool is_sound(const std::vector<int32_t>& flat) {
  try {
    const ProgramTable table(flat);
    for (const auto others : {nasfast::kBatch, nasfast::kRunning}) {
      if (!allows(table, others)) continue;
      CHECK_EQ(Walker(table, others).run(), table.count_work(kHeight, kWidth).macs);
    }
    (void)table.count_work(nasfast::kMaxSide, nasfast::kMaxSide);  // may be refused: too large
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  }
}

void check_damage(const Sections& sections, uint32_t seed) {
  CHECK(is_sound(small_tables::pack(sections)));
  Mutator mutator(seed);
  int accepted = 0;
  for (int i = 0; i < kMutations / 2 && check::failures == 0; ++i) {
    accepted += is_sound(mutator.damage(sections));
  }
  CHECK(accepted > kMutations / 100);  // or nothing was walked
  std::printf("%d of %d damaged tables accepted\n", accepted, kMutations / 2);
}

}  // namespace

int main() {
  check_damage(small_tables::one_cell(), 1);
  check_damage(small_tables::two_stages(), 2);
  check_damage(small_tables::mixed_stages(), 3);
  check_damage(small_tables::choice_blocks(), 4);
  check_damage(small_tables::vertex_cells(), 5);
  return check::result();
}
