// SPDX-License-Identifier: MIT
#include "program/schedule.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

namespace nasfast {

bool Pass::feeds(Use use) const {
  return std::any_of(consumers.begin(), consumers.end(),
                     [use](const Consumer& c) { return c.use == use; });
}

bool Pass::needs_raw() const {
  return std::any_of(consumers.begin(), consumers.end(),
                     [](const Consumer& c) { return c.use != Use::kConv; });
}

int32_t SharedSchedule::slot_of(int32_t expression) const {
  // Slot 0 is the stem; expressions ascend.
  const auto at = std::lower_bound(expressions.begin(), expressions.end(), expression);
  return at != expressions.end() && *at == expression
             ? static_cast<int32_t>(at - expressions.begin())
             : -1;
}

namespace {

using Terms = std::vector<PassTerm>;

// Builds the passes of one lane, or of what the lanes of a chunk share.
class Builder {
 public:
  explicit Builder(const ProgramTable& table) : table_(table) {}

  Schedule schedule;

  int32_t add_tensor(int32_t halvings, int32_t channels, int32_t norm, int32_t external = -1) {
    schedule.tensors.push_back({halvings, channels, norm, external, -1});
    return static_cast<int32_t>(schedule.tensors.size()) - 1;
  }

  int32_t add_norm(int32_t unit, Part part, int32_t channels) {
    schedule.norms.push_back({unit, part, channels});
    return static_cast<int32_t>(schedule.norms.size()) - 1;
  }

  Pass& add_pass(int32_t halvings, int32_t channels, const Terms& terms) {
    Pass pass;
    pass.halvings = halvings;
    pass.channels = channels;
    pass.terms = terms;
    schedule.passes.push_back(std::move(pass));
    return schedule.passes.back();
  }

  // Adds a convolution of the pass's value and returns its raw result.
  int32_t add_conv(Pass& pass, int32_t unit, int32_t channels, int32_t stride, Part part,
                   int32_t external = -1) {
    const int32_t norm = add_norm(unit, part, channels);
    const int32_t out = add_tensor(pass.halvings + (stride == 2), channels, norm, external);
    const int32_t kernel = table_.units()[static_cast<size_t>(unit)].kernel;
    pass.consumers.push_back({Use::kConv, unit, kernel, stride, out, norm});
    return out;
  }

  // Keeps the pass's value in a tensor of its own, unless it is one already.
  Terms keep(Pass& pass) {
    if (is_value(pass.terms)) return pass.terms;
    pass.kept = add_tensor(pass.halvings, pass.channels, -1);
    return {{pass.kept}};
  }

  const StoredTensor& tensor(int32_t index) const {
    return schedule.tensors[static_cast<size_t>(index)];
  }

  // Whether a sum is one tensor as it stands.
  bool is_value(const Terms& terms) const {
    return terms.size() == 1 && tensor(terms[0].tensor).norm < 0 && terms[0].weight < 0;
  }

  // What is the same of every pass, once all are known: what need not be kept, what is read in
  // place, and buffers.
  void finish(bool keeps_all = false) {
    std::vector<bool> is_read(schedule.tensors.size(), false);
    for (const Pass& pass : schedule.passes) {
      for (const PassTerm& term : pass.terms) is_read[static_cast<size_t>(term.tensor)] = true;
    }
    for (Pass& pass : schedule.passes) {
      // All its readers were consumers of the pass itself. Rounding is the same either way.
      if (pass.kept >= 0 && !is_read[static_cast<size_t>(pass.kept)]) pass.kept = -1;
    }
    for (Pass& pass : schedule.passes) {
      pass.in_place = pass.kept < 0 && is_value(pass.terms);
    }
    if (!keeps_all) return assign_buffers();
    for (StoredTensor& tensor : schedule.tensors) tensor.buffer = schedule.num_buffers++;
  }

 private:
  // A buffer is free again in the pass that reads its tensor last, which may write its results
  // there: within a block of images a row is read before anything is written in its place. Not so
  // where the tensor itself is what pools read, nor where the image is halved: a row of more
  // channels than twice as many may reach into rows that are still to be read.
  void assign_buffers() {
    const size_t count = schedule.passes.size();
    std::vector<size_t> last_use(schedule.tensors.size(), 0);
    for (size_t p = 0; p < count; ++p) {
      for (const PassTerm& term : schedule.passes[p].terms) {
        last_use[static_cast<size_t>(term.tensor)] = p;
      }
    }
    std::vector<int32_t> free;
    const auto release = [&](int32_t index) {
      const int32_t buffer = schedule.tensors[static_cast<size_t>(index)].buffer;
      if (buffer >= 0 && std::find(free.begin(), free.end(), buffer) == free.end()) {
        free.push_back(buffer);
      }
    };
    const auto take = [&](int32_t index) {
      if (index < 0) return;
      StoredTensor& out = schedule.tensors[static_cast<size_t>(index)];
      if (out.external >= 0) return;
      if (free.empty()) {
        out.buffer = schedule.num_buffers++;
      } else {
        out.buffer = free.back();
        free.pop_back();
      }
    };
    for (size_t p = 0; p < count; ++p) {
      const Pass& pass = schedule.passes[p];
      const bool halves =
          std::any_of(pass.consumers.begin(), pass.consumers.end(), [&](const Consumer& consumer) {
            return consumer.out >= 0 && tensor(consumer.out).halvings != pass.halvings;
          });
      const bool keeps_terms = halves || (pass.in_place && pass.needs_raw());
      const auto release_terms = [&] {
        for (const PassTerm& term : pass.terms) {
          if (last_use[static_cast<size_t>(term.tensor)] == p) release(term.tensor);
        }
      };
      if (!keeps_terms) release_terms();
      take(pass.kept);
      for (const Consumer& consumer : pass.consumers) take(consumer.out);
      if (keeps_terms) release_terms();
      // Results that nobody reads (dead edges of Merge.NONE).
      for (const Consumer& consumer : pass.consumers) {
        const auto out = static_cast<size_t>(consumer.out);
        if (consumer.out >= 0 && last_use[out] <= p) release(consumer.out);
      }
    }
  }

  const ProgramTable& table_;
};

// Turns the steps of one cell into passes. Sums and copies stay lists of terms.
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

  Terms run(std::span<const int32_t> steps, const Terms& input) {
    count_uses(steps);
    visit(0, input);
    for (const int32_t step : steps) {
      if (step == 0) continue;  // the identity: the root is the input
      const auto opcode = table_.section(kOpcode)[static_cast<size_t>(step)];
      if (opcode == kSum || opcode == kCopy || opcode == kZero || opcode == kMix) {
        visit(step, terms_of(step, opcode));
      } else if (const int32_t tensor = known_tensor(step); tensor >= 0) {
        visit(step, {{tensor}});
      } else {
        visit(step, Terms(values_.at(step)));  // by the pass of its operand
      }
    }
    return values_.at(steps.empty() ? 0 : steps.back());
  }

 private:
  void count_uses(std::span<const int32_t> steps) {
    for (const int32_t step : steps) {
      const auto opcode = table_.section(kOpcode)[static_cast<size_t>(step)];
      for (const int32_t operand : table_.operands(step)) {
        ++uses_[operand];
        if (opcode == kMix) is_mixed_.insert(operand);
      }
      const bool consumes = opcode == kConv || opcode == kAvgPool || opcode == kMaxPool;
      if (consumes && known_slot(step) < 0) {
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
    const int32_t is_raw = known_->norm_of_slot[static_cast<size_t>(slot)];
    const int32_t tensor = builder_.add_tensor(position_.halvings, position_.in_channels,
                                               is_raw < 0 ? -1 : is_raw, slot);
    known_tensors_[slot] = tensor;
    return tensor;
  }

  Terms terms_of(int32_t step, int32_t opcode) const {
    Terms terms;
    if (opcode == kZero) return terms;
    int32_t weight = -1;
    if (opcode == kMix) {
      weight = position_.cell * table_.mixing_width() +
               table_.section(kParam)[static_cast<size_t>(step)];
    }
    for (const int32_t operand : table_.operands(step)) {
      for (const PassTerm& term : values_.at(operand)) {
        terms.push_back({term.tensor, weight >= 0 ? weight : term.weight});
      }
      if (weight >= 0) ++weight;
    }
    return terms;
  }

  // Sets the value of an expression and runs the pass over it, if it has consumers. In the first
  // cell nothing is kept, so that a chunk's shared steps and its lanes round alike.
  void visit(int32_t expression, Terms terms) {
    const auto consumers = consumers_.find(expression);
    const bool has_consumers = consumers != consumers_.end();
    // A term has one mixing weight at most: what is mixed once more must be a value of its own.
    const bool is_nested = is_mixed_.count(expression) > 0 &&
                           (terms.size() >= 2 || (terms.size() == 1 && terms[0].weight >= 0));
    const bool keeps = is_nested || (!is_first_ && terms.size() >= 2 && uses_[expression] >= 2);
    if (has_consumers || keeps) {
      Pass& pass = builder_.add_pass(position_.halvings, position_.in_channels, terms);
      if (keeps) terms = builder_.keep(pass);
      if (has_consumers) {
        for (const int32_t step : consumers->second) values_[step] = {{consume(pass, step)}};
      }
    }
    values_[expression] = std::move(terms);
  }

  int32_t consume(Pass& pass, int32_t step) {
    const auto opcode = table_.section(kOpcode)[static_cast<size_t>(step)];
    const auto param = table_.section(kParam)[static_cast<size_t>(step)];
    const int32_t slot = shared_ != nullptr ? shared_->slot_of(step) : -1;
    if (opcode == kConv) {
      return builder_.add_conv(pass, position_.unit + param, position_.out_channels, 1,
                               Part::kCells, slot);
    }
    const Use use = opcode == kAvgPool ? Use::kAvgPool : Use::kMaxPool;
    const int32_t out = builder_.add_tensor(position_.halvings, position_.out_channels, -1, slot);
    pass.consumers.push_back({use, -1, param, 1, out, -1});
    return out;
  }

  const ProgramTable& table_;
  Builder& builder_;
  const Position& position_;
  const bool is_first_;
  const SharedSchedule* known_;
  SharedSchedule* shared_;
  std::unordered_map<int32_t, Terms> values_;
  std::unordered_map<int32_t, int32_t> uses_;
  std::unordered_map<int32_t, std::vector<int32_t>> consumers_;
  std::unordered_set<int32_t> is_mixed_;
  std::unordered_map<int32_t, int32_t> known_tensors_;
};

Terms reduce(Builder& builder, const Position& position, const Terms& input) {
  Pass& halving = builder.add_pass(position.halvings, position.in_channels, input);
  const int32_t conv_a =
      builder.add_conv(halving, position.unit, position.out_channels, 2, Part::kFixed);
  const int32_t shortcut = builder.add_tensor(position.halvings + 1, position.out_channels, -1);
  halving.consumers.push_back({Use::kShortcut, position.unit + 2, 1, 1, shortcut, -1});
  Pass& second = builder.add_pass(position.halvings + 1, position.out_channels, {{conv_a}});
  const int32_t conv_b =
      builder.add_conv(second, position.unit + 1, position.out_channels, 1, Part::kFixed);
  return {{shortcut}, {conv_b}};
}

void classify(Builder& builder, const Position& position, Terms input, bool measures_last) {
  const int32_t channels = position.in_channels;
  const int32_t norm = builder.add_norm(position.unit, Part::kLast, channels);
  if (measures_last) {
    Pass& pass = builder.add_pass(position.halvings, channels, input);
    input = builder.keep(pass);
    pass.consumers.push_back({Use::kMeasure, -1, 1, 1, -1, norm});
  }
  Pass& pass = builder.add_pass(position.halvings, channels, input);
  pass.consumers.push_back({Use::kClassify, position.unit + 1, 1, 1, -1, norm});
}

}  // namespace

SharedSchedule schedule_shared(const ProgramTable& table, int32_t chunk) {
  SharedSchedule shared;
  const auto steps = table.shared(chunk);
  shared.expressions.push_back(0);
  for (const int32_t step : steps) {
    const auto opcode = table.section(kOpcode)[static_cast<size_t>(step)];
    if (opcode == kConv || opcode == kAvgPool || opcode == kMaxPool) {
      shared.expressions.push_back(step);
    }
  }
  Builder builder(table);
  const Position& stem = table.positions()[0];
  const Position& cell = table.positions()[1];
  Pass& images = builder.add_pass(0, stem.in_channels, {});
  images.reads_images = true;
  const int32_t input = builder.add_conv(images, stem.unit, stem.out_channels, 1, Part::kFixed, 0);
  CellBuilder(table, builder, cell, true, nullptr, &shared).run(steps, {{input}});
  builder.finish();
  shared.schedule = std::move(builder.schedule);
  shared.norm_of_slot.assign(shared.expressions.size(), -1);
  for (const StoredTensor& tensor : shared.schedule.tensors) {
    if (tensor.external >= 0)
      shared.norm_of_slot[static_cast<size_t>(tensor.external)] = tensor.norm;
  }
  return shared;
}

namespace {

// All that comes behind the stem. `shared`: what the first cell finds there already, or null.
void schedule_network(const ProgramTable& table, int32_t network, Builder& builder, Terms value,
                      const SharedSchedule* shared, bool measures_last) {
  const auto templates = table.network(network);
  for (const Position& position : table.positions()) {
    if (position.kind == kCell) {
      const auto steps = table.steps(templates[static_cast<size_t>(position.cell)]);
      const bool is_first = shared != nullptr && position.cell == 0;
      CellBuilder cell(table, builder, position, is_first, shared, nullptr);
      value = cell.run(steps, value);
    } else if (position.kind == kReduction) {
      value = reduce(builder, position, value);
    } else if (position.kind == kHead) {
      classify(builder, position, value, measures_last);
    }
  }
}

}  // namespace

Schedule schedule_lane(const ProgramTable& table, int32_t network, const SharedSchedule& shared,
                       bool measures_last) {
  Builder builder(table);
  const Position& stem = table.positions()[0];
  const int32_t input = builder.add_tensor(0, stem.out_channels, shared.norm_of_slot[0], 0);
  schedule_network(table, network, builder, {{input}}, &shared, measures_last);
  builder.finish();
  return std::move(builder.schedule);
}

Schedule schedule_training(const ProgramTable& table, int32_t network) {
  Builder builder(table);
  const Position& stem = table.positions()[0];
  Pass& images = builder.add_pass(0, stem.in_channels, {});
  images.reads_images = true;
  const int32_t input = builder.add_conv(images, stem.unit, stem.out_channels, 1, Part::kFixed);
  schedule_network(table, network, builder, {{input}}, nullptr, true);
  builder.finish(true);
  return std::move(builder.schedule);
}

}  // namespace nasfast
