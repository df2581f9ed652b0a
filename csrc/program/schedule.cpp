// SPDX-License-Identifier: MIT
#include "program/schedule.h"

#include <algorithm>

#include "program/schedule_builder.h"

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

WeightViews::WeightViews(size_t num_units) {
  for (size_t unit = 0; unit < num_units; ++unit) {
    views_.push_back({static_cast<int32_t>(unit), {}});
  }
}

int32_t WeightViews::of(int32_t unit, const Ranges& inputs) {
  if (inputs.empty()) return unit;
  const auto next = static_cast<int32_t>(views_.size());
  const auto [at, is_new] = parts_.try_emplace({unit, inputs}, next);
  if (is_new) views_.push_back({unit, inputs});
  return at->second;
}

namespace {

Value reduce(Builder& builder, const Position& position, const Value& input) {
  const int32_t channels = position.out_channels;
  Pass& halving = builder.add_pass(position.halvings, input);
  const int32_t conv_a = builder.add_conv(halving, position.unit, channels, 2, Part::kFixed);
  const int32_t shortcut = builder.add_tensor(position.halvings + 1, channels, -1);
  const int32_t unit = position.unit + 2;
  halving.consumers.push_back({Use::kShortcut, unit, unit, 1, 1, shortcut, -1});
  Pass& second = builder.add_pass(position.halvings + 1, builder.value_of(conv_a));
  const int32_t conv_b = builder.add_conv(second, position.unit + 1, channels, 1, Part::kFixed);
  return {{{shortcut, -1, 0, channels}, {conv_b, -1, 0, channels}}, channels, {}};
}

Value max_pool(Builder& builder, const Position& position, const Value& input) {
  Pass& pass = builder.add_pass(position.halvings, input);
  const int32_t out = builder.add_tensor(position.halvings + 1, pass.channels, -1);
  pass.consumers.push_back({Use::kMaxHalve, -1, -1, 2, 2, out, -1});
  return builder.value_of(out, input.present);
}

void classify(Builder& builder, const Position& position, Value input, bool measures_last) {
  const bool is_linear = position.kind != kHead;
  int32_t norm = -1, unit = position.unit;
  if (position.kind == kProjectedHead) {
    // The classifier's mean is taken of the normalised result, without a ReLU: it reads what is
    // stored.
    Pass& pass = builder.add_pass(position.halvings, input);
    const int32_t kernel = 1, channels = builder.unit(unit).out_channels;
    norm = builder.add_norm(unit, Part::kLast, channels);
    const int32_t out = builder.add_tensor(position.halvings, channels, -1);
    const int32_t view = builder.view(unit, pass.inputs);
    pass.consumers.push_back({Use::kConv, unit, view, kernel, 1, out, norm});
    input = builder.value_of(out);
    ++unit;
  } else if (position.kind == kHead) {
    norm = builder.add_norm(unit, Part::kLast, position.in_channels);
    if (measures_last) {
      Pass& pass = builder.add_pass(position.halvings, input);
      input = builder.keep(pass);
      pass.consumers.push_back({Use::kMeasure, -1, -1, 1, 1, -1, norm});
    }
    ++unit;
  } else if (measures_last) {  // as a way back wants it
    input = builder.keep(builder.add_pass(position.halvings, input));
  }
  Pass& pass = builder.add_pass(position.halvings, input);
  pass.consumers.push_back({Use::kClassify, unit, -1, 1, 1, -1, norm, is_linear});
}

// The images through the stem.
Value stem(Builder& builder, const Position& position, int32_t external) {
  Pass& images = builder.add_pass(0, {{}, position.in_channels, {}});
  images.reads_images = true;
  return builder.value_of(
      builder.add_conv(images, position.unit, position.out_channels, 1, Part::kFixed, external));
}

}  // namespace

SharedSchedule schedule_shared(const ProgramTable& table, int32_t chunk, WeightViews& views) {
  SharedSchedule shared;
  const auto steps = table.shared(chunk);
  shared.expressions.push_back(0);
  for (const int32_t step : steps) {
    if (is_result(table.section(kOpcode)[static_cast<size_t>(step)])) {
      shared.expressions.push_back(step);
    }
  }
  Builder builder(table, views);
  const Value input = stem(builder, table.positions()[0], 0);
  builder.position = 1;
  schedule_cell(table, builder, table.positions()[1], steps, input, nullptr, &shared, true);
  builder.finish();
  shared.schedule = std::move(builder.schedule);
  shared.tensor_of_slot.assign(shared.expressions.size(), -1);
  for (size_t t = 0; t < shared.schedule.tensors.size(); ++t) {
    const int32_t slot = shared.schedule.tensors[t].external;
    if (slot >= 0) shared.tensor_of_slot[static_cast<size_t>(slot)] = static_cast<int32_t>(t);
  }
  return shared;
}

namespace {

// All that comes behind the stem. `shared`: what the first cell finds there already, or null;
// `is_scored`: the first cell rounds as if there were something.
void schedule_network(const ProgramTable& table, int32_t network, Builder& builder, Value value,
                      const SharedSchedule* shared, bool is_scored, bool measures_last) {
  const auto templates = table.network(network);
  for (const Position& position : table.positions()) {
    builder.position = static_cast<int32_t>(&position - table.positions().data());
    if (position.kind == kCell) {
      const auto steps = table.steps(templates[static_cast<size_t>(position.cell)]);
      const bool is_first = is_scored && position.cell == 0;
      value = schedule_cell(table, builder, position, steps, value, shared, nullptr, is_first);
    } else if (position.kind == kReduction) {
      value = reduce(builder, position, value);
    } else if (position.kind == kPooling) {
      value = max_pool(builder, position, value);
    } else if (is_head(position.kind)) {
      classify(builder, position, value, measures_last);
    }
  }
}

}  // namespace

Schedule schedule_lane(const ProgramTable& table, int32_t network, const SharedSchedule& shared,
                       bool measures_last, WeightViews& views, Reuse reuse) {
  Builder builder(table, views);
  const StoredTensor& stem = shared.tensor_of(0);
  const int32_t input = builder.add_tensor(0, stem.channels, stem.norm, 0, stem.is_rectified);
  schedule_network(table, network, builder, builder.value_of(input), &shared, true, measures_last);
  builder.finish(reuse);
  return std::move(builder.schedule);
}

namespace {

// Stem and all, with nothing shared.
Schedule schedule_whole(const ProgramTable& table, int32_t network, bool is_scored,
                        bool measures_last, WeightViews& views, Reuse reuse) {
  Builder builder(table, views);
  const Value input = stem(builder, table.positions()[0], -1);
  schedule_network(table, network, builder, input, nullptr, is_scored, measures_last);
  builder.finish(reuse);
  return std::move(builder.schedule);
}

}  // namespace

Schedule schedule_alone(const ProgramTable& table, int32_t network, bool measures_last,
                        WeightViews& views, Reuse reuse) {
  return schedule_whole(table, network, true, measures_last, views, reuse);
}

Schedule schedule_training(const ProgramTable& table, int32_t network, WeightViews& views) {
  return schedule_whole(table, network, false, true, views, Reuse::kNever);
}

}  // namespace nasfast
