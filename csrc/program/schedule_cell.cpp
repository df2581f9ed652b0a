// SPDX-License-Identifier: MIT
// From the steps of a cell to passes.
#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "program/schedule_builder.h"

namespace nasfast {

namespace {

// Turns the steps of one cell into passes. Sums, copies and concatenations stay lists of terms.
class CellBuilder {
 public:
  // `shared`: where results go when the steps are those that a chunk shares. `known`: what is there
  // already, in the first cell of a lane.
  CellBuilder(const ProgramTable& table, Builder& builder, const Position& position, bool is_first,
              const SharedSchedule* known, SharedSchedule* shared)
      : table_(table),
        builder_(builder),
        position_(position),
        is_first_(is_first),
        known_(known),
        shared_(shared) {}

  Value run(std::span<const int32_t> steps, const Value& input) {
    count_uses(steps);
    visit(0, input);
    for (const int32_t step : steps) {
      if (step == 0) continue;  // the identity: the root is the input
      if (!is_result(opcode_of(step))) {
        visit(step, value_of(step));
      } else if (const int32_t tensor = known_tensor(step); tensor >= 0) {
        visit(step, builder_.value_of(tensor));
      } else {
        visit(step, Value(values_.at(step)));  // by the pass of its operand
      }
    }
    return values_.at(steps.empty() ? 0 : steps.back());
  }

 private:
  int32_t opcode_of(int32_t step) const {
    return table_.section(kOpcode)[static_cast<size_t>(step)];
  }
  int32_t param_of(int32_t step) const { return table_.section(kParam)[static_cast<size_t>(step)]; }
  const Unit& unit_of(int32_t step) const {
    return table_.units()[static_cast<size_t>(position_.unit + param_of(step))];
  }

  void count_uses(std::span<const int32_t> steps) {
    for (const int32_t step : steps) {
      const auto opcode = opcode_of(step);
      for (const int32_t operand : table_.operands(step)) {
        ++uses_[operand];
        if (opcode == kMix) is_mixed_.insert(operand);
        if (opcode == kConcat || opcode == kCut) is_part_.insert(operand);
      }
      if (is_result(opcode) && known_slot(step) < 0) {
        consumers_[table_.operands(step)[0]].push_back(step);
      }
    }
    if (!steps.empty()) ++uses_[steps.back()];
  }

  int32_t known_slot(int32_t step) const {
    return known_ != nullptr && is_first_ ? known_->slot_of(step) : -1;
  }

  // A tensor for a result that the chunk has computed, -1 when it has not.
  int32_t known_tensor(int32_t step) {
    const int32_t slot = known_slot(step);
    if (slot < 0) return -1;
    const auto at = known_tensors_.find(slot);
    if (at != known_tensors_.end()) return at->second;
    const StoredTensor& shared = known_->tensor_of(slot);
    const int32_t tensor = builder_.add_tensor(position_.halvings, shared.channels, shared.norm,
                                               slot, shared.is_rectified);
    known_tensors_[slot] = tensor;
    return tensor;
  }

  // The value of a step that is no result of its own.
  Value value_of(int32_t step) const {
    const auto opcode = opcode_of(step);
    const auto operands = table_.operands(step);
    if (opcode == kConcat) return concatenated(step);
    if (opcode == kZero) {
      return {{}, values_.at(operands.empty() ? 0 : operands[0]).channels, {}};
    }
    if (opcode == kCut) {
      Value value = values_.at(operands[0]);
      value.channels = unit_of(step).out_channels;
      for (PassTerm& term : value.terms) term.count = std::min(term.count, value.channels);
      return value;
    }
    int32_t weight = -1;
    if (opcode == kMix) weight = position_.cell * table_.mixing_width() + param_of(step);
    const Ranges& present = values_.at(operands[0]).present;
    const bool is_alike = std::all_of(operands.begin(), operands.end(), [&](int32_t operand) {
      return values_.at(operand).present == present;
    });
    Value sum;
    for (const int32_t operand : operands) {
      const Value& value = values_.at(operand);
      const Value aligned = is_alike ? value : expanded(value, position_.out_channels);
      sum.channels = aligned.channels;
      sum.present = aligned.present;
      for (PassTerm term : aligned.terms) {
        if (weight >= 0) term.weight = weight;
        sum.terms.push_back(term);
      }
      if (weight >= 0) ++weight;
    }
    return sum;
  }

  // Side by side, without the slots that are free.
  Value concatenated(int32_t step) const {
    const auto operands = table_.operands(step);
    auto slots = static_cast<uint32_t>(param_of(step));
    Value value;
    int32_t begin = 0;  // natural
    for (size_t next = 0; next < operands.size(); slots >>= 1) {
      const Value& part = values_.at(operands[(slots & 1) != 0 ? next : 0]);
      if ((slots & 1) != 0) {
        for (PassTerm term : part.terms) {
          term.to += value.channels;
          value.terms.push_back(term);
        }
        value.channels += part.channels;
        if (!value.present.empty() &&
            value.present.back().begin + value.present.back().count == begin) {
          value.present.back().count += part.channels;
        } else {
          value.present.push_back({begin, part.channels});
        }
        ++next;
      }
      begin += part.channels;
    }
    if (value.channels == position_.out_channels) value.present.clear();
    return value;
  }

  // Sets the value of an expression and runs the pass over it, if it has consumers. In the first
  // cell nothing is kept, so that a chunk's shared steps and its lanes round alike.
  void visit(int32_t expression, Value value) {
    const auto consumers = consumers_.find(expression);
    const bool has_consumers = consumers != consumers_.end();
    // A term has one mixing weight at most: what is mixed once more must be a value of its own.
    const Terms& terms = value.terms;
    const bool is_nested = is_mixed_.count(expression) > 0 &&
                           (terms.size() >= 2 || (terms.size() == 1 && terms[0].weight >= 0));
    // A tensor is read as it stands by what keeps its gradient, and has no free slots.
    const bool is_alone = is_part_.count(expression) == 0 && value.present.empty();
    const bool keeps =
        is_nested || (!is_first_ && is_alone && terms.size() >= 2 && uses_[expression] >= 2);
    if (has_consumers || keeps) {
      Pass& pass = builder_.add_pass(position_.halvings, value);
      if (keeps) value = builder_.keep(pass);
      if (has_consumers) {
        for (const int32_t step : consumers->second) {
          values_[step] = builder_.value_of(consume(pass, step));
        }
      }
    }
    values_[expression] = std::move(value);
  }

  int32_t consume(Pass& pass, int32_t step) {
    const auto opcode = opcode_of(step), param = param_of(step);
    const int32_t slot = shared_ != nullptr ? shared_->slot_of(step) : -1;
    if (is_convolution(opcode)) {
      return builder_.add_conv(pass, position_.unit + param, unit_of(step).out_channels, 1,
                               Part::kCells, slot);
    }
    const Use use = opcode == kAvgPool ? Use::kAvgPool : Use::kMaxPool;
    const int32_t out = builder_.add_tensor(position_.halvings, pass.channels, -1, slot);
    pass.consumers.push_back({use, -1, -1, param, 1, out, -1});
    return out;
  }

  const ProgramTable& table_;
  Builder& builder_;
  const Position& position_;
  const bool is_first_;
  const SharedSchedule* known_;
  SharedSchedule* shared_;
  std::unordered_map<int32_t, Value> values_;
  std::unordered_map<int32_t, int32_t> uses_;
  std::unordered_map<int32_t, std::vector<int32_t>> consumers_;
  std::unordered_set<int32_t> is_mixed_;
  std::unordered_set<int32_t> is_part_;  // read among other channels, or not as a whole
  std::unordered_map<int32_t, int32_t> known_tensors_;
};

}  // namespace

Value schedule_cell(const ProgramTable& table, Builder& builder, const Position& position,
                    std::span<const int32_t> steps, const Value& input, const SharedSchedule* known,
                    SharedSchedule* shared, bool is_first) {
  return CellBuilder(table, builder, position, is_first, known, shared).run(steps, input);
}

}  // namespace nasfast
