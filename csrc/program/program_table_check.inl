// SPDX-License-Identifier: MIT
// The checks of ProgramTable, in the order in which they run; each relies on those before it.
// Arena and lanes bound the settings that are not checked at once.
// Included by program_table.h.

namespace nasfast {

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

inline void ProgramTable::check_settings() const {
  require(sections_[kSettings].size() == 11, kSettings, "11 numbers");
  const Settings& s = settings();
  const auto within = [](int32_t value, int32_t low, int32_t high, const char* wanted) {
    require(value >= low && value <= high, kSettings, wanted);
  };
  within(s.cell_mode, 0, kNumBatchNormModes - 1, "a known batch-norm mode");
  within(s.cell_affine, 0, 1, "an affine flag of 0 or 1");
  within(s.merge, 0, kNumMerges - 1, "a known level of merging");
  require(s.arena_size % kArenaAlignment == 0, kSettings, "an aligned arena size");
  require(s.units_per_cell >= 0, kSettings, "at least 0 units a cell");
  within(s.batch, 1, kMaxBatch, "a minibatch of 1..16777216");
  within(s.height, 1, kMaxSide, "a height of 1..65536");
  within(s.width, 1, kMaxSide, "a width of 1..65536");
  within(s.padding, 0, 1, "a padding of 0 or 1");
}

// One chain of channels and halvings from the images to the classes, each position with units of
// its own.
inline void ProgramTable::check_skeleton() {
  require(sections_[kPositions].size() % 7 == 0, kPositions, "7 columns");
  require(sections_[kUnits].size() % 10 == 0, kUnits, "10 columns");
  const auto all = positions();
  require(all.size() >= 3 && is_stem(all[0].kind) && all[1].kind == kCell, kPositions,
          "a stem and a search cell first");
  int64_t unit = 0;
  int32_t channels = all[0].in_channels, halvings = 0, layer = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const Position& p = all[i];
    require(p.kind >= kStem && p.kind < kNumPositionKinds, kPositions, "a known kind");
    require(is_stem(p.kind) == (i == 0), kPositions, "one stem");
    require(is_head(p.kind) == (i + 1 == all.size()), kPositions, "one head, at the end");
    // Rows of values are not negative where convolutions put a ReLU out, and only there.
    require(
        (all[0].kind == kReluStem) ? p.kind != kReduction && p.kind != kHead : p.kind < kReluStem,
        kPositions, "kinds that go with the stem's");
    const bool is_cell = p.kind == kCell, is_layer = is_cell || p.kind == kReduction;
    require(p.in_channels == channels, kPositions, "the channels of the position before");
    require(p.kind != kPooling || p.out_channels == channels, kPositions,
            "pooling that keeps the channels");
    channels = p.out_channels;
    require(std::min(p.in_channels, channels) >= 1, kPositions, "positive channels");
    require(std::max(p.in_channels, channels) <= most_channels(), kPositions,
            "at most 65536 channels, and values whose bytes fit int64");
    require(p.kind != kReduction || settings().padding == 0, kPositions,
            "reductions without padding");
    require(p.halvings == halvings, kPositions, "as many halvings as before it");
    require(p.unit == unit, kPositions, "units of its own, behind those of the position before");
    require(p.layer == (is_layer ? layer : -1), kPositions, "layers in order");
    require(p.cell == (is_cell ? num_cells_ : -1), kPositions, "cells in order");
    unit += num_units(p.kind);
    halvings += halves(p.kind);
    layer += is_layer;
    num_cells_ += is_cell;
  }
  require(units().size() == static_cast<uint64_t>(unit), kUnits, "those of all positions, no more");
}

// Channels that a value of the largest minibatch may have.
inline int64_t ProgramTable::most_channels() const {
  const Settings& s = settings();
  const int64_t numbers = std::numeric_limits<int64_t>::max() / int64_t{sizeof(float)};
  return std::min<int64_t>(
      kMaxChannels, numbers / (int64_t{s.batch} * (s.height + s.padding) * (s.width + s.padding)));
}

inline void ProgramTable::check_units() const {
  require_range(kUnits, -1, int64_t{1} << 31);
  const auto has_norm = [](const Unit& u) { return u.gamma >= 0 || u.mean >= 0; };
  int64_t end = 0;  // of the tensors so far
  for (const Unit& unit : units()) {
    require(unit.in_channels >= 0 && unit.out_channels >= 0 &&
                std::max(unit.in_channels, unit.out_channels) <= most_channels(),
            kUnits, "at most 65536 channels, and values whose bytes fit int64");
    require(unit.momentum >= 0 && unit.momentum <= 1000000, kUnits, "a momentum of 0..1000000");
  }
  for (const Position& p : positions()) {
    const int64_t in = p.in_channels, out = p.out_channels;
    const auto own = units_of(p);
    if (is_head(p.kind)) {
      int64_t features = in;
      if (p.kind == kHead) {
        require(own[0].kernel == 0 && own[0].weight < 0 && own[0].bias < 0, kUnits,
                "batch norm alone before the classifier");
        end = check_tensors(own[0], 0, in, end);
      } else if (p.kind == kProjectedHead) {
        features = own[0].out_channels;
        end = check_conv(own[0], in, features, end);
        require(own[0].kernel == 1, kUnits, "a 1x1 convolution in a projected head");
      }
      const Unit& classifier = own.back();
      require(classifier.kernel == 0 && classifier.weight >= 0 && classifier.bias >= 0, kUnits,
              "a classifier with weight and bias");
      end = check_tensors(classifier, features * out, out, end);
      require(!has_norm(classifier), kUnits, "a classifier without batch norm");
    } else if (p.kind == kReduction) {
      end = check_conv(own[0], in, out, end);
      end = check_conv(own[1], out, out, end);
      end = check_conv(own[2], in, out, end);
      require(own[2].kernel == 1 && own[2].bias < 0 && !has_norm(own[2]), kUnits,
              "a 1x1 convolution alone in a shortcut");
    } else if (is_stem(p.kind)) {
      end = check_conv(own[0], in, out, end);
    } else {
      for (const Unit& unit : own) {
        end = unit.kernel == 0 ? check_tensors(unit, 0, 0, end) : check_conv(unit, end);
      }
    }
  }
}

// Checks one convolution and returns where its tensors end.
inline int64_t ProgramTable::check_conv(const Unit& unit, int64_t end) const {
  require(unit.kernel % 2 == 1 && unit.kernel <= kMaxKernel, kUnits, "odd kernels of 1..31");
  require(unit.weight >= 0, kUnits, "a weight in every convolution");
  require(std::min(unit.in_channels, unit.out_channels) >= 1, kUnits,
          "positive channels of a convolution");
  return check_tensors(unit, weight_size(unit), unit.out_channels, end);
}

inline int64_t ProgramTable::check_conv(const Unit& unit, int64_t in, int64_t out,
                                        int64_t end) const {
  require(unit.in_channels == in && unit.out_channels == out, kUnits,
          "the channels of its position");
  return check_conv(unit, end);
}

// Checks where the tensors of a unit lie, behind `end` (`weight` numbers, then `channels` each; 0
// where there must be none), and returns where they end.
inline int64_t ProgramTable::check_tensors(const Unit& unit, int64_t weight, int64_t channels,
                                           int64_t end) const {
  require((unit.gamma < 0) == (unit.beta < 0), kUnits, "gamma and beta, or neither");
  require((unit.mean < 0) == (unit.variance < 0), kUnits, "mean and variance, or neither");
  const std::array<int32_t, 6> offsets = {unit.weight, unit.bias, unit.gamma,
                                          unit.beta,   unit.mean, unit.variance};
  for (size_t field = 0; field < offsets.size(); ++field) {
    const int64_t offset = offsets[field], size = field == 0 ? weight : channels;
    if (offset < 0) continue;
    require(size > 0, kUnits, "no tensors in a unit without a use for them");
    require(offset % kArenaAlignment == 0, kUnits, "aligned offsets");
    require(offset >= end, kUnits, "tensors one after another");
    end = offset + size;
    require(end <= settings().arena_size, kUnits, "tensors within the arena");
  }
  return end;
}

inline void ProgramTable::check_modes(BatchNormMode fixed, BatchNormMode last) const {
  const int32_t cells = settings().cell_mode;
  const std::array<int32_t, kNumPositionKinds> modes = {fixed, cells, fixed, last,
                                                        fixed, cells, last,  last};
  for (const Position& p : positions()) {
    if (modes[static_cast<size_t>(p.kind)] != kRunning) continue;
    // Shortcut and classifier, the last of their positions, have no batch norm.
    const size_t unnormalised = p.kind == kReduction || is_head(p.kind) ? 1 : 0;
    const auto own = units_of(p);
    for (const Unit& unit : own.first(own.size() - unnormalised)) {
      const bool is_used = unit.kernel > 0 || p.kind == kHead;
      require(!is_used || unit.mean >= 0, kUnits, "running statistics for mode running");
    }
  }
}

inline void ProgramTable::check_expressions() {
  const auto opcode = sections_[kOpcode], param = sections_[kParam];
  require(!opcode.empty() && opcode[0] == kInput, kOpcode, "the cell's input first");
  require(param.size() == opcode.size(), kParam, "one entry for each expression");
  require_range(kOpcode, 0, kNumOpcodes);
  require_begins(kOperandBegin, kOperands, opcode.size());
  std::vector<bool> is_conv(static_cast<size_t>(settings().units_per_cell), false);
  for (size_t x = 0; x < opcode.size(); ++x) {
    const auto args = operands(static_cast<int32_t>(x));
    for (const int32_t arg : args) {
      require(arg >= 0 && static_cast<size_t>(arg) < x, kOperands, "earlier expressions");
    }
    require(!is_convolution(opcode[x]) ||
                (opcode[x] == kConvRelu) == (positions()[0].kind == kReluStem),
            kOpcode, "convolutions that go with the stem's");
    // Mixing weights scale whole terms, and may make values negative.
    require(opcode[x] != kMix || positions()[0].kind == kStem, kOpcode,
            "mixed operations behind a stem without ReLU");
    require((opcode[x] != kConcat && opcode[x] != kCut) || positions()[0].kind == kReluStem,
            kOpcode, "concatenations and cuts behind a stem with ReLU");
    if (opcode[x] == kInput) {
      require(x == 0 && args.empty(), kOpcode, "one input, without operands");
    } else if (opcode[x] == kZero) {
      require(args.size() <= 1, kOperands, "at most one operand of zero");
    } else if (opcode[x] == kSum) {
      require(args.size() >= 2, kOperands, "at least two operands of a sum");
    } else if (opcode[x] == kMix || opcode[x] == kConcat) {
      require(!args.empty(), kOperands, "at least one operand of a mix or concatenation");
    } else {
      require(args.size() == 1, kOperands, "one operand");
    }
    if (is_convolution(opcode[x]) || opcode[x] == kCut) {
      require(param[x] >= 0 && param[x] < settings().units_per_cell, kParam, "a unit of the cell");
      if (opcode[x] != kCut) is_conv[static_cast<size_t>(param[x])] = true;
    } else if (opcode[x] == kConcat) {
      const auto slots = static_cast<uint32_t>(param[x]);
      require(param[x] >= 0 && slots < (1u << kMaxSlots) &&
                  static_cast<size_t>(std::popcount(slots)) == args.size(),
              kParam, "a slot for each operand of a concatenation");
    } else if (opcode[x] == kAvgPool || opcode[x] == kMaxPool) {
      require(param[x] >= 1 && param[x] <= kMaxKernel && param[x] % 2 == 1, kParam,
              "odd pooling kernels of 1..31");
    } else if (opcode[x] == kMix) {
      const int64_t end = int64_t{param[x]} + static_cast<int64_t>(args.size());
      require(param[x] >= 0 && end <= kMaxMixing, kParam, "mixing weights 0..65535");
      mixing_width_ = std::max(mixing_width_, static_cast<int32_t>(end));
    } else {
      require(param[x] == -1, kParam, "-1 where an operation has none");
    }
  }
  for (const Position& p : positions()) {
    if (p.kind != kCell) continue;
    for (size_t unit = 0; unit < is_conv.size(); ++unit) {
      require(!is_conv[unit] || units_of(p)[unit].kernel > 0, kUnits,
              "a convolution where one is used");
    }
  }
}

// Walks every template as a backend would, checking that each register holds what is read.
inline void ProgramTable::check_templates() const {
  require_begins(kTemplateBegin, kSteps, sections_[kNumRegisters].size());
  require(sections_[kRegisters].size() == sections_[kSteps].size(), kRegisters,
          "one for each step");
  require_range(kSteps, 0, static_cast<int64_t>(sections_[kOpcode].size()));
  require_begins(kStepOperandBegin, kOperandRegisters, sections_[kSteps].size());
  std::vector<int32_t> holds;
  for (int32_t t = 0; t < num_templates(); ++t) {
    const int32_t count = sections_[kNumRegisters][static_cast<size_t>(t)];
    const auto template_steps = steps(t);
    require(!template_steps.empty(), kTemplateBegin, "at least one step a template");
    require(count >= 1 && static_cast<size_t>(count) <= template_steps.size() + 1, kNumRegisters,
            "at most one register a step, and the input's");
    holds.assign(static_cast<size_t>(count), -1);
    holds[0] = 0;
    for (size_t k = 0; k < template_steps.size(); ++k) {
      const int32_t out = registers(t)[k];
      require(out >= 1 && out < count, kRegisters, "a register of the template, not the input's");
      const auto args = operands(template_steps[k]);
      const auto sources = operand_registers(t, static_cast<int32_t>(k));
      require(sources.size() == args.size(), kStepOperandBegin, "a register for each operand");
      for (size_t i = 0; i < args.size(); ++i) {
        require(sources[i] >= 0 && sources[i] < count, kOperandRegisters,
                "registers of the template");
        require(holds[static_cast<size_t>(sources[i])] == args[i], kOperandRegisters,
                "registers that hold the operands");
        require(sources[i] != out, kRegisters, "no step that works in place");
      }
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
  int64_t weight_sets = 0, data_orders = 0;
  for (const Lane& lane : lanes()) {
    require(lane.network >= 0 && lane.network < num_networks, kLanes, "a network that exists");
    require(lane.weight_set >= 0 && lane.data_order >= 0, kLanes,
            "no negative weight set or order");
    weight_sets = std::max(weight_sets, int64_t{lane.weight_set} + 1);
    data_orders = std::max(data_orders, int64_t{lane.data_order} + 1);
  }
  require(weight_sets == settings().num_weight_sets, kSettings, "the weight sets that lanes name");
  require(data_orders == settings().num_data_orders, kSettings, "the data orders that lanes name");
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
    const Lane& first = lanes()[static_cast<size_t>(members[0])];
    for (const int32_t member : members) {
      const Lane& lane = lanes()[static_cast<size_t>(member)];
      require(lane.weight_set == first.weight_set && lane.data_order == first.data_order,
              kLaneOrder, "one weight set and one data order a chunk");
    }
    int32_t last = 0;
    for (const int32_t x : shared(k)) {
      require(x > last, kShared, "ascending expressions");
      const int32_t opcode = sections_[kOpcode][static_cast<size_t>(x)];
      require(opcode != kMix, kShared, "no mixed operations");
      require(opcode != kConcat, kShared, "no concatenations");
      for (const int32_t arg : operands(x)) {
        require(arg == 0 || computed[static_cast<size_t>(arg)] == k, kShared,
                "operands before their users");
      }
      computed[static_cast<size_t>(x)] = k;
      last = x;
    }
  }
}

}  // namespace nasfast
