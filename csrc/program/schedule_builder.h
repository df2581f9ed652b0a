// SPDX-License-Identifier: MIT
// How schedules are made: values as lists of terms, and passes over them; private to the sources.
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "program/program_table.h"
#include "program/schedule.h"

namespace nasfast {

using Terms = std::vector<PassTerm>;

// Whether an expression has a result in memory; of others only terms are known.
constexpr bool is_result(int32_t opcode) {
  return is_convolution(opcode) || opcode == kAvgPool || opcode == kMaxPool;
}

// A sum of terms.
struct Value {
  Terms terms;
  int32_t channels = 0;  // that it has
  Ranges present;        // which of the natural ones these are; empty: all, in their order
};

// The same with zeros where it has no channels.
inline Value expanded(Value value, int32_t channels) {
  if (value.present.empty()) return value;
  for (PassTerm& term : value.terms) {  // each lies within one range
    int32_t begin = 0;
    for (const Range& range : value.present) {
      if (term.to < begin + range.count) {
        term.to += range.begin - begin;
        break;
      }
      begin += range.count;
    }
  }
  value.channels = channels;
  value.present.clear();
  return value;
}

// Builds the passes of one lane, or of what the lanes of a chunk share.
class Builder {
 public:
  Builder(const ProgramTable& table, WeightViews& views) : table_(table), views_(views) {}

  Schedule schedule;
  int32_t position = 0;  // that passes are added for

  int32_t add_tensor(int32_t halvings, int32_t channels, int32_t norm, int32_t external = -1,
                     bool is_rectified = false) {
    const bool is_wide = channels > table_.positions()[0].out_channels << halvings;
    schedule.tensors.push_back({halvings, channels, norm, is_rectified, external, -1, is_wide});
    return static_cast<int32_t>(schedule.tensors.size()) - 1;
  }

  // All of a tensor, as a value.
  Value value_of(int32_t index, Ranges present = {}) const {
    const int32_t channels = tensor(index).channels;
    return {{{index, -1, 0, channels}}, channels, std::move(present)};
  }

  int32_t add_norm(int32_t unit, Part part, int32_t channels) {
    schedule.norms.push_back({unit, part, channels});
    return static_cast<int32_t>(schedule.norms.size()) - 1;
  }

  Pass& add_pass(int32_t halvings, const Value& value) {
    Pass pass;
    pass.position = position;
    pass.halvings = halvings;
    pass.channels = value.channels;
    pass.terms = value.terms;
    pass.inputs = value.present;
    pass.is_ranged = std::any_of(pass.terms.begin(), pass.terms.end(), [&](const PassTerm& term) {
      return tensor(term.tensor).is_rectified || !covers(term, pass.channels);
    });
    schedule.passes.push_back(std::move(pass));
    return schedule.passes.back();
  }

  // Adds a convolution of the pass's value and returns its raw result.
  int32_t add_conv(Pass& pass, int32_t unit, int32_t channels, int32_t stride, Part part,
                   int32_t external = -1) {
    const int32_t norm = add_norm(unit, part, channels);
    const int32_t out =
        add_tensor(pass.halvings + (stride == 2), channels, norm, external, is_rectified());
    const int32_t kernel = table_.units()[static_cast<size_t>(unit)].kernel;
    const int32_t view = views_.of(unit, pass.inputs);
    pass.consumers.push_back({Use::kConv, unit, view, kernel, stride, out, norm});
    return out;
  }

  // Keeps the pass's value in a tensor of its own, unless it is one already.
  Value keep(Pass& pass) {
    if (is_value(pass)) return {pass.terms, pass.channels, pass.inputs};
    pass.kept = add_tensor(pass.halvings, pass.channels, -1);
    return value_of(pass.kept, pass.inputs);
  }

  const Unit& unit(int32_t index) const { return table_.units()[static_cast<size_t>(index)]; }
  int32_t view(int32_t unit, const Ranges& inputs) { return views_.of(unit, inputs); }

  // Whether the results of the network's convolutions go through a ReLU.
  bool is_rectified() const { return table_.positions()[0].kind == kReluStem; }

  const StoredTensor& tensor(int32_t index) const {
    return schedule.tensors[static_cast<size_t>(index)];
  }

  // Whether a sum is one tensor as it stands.
  bool is_value(const Pass& pass) const {
    return pass.terms.size() == 1 && tensor(pass.terms[0].tensor).norm < 0 &&
           pass.terms[0].weight < 0 && covers(pass.terms[0], pass.channels);
  }

  // Whether a term has all channels of a sum, and these alone.
  bool covers(const PassTerm& term, int32_t channels) const {
    return term.to == 0 && term.count == channels && tensor(term.tensor).channels == channels;
  }

  // What is the same of every pass, once all are known: what need not be kept, what is read in
  // place, and buffers.
  void finish(Reuse reuse = Reuse::kWithinPass) {
    std::vector<bool> is_read(schedule.tensors.size(), false);
    for (const Pass& pass : schedule.passes) {
      for (const PassTerm& term : pass.terms) is_read[static_cast<size_t>(term.tensor)] = true;
    }
    for (Pass& pass : schedule.passes) {
      // All its readers were consumers of the pass itself. Rounding is the same either way.
      if (pass.kept >= 0 && !is_read[static_cast<size_t>(pass.kept)]) pass.kept = -1;
    }
    for (Pass& pass : schedule.passes) {
      pass.in_place = pass.kept < 0 && is_value(pass);
    }
    if (reuse != Reuse::kNever) return assign_buffers(reuse);
    for (StoredTensor& tensor : schedule.tensors) tensor.buffer = schedule.num_buffers++;
  }

 private:
  // A buffer is free again in the pass that reads its tensor last, which may write its results
  // there: within a block of images a row is read before anything is written in its place. Not so
  // where the tensor itself is what pools read, nor where the image is halved, nor where a result
  // has more channels than the tensor: its rows may reach into some that are still to be read.
  // Outputs of cells of many blocks are wider than all else, so they have buffers of their own.
  void assign_buffers(Reuse reuse) {
    const size_t count = schedule.passes.size();
    std::vector<size_t> last_use(schedule.tensors.size(), 0);
    for (size_t p = 0; p < count; ++p) {
      for (const PassTerm& term : schedule.passes[p].terms) {
        last_use[static_cast<size_t>(term.tensor)] = p;
      }
    }
    std::vector<int32_t> free_narrow, free_wide;
    const auto release = [&](int32_t index) {
      const int32_t buffer = tensor(index).buffer;
      std::vector<int32_t>& free = tensor(index).is_wide ? free_wide : free_narrow;
      if (buffer >= 0 && std::find(free.begin(), free.end(), buffer) == free.end()) {
        free.push_back(buffer);
      }
    };
    const auto take = [&](int32_t index) {
      if (index < 0) return;
      StoredTensor& out = schedule.tensors[static_cast<size_t>(index)];
      if (out.external >= 0) return;
      std::vector<int32_t>& free = out.is_wide ? free_wide : free_narrow;
      if (free.empty()) {
        out.buffer = out.is_wide ? schedule.num_wide_buffers++ : schedule.num_buffers++;
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
      int32_t most = pass.kept >= 0 ? pass.channels : 0, fewest = kMaxChannels;
      for (const Consumer& consumer : pass.consumers) {
        if (consumer.out >= 0) most = std::max(most, tensor(consumer.out).channels);
      }
      for (const PassTerm& term : pass.terms) {
        fewest = std::min(fewest, tensor(term.tensor).channels);
      }
      const bool keeps_terms = reuse == Reuse::kBetweenPasses || halves || most > fewest ||
                               (pass.in_place && pass.needs_raw());
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
  WeightViews& views_;
};

// The value of a cell. `shared`: where results go when the steps are those that a chunk shares.
// `known`: what is there already, in the first cell of a lane.
Value schedule_cell(const ProgramTable& table, Builder& builder, const Position& position,
                    std::span<const int32_t> steps, const Value& input, const SharedSchedule* known,
                    SharedSchedule* shared, bool is_first);

}  // namespace nasfast
