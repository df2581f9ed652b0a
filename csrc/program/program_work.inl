// SPDX-License-Identifier: MIT
// What a table's cells have for channels, and how much arithmetic its lanes are.
// Included by program_table.h.

namespace nasfast {

inline std::vector<int32_t> ProgramTable::channels_at(const Position& p) const {
  const auto opcode = sections_[kOpcode], param = sections_[kParam];
  std::vector<int32_t> channels(opcode.size());
  channels[0] = p.in_channels;
  for (size_t x = 1; x < opcode.size(); ++x) {
    const auto args = operands(static_cast<int32_t>(x));
    if (is_convolution(opcode[x]) || opcode[x] == kCut) {
      channels[x] = units_of(p)[static_cast<size_t>(param[x])].out_channels;
    } else if (opcode[x] == kConcat) {
      channels[x] = p.out_channels;
    } else {
      channels[x] = channels[static_cast<size_t>(args.empty() ? 0 : args[0])];
    }
  }
  return channels;
}

inline int64_t ProgramTable::present_channels(int32_t expression,
                                              std::span<const int32_t> channels) const {
  const auto of = [&](int32_t x) { return int64_t{channels[static_cast<size_t>(x)]}; };
  if (sections_[kOpcode][static_cast<size_t>(expression)] != kConcat) return of(expression);
  int64_t present = 0;
  for (const int32_t operand : operands(expression)) present += of(operand);
  return present;
}

// Operands must fit in the cells that run them, and cells their place in the chain.
inline void ProgramTable::check_channels() const {
  const auto opcode = sections_[kOpcode], param = sections_[kParam];
  // What is free is left out of what follows. Of a cell's output that only a sum can take care, and
  // of the input, which is another cell's output, a convolution.
  const bool has_concat = std::find(opcode.begin(), opcode.end(), kConcat) != opcode.end();
  std::vector<bool> is_whole(opcode.size(), true);  // false: slots of it may be free
  for (size_t x = 0; x < opcode.size(); ++x) {
    const auto args = operands(static_cast<int32_t>(x));
    const bool reads_input = std::find(args.begin(), args.end(), 0) != args.end() ||
                             (opcode[x] == kZero && args.empty());
    require(!has_concat || !reads_input || is_convolution(opcode[x]), kOperands,
            "the input in convolutions alone, where there are concatenations");
    bool reads_whole = true;
    for (const int32_t arg : args) reads_whole = reads_whole && is_whole[static_cast<size_t>(arg)];
    is_whole[x] = reads_whole && opcode[x] != kConcat;
    require(reads_whole || opcode[x] == kSum, kOperands, "concatenations at a cell's end");
  }
  for (const Position& p : positions()) {
    if (p.kind != kCell) continue;
    const auto channels = channels_at(p);
    const auto of = [&](int32_t x) { return channels[static_cast<size_t>(x)]; };
    for (size_t x = 0; x < opcode.size(); ++x) {
      const auto args = operands(static_cast<int32_t>(x));
      if (is_convolution(opcode[x])) {
        const Unit& unit = units_of(p)[static_cast<size_t>(param[x])];
        require(of(args[0]) == unit.in_channels, kUnits, "the channels of what it convolves");
      } else if (opcode[x] == kCut) {
        require(channels[x] >= 1 && channels[x] <= of(args[0]), kUnits, "channels to cut down to");
      } else if (opcode[x] == kConcat) {
        int64_t width = 0;
        const auto slots = static_cast<uint32_t>(param[x]);
        for (const int32_t arg : args) width += of(arg);
        width += int64_t{std::bit_width(slots) - std::popcount(slots)} * of(args[0]);
        require(width <= p.out_channels, kOperands, "concatenations that fit the cell");
        // A classifier has weights for channels that are left out, too.
        const bool is_full = width == p.out_channels && (slots & (slots + 1)) == 0;
        require(is_full || positions().back().kind != kLinearHead, kOperands,
                "concatenations without free channels where the head is linear");
      } else {
        for (const int32_t arg : args) {
          require(of(arg) == channels[x], kOperands, "operands of equally many channels");
        }
      }
    }
    for (size_t n = 0; n < sections_[kNetworks].size() / static_cast<size_t>(num_cells_); ++n) {
      const int32_t t = network(static_cast<int32_t>(n))[static_cast<size_t>(p.cell)];
      require(of(steps(t).back()) == p.out_channels, kNetworks, "cells of their place's channels");
    }
  }
}

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
  for (auto h = static_cast<int32_t>(height), w = static_cast<int32_t>(width);
       pixels.size() <= positions().size();) {
    pixels.push_back(int64_t{h} * w);
    h = halved(h, settings().padding), w = halved(w, settings().padding);
  }
  const auto conv_macs = [&](const Unit& unit, int32_t halvings) {
    return weight_size(unit) * pixels[static_cast<size_t>(halvings)];
  };
  const auto opcode = sections_[kOpcode], param = sections_[kParam];
  // `present`: channels of the cell's input that are not zero whatever the images.
  const auto macs_of = [&](size_t x, const Position& p, int64_t present) {
    if (!is_convolution(opcode[x])) return int64_t{0};
    const Unit& unit = units_of(p)[static_cast<size_t>(param[x])];
    const int64_t macs = conv_macs(unit, p.halvings);
    return operands(static_cast<int32_t>(x))[0] == 0 ? macs / unit.in_channels * present : macs;
  };
  int64_t stem = 0, per_lane = 0;  // the latter: reductions and head, but for a projection
  for (const Position& p : positions()) {
    const auto own = units_of(p);
    if (is_stem(p.kind)) add(stem, conv_macs(own[0], 0));
    if (is_head(p.kind)) {
      const int64_t features = p.kind == kProjectedHead ? own[0].out_channels : p.in_channels;
      add(per_lane, (features + 1) * p.out_channels);
    }
    if (p.kind != kReduction) continue;
    for (const Unit& unit : own) add(per_lane, conv_macs(unit, p.halvings + 1));
  }
  std::vector<std::vector<int32_t>> channels;  // of every expression, by cell
  for (const Position& p : positions()) {
    if (p.kind == kCell) channels.push_back(channels_at(p));
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
      add(work.shared_macs, macs_of(x, positions()[1], positions()[1].in_channels));
    }
    for (const int32_t lane : chunk(k)) {
      add(work.macs, per_lane);
      const auto templates = network(lanes()[static_cast<size_t>(lane)].network);
      int64_t present = positions()[1].in_channels;
      for (const Position& p : positions()) {
        if (p.kind == kReduction) present = p.out_channels;
        if (p.kind == kProjectedHead) {
          const Unit& unit = units_of(p)[0];
          add(work.macs, conv_macs(unit, p.halvings) / unit.in_channels * present);
        }
        if (p.kind != kCell) continue;
        const auto cell = steps(templates[static_cast<size_t>(p.cell)]);
        for (const int32_t step : cell) {
          const auto x = static_cast<size_t>(step);
          if (p.cell == 0 && computed[x] == k) continue;
          ++work.evaluations[static_cast<size_t>(opcode[x])];
          add(work.cell_macs, macs_of(x, p, present));
        }
        if (cell.back() != 0) {
          present = present_channels(cell.back(), channels[static_cast<size_t>(p.cell)]);
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
