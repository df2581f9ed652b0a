// SPDX-License-Identifier: MIT
// Chunks of small tables on the CPU engine against an interpreter in double precision, and what the
// engine refuses.
#include "engine/engine.h"

#include <algorithm>
#include <functional>
#include <string>

#include "check.h"
#include "engine_runs.h"
#include "interpreter.h"

namespace {

using namespace engine_runs;
using nasfast::kBatch, nasfast::kRecalibrate, nasfast::kRunning, nasfast::BatchNormMode;
using nasfast::kernels::cpu::Isa, nasfast::kernels::cpu::Precision;

// Relative to the largest logit of a lane. fp32: rounding, which batch norm of few numbers
// magnifies. bf16: 8 bits in each of a dozen layers; a wrong tap or image shows as about 1.
constexpr double kTolerance[] = {1e-5, 0.08};
// Chains of narrow blocks between ReLUs, where a channel may be positive in few pixels.
constexpr double kBf16OfBlocks = 0.2;

// Every lane of the only chunk, on every instruction set and both precisions.
void check_table(const Sections& sections, const Modes& modes, const Data& data,
                 const Data* calibration, double bf16_tolerance = kTolerance[1]) {
  const Network network(sections);
  const auto arena = random_arena(network.table);
  interpreter::Interpreter definition(network.table, arena.data(), modes.fixed, modes.last);
  const Data& measured = calibration != nullptr ? *calibration : data;
  const auto chunk = network.table.chunk(0);
  std::vector<std::vector<double>> expected;
  for (const int32_t lane : chunk) {
    const int32_t n = network.table.lanes()[static_cast<size_t>(lane)].network;
    expected.push_back(
        definition.run(n, map_of(data), data.sizes, map_of(measured), measured.sizes));
  }
  const auto images = static_cast<size_t>(data.count());
  const size_t classes = expected[0].size() / images;
  for (const Isa isa : nasfast::kernels::cpu::supported_isas()) {
    for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
      auto options = options_of(data, isa, precision, 2);
      options.fixed = modes.fixed;
      options.last = modes.last;
      const Scores scores = run(network.table, 0, arena.data(), data, options,
                                calibration != nullptr ? calibration->get() : nasfast::Images{});
      const bool is_narrow = precision == Precision::kBf16;
      for (size_t lane = 0; lane < chunk.size(); ++lane) {
        const float* logits = scores.logits.data() + lane * images * classes;
        const std::string what = std::string(name_of(isa)) + (is_narrow ? " bf16" : " fp32") +
                                 ", lane " + std::to_string(lane) + ", modes " +
                                 std::to_string(modes.cells) + std::to_string(modes.fixed) +
                                 std::to_string(modes.last) + ", " + std::to_string(images) +
                                 " images of " + std::to_string(data.height) + "x" +
                                 std::to_string(data.width);
        check_lane(logits, expected[lane], is_narrow ? bf16_tolerance : kTolerance[0], what);
        for (size_t i = 0; i < images; ++i) {
          const size_t at = lane * images + i;
          check_scores(logits + i * classes, static_cast<int64_t>(classes), data.labels[i],
                       scores.loss[at], scores.correct[at] == 1);
        }
      }
    }
  }
}

void check_two_stages() {
  const std::vector<Modes> all = {{kBatch, kBatch, kBatch},
                                  {kRunning, kRunning, kRunning},
                                  {kRecalibrate, kRecalibrate, kRecalibrate},
                                  {kBatch, kRunning, kRecalibrate},
                                  {kRecalibrate, kBatch, kRunning},
                                  {kRunning, kRecalibrate, kBatch}};
  size_t turn = 0;
  for (const int64_t batch : {1, 5, 17}) {
    for (const int32_t side : {7, 8}) {
      for (const int32_t channels : {3, 4}) {
        for (int32_t k = 0; k < 2; ++k) {
          const Modes& modes = all[turn++ % all.size()];
          const auto sections =
              two_stages({channels, k == 0 ? 8 : channels, 13 - channels}, modes.cells, 16,
                         k == 1 ? std::vector{1, 3} : std::vector<int32_t>{});
          const int32_t width = side == 7 ? 5 : 8;
          const Data data(channels, side, width, {batch, 3}, turn);
          // The second calibration minibatch has a partly filled block behind a full one.
          const Data calibration(channels, side, width, {4, 19}, turn + 100);
          check_table(sections, modes, data, turn % 4 == 0 ? nullptr : &calibration);
        }
      }
    }
  }
}

// Cells that end in concatenations, with and without free slots.
void check_blocks() {
  const std::vector<Modes> all = {{kBatch, kBatch, kBatch},
                                  {kRunning, kRecalibrate, kBatch},
                                  {kRecalibrate, kRecalibrate, kRecalibrate},
                                  {kBatch, kRunning, kRecalibrate},
                                  {kRunning, kRunning, kRunning},
                                  {kRecalibrate, kBatch, kRunning}};
  const std::vector<small_tables::BlockSizes> blocks = {
      {3, 4, 2, 3, 4}, {1, 3, 1, 5, 2}, {5, 17, 4, 6, 1}, {3, 6, 6, 1, 9}};
  const std::vector<std::vector<int32_t>> vertices = {
      {3, 4, 5, 7}, {1, 2, 2, 3}, {5, 17, 33, 9}, {3, 5, 9, 31}};
  struct Shape {
    int32_t height, width;
    std::vector<int64_t> sizes;
  };
  const std::vector<Shape> shapes = {{7, 5, {5, 3}}, {8, 8, {17}}, {4, 9, {1, 2}}, {5, 6, {33, 1}}};
  size_t turn = 0;
  for (size_t k = 0; k < 3 * blocks.size(); ++k, ++turn) {
    const Shape& shape = shapes[(k + k / 4) % shapes.size()];
    const Modes& modes = all[turn % all.size()];
    const auto& sizes = blocks[k % blocks.size()];
    const auto& channels = vertices[k % vertices.size()];
    const Data data(sizes.image, shape.height, shape.width, shape.sizes, turn);
    const Data calibration(sizes.image, shape.height, shape.width, {4, 19}, turn + 100);
    const Data* measured = turn % 4 == 0 ? nullptr : &calibration;
    const auto in_blocks = k % 2 == 0 ? std::vector{1, 2, 3, 4, 5, 6, 9} : std::vector<int32_t>{};
    check_table(prepared(small_tables::choice_blocks(sizes), modes, in_blocks), modes, data,
                measured, kBf16OfBlocks);
    const Data other(channels[0], shape.height, shape.width, shape.sizes, turn + 50);
    const Data others(channels[0], shape.height, shape.width, {20, 3}, turn + 150);
    const auto in_vertices = k % 2 == 0 ? std::vector<int32_t>{} : std::vector{1, 2, 3, 4, 5, 10};
    check_table(prepared(small_tables::vertex_cells(channels), modes, in_vertices), modes, other,
                measured != nullptr ? &others : nullptr, kBf16OfBlocks);
  }
}

// Images down to one pixel, which max pooling leaves as they are.
void check_small_blocks() {
  const Modes modes = {kRunning, kRunning, kRunning};
  for (const int32_t height : {1, 2, 3}) {
    for (const int32_t width : {1, 2, 5}) {
      const Data data(3, height, width, {3}, 6);
      check_table(prepared(small_tables::choice_blocks(), modes, {1, 2}), modes, data, nullptr);
      check_table(prepared(small_tables::vertex_cells(), modes, {1, 2}), modes, data, nullptr);
    }
  }
}

// Rows so long that they are processed one or a few at a time, with any ratio of channels.
void check_long_rows() {
  for (const auto& channels :
       std::vector<std::vector<int32_t>>{{3, 2, 16, 3}, {3, 9, 8, 5}, {1, 1, 9, 2}}) {
    const Data data(channels[0], 5, 700, {1}, 1);
    auto sections = two_stages(channels, kBatch, 16, {1});
    sections[nasfast::kChunkBegin] = {0, 5, 16};  // fewer lanes to interpret
    sections[nasfast::kSharedBegin] = {0, 1, 1};
    const Modes modes = {kBatch, kBatch, kBatch};
    check_table(sections, modes, data, nullptr);
    const small_tables::BlockSizes sizes = {channels[0], channels[1], 3, 2, 4};
    check_table(prepared(small_tables::choice_blocks(sizes), modes, {1, 2}), modes, data, nullptr);
    check_table(prepared(small_tables::vertex_cells(channels), modes, {1}), modes, data, nullptr);
  }
}

// Images with more channels than any stage.
void check_wide_images() {
  const Data data(33, 3, 4, {2}, 1);
  const Modes modes = {kBatch, kBatch, kBatch};
  check_table(two_stages({33, 2, 4}, kBatch, 16, {1}), modes, data, nullptr);
  check_table(prepared(small_tables::choice_blocks({33, 2, 1, 2, 1}), modes, {1, 2}), modes, data,
              nullptr);
}

// One cell without running statistics, down to one image of one pixel, whose variance is 0.
void check_one_cell() {
  for (const int32_t height : {1, 2, 5}) {
    for (const int32_t width : {1, 4}) {
      for (const int64_t batch : {1, 16, 33}) {
        const Data data(3, height, width, {batch}, 5);
        check_table(small_tables::one_cell(), {kBatch, kBatch, kBatch}, data, nullptr);
      }
    }
  }
}

// A run is refused with a message that names what is wrong.
void expect_refused(const char* name, const std::function<void()>& run_it) {
  try {
    run_it();
    check::fail(name, 0, "not refused");
  } catch (const std::invalid_argument& error) {
    if (std::string(error.what()).find(name) == std::string::npos) {
      check::fail(name, 0, std::string("not named: ") + error.what());
    }
  }
}

void check_refusals() {
  const Network network(small_tables::one_cell());
  const auto arena = random_arena(network.table);
  const Data good(3, 4, 4, {2, 1}, 1);
  const auto options = options_of(good, Isa::kBaseline, Precision::kFp32);
  const auto with = [&](const char* name, int32_t chunk, const auto& change) {
    expect_refused(name, [&] {
      Data data = good;
      RunOptions changed = options;
      change(data, changed);
      run(network.table, chunk, arena.data(), data, changed);
    });
  };
  const auto nothing = [](Data&, RunOptions&) {};
  with("chunk", 1, nothing);
  with("chunk", -1, nothing);
  with("threads", 0, [](Data&, RunOptions& o) { o.threads = 0; });
  with("images", 0, [](Data&, RunOptions& o) { o.height = 0; });
  with("images", 0, [](Data&, RunOptions& o) { o.width = nasfast::kMaxSide + 1; });
  with("sizes", 0, [](Data& d, RunOptions&) { d.sizes.clear(); });
  with("sizes", 0, [](Data& d, RunOptions&) { d.sizes = {3, 0}; });
  with("sizes", 0, [](Data& d, RunOptions&) { d.sizes = {-1, 4}; });
  with("labels", 0, [](Data& d, RunOptions&) { d.labels[2] = 5; });
  with("labels", 0, [](Data& d, RunOptions&) { d.labels[0] = -1; });
  with("running", 0, [](Data&, RunOptions& o) { o.fixed = kRunning; });
  with("running", 0, [](Data&, RunOptions& o) { o.last = kRunning; });
  const auto bare = [&](const int64_t* labels, const nasfast::Images& calibration,
                        const nasfast::RunResults& results) {
    nasfast::run_chunk(network.table, 0, arena.data(), good.get(), labels, calibration, options,
                       results);
  };
  std::vector<float> loss(3), logits(15);
  expect_refused("labels", [&] { bare(nullptr, {}, {nullptr, loss.data(), nullptr}); });
  const std::vector<int64_t> empty = {0};
  expect_refused("sizes", [&] {
    bare(nullptr, {good.images.data(), empty}, {logits.data(), nullptr, nullptr});
  });
  // Everything is optional that is not asked for.
  bare(nullptr, {}, {logits.data(), nullptr, nullptr});
  bare(nullptr, {}, {});
  bare(good.labels.data(), {}, {nullptr, loss.data(), nullptr});
  CHECK(loss[2] > 0);
}

}  // namespace

int main() {
  check_two_stages();
  check_blocks();
  check_small_blocks();
  check_long_rows();
  check_wide_images();
  check_one_cell();
  check_refusals();
  return check::result();
}
