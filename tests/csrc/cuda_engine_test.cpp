// SPDX-License-Identifier: MIT
// Chunks of small tables on the CUDA engine, its kernels run by the emulator, against an
// interpreter in double precision; and that a lane depends on nothing but itself.
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runs.h"

namespace {

using namespace engine_runs;
using cuda_runs::options_of;
using nasfast::kBatch, nasfast::kRunning;
using nasfast::kernels::cuda::Precision;

// fp32 and bf16 as in the CPU engine's test (engine_test.cpp). Operands in tf32 have two bits more
// than in bf16, and what is rounded is farther off than fp32.
constexpr double kFp32 = 1e-5, kBf16 = 0.08, kBf16OfBlocks = 0.2;
constexpr double kTf32OfBf16 = 0.25;

constexpr Precision kPrecisions[] = {Precision::kFp32, Precision::kTf32, Precision::kBf16};

const char* name_of(Precision precision) {
  if (precision == Precision::kTf32) return "tf32";
  return precision == Precision::kBf16 ? "bf16" : "fp32";
}

// Every lane of the only chunk in all precisions.
void check_table(const Sections& sections, const Modes& modes, const Data& data,
                 double bf16_tolerance = kBf16) {
  const Network network(sections);
  const auto arena = random_arena(network.table);
  interpreter::Interpreter definition(network.table, arena.data(), modes.fixed, modes.last);
  const auto chunk = network.table.chunk(0);
  const auto images = static_cast<size_t>(data.count());
  std::vector<std::vector<double>> expected;
  for (const int32_t lane : chunk) {
    const int32_t n = network.table.lanes()[static_cast<size_t>(lane)].network;
    expected.push_back(definition.run(n, map_of(data), data.sizes, map_of(data), data.sizes));
  }
  const size_t classes = expected[0].size() / images;
  std::map<Precision, double> largest;
  for (const Precision precision : kPrecisions) {
    double tolerance = precision == Precision::kBf16 ? bf16_tolerance : kFp32, most = 0;
    if (precision == Precision::kTf32) tolerance = kTf32OfBf16 * bf16_tolerance;
    const Scores scores = cuda_runs::run(network.table, 0, arena.data(), data,
                                         options_of(data, precision, modes.fixed, modes.last));
    for (size_t lane = 0; lane < chunk.size(); ++lane) {
      const float* logits = scores.logits.data() + lane * images * classes;
      const std::string what = std::string(name_of(precision)) + ", lane " + std::to_string(lane) +
                               ", modes " + std::to_string(modes.cells) +
                               std::to_string(modes.fixed) + std::to_string(modes.last) + ", " +
                               std::to_string(images) + " images of " +
                               std::to_string(data.height) + "x" + std::to_string(data.width);
      most = std::max(most, check_lane(logits, expected[lane], tolerance, what));
      for (size_t i = 0; i < images; ++i) {
        check_scores(logits + i * classes, static_cast<int64_t>(classes), data.labels[i],
                     scores.loss[lane * images + i], scores.correct[lane * images + i] == 1);
      }
    }
    largest[precision] = most;
  }
  // Statistics of few images hide what is rounded.
  const bool is_seen = largest[Precision::kBf16] > 1e-3;
  CHECK(!is_seen || largest[Precision::kTf32] > kFp32);
}

const std::vector<Modes> kModes = {{kBatch, kBatch, kBatch},
                                   {kRunning, kRunning, kRunning},
                                   {kBatch, kRunning, kBatch},
                                   {kRunning, kBatch, kRunning}};

void check_two_stages() {
  size_t turn = 0;
  for (const int64_t batch : {1, 5}) {
    for (const int32_t channels : {3, 4}) {
      for (const int32_t width : {5, 8}) {
        const Modes& modes = kModes[turn++ % kModes.size()];
        const auto sections =
            two_stages({channels, turn % 2 == 0 ? 8 : channels, 13 - channels}, modes.cells, 16,
                       turn % 2 == 0 ? std::vector{1, 3} : std::vector<int32_t>{});
        check_table(sections, modes, Data(channels, 7, width, {batch, 3}, turn));
      }
    }
  }
}

// Cells that end in concatenations, with and without free slots.
void check_blocks() {
  const std::vector<small_tables::BlockSizes> blocks = {
      {3, 4, 2, 3, 4}, {1, 3, 1, 5, 2}, {5, 17, 4, 6, 1}};
  const std::vector<std::vector<int32_t>> vertices = {{3, 4, 5, 7}, {1, 2, 2, 3}, {5, 17, 33, 9}};
  for (size_t k = 0; k < 2 * blocks.size(); ++k) {
    const Modes& modes = kModes[k % kModes.size()];
    const auto& sizes = blocks[k % blocks.size()];
    const auto& channels = vertices[k % vertices.size()];
    const Data data(sizes.image, k % 2 == 0 ? 7 : 8, k % 2 == 0 ? 5 : 8, {5, 3}, k);
    const auto shared = k % 2 == 0 ? std::vector{1, 2, 3, 4, 5, 6, 9} : std::vector<int32_t>{};
    check_table(prepared(small_tables::choice_blocks(sizes), modes, shared), modes, data,
                kBf16OfBlocks);
    const Data other(channels[0], k % 2 == 0 ? 4 : 5, k % 2 == 0 ? 9 : 6, {2, 6}, k + 50);
    const auto in_vertices = k % 2 == 0 ? std::vector<int32_t>{} : std::vector{1, 2, 3, 4, 5, 10};
    check_table(prepared(small_tables::vertex_cells(channels), modes, in_vertices), modes, other,
                kBf16OfBlocks);
  }
}

// Images down to one pixel.
void check_small() {
  const Modes running = {kRunning, kRunning, kRunning}, batch = {kBatch, kBatch, kBatch};
  for (const int32_t height : {1, 2, 3}) {
    for (const int32_t width : {1, 5}) {
      const Data data(3, height, width, {3}, 6);
      check_table(prepared(small_tables::choice_blocks(), running, {1, 2}), running, data);
      check_table(prepared(small_tables::vertex_cells(), running, {1, 2}), running, data);
      check_table(small_tables::one_cell(), batch, data);
    }
  }
}

// More channels than a block computes at once, and than it has weights of at a time; rows that many
// tiles share.
void check_wide() {
  const Modes modes = {kBatch, kBatch, kBatch};
  auto sections = two_stages({33, 70, 130}, kBatch, 16, {1});
  sections[nasfast::kLanes].resize(9);
  sections[nasfast::kLaneOrder] = {0, 1, 2};
  sections[nasfast::kChunkBegin] = {0, 3};
  sections[nasfast::kSharedBegin] = {0, 1};
  check_table(sections, modes, Data(33, 4, 3, {2}, 1));
  check_table(small_tables::many_classes(), modes, Data(3, 2, 3, {3}, 1));
  check_table(small_tables::one_cell(), modes, Data(3, 5, 70, {2}, 1));
  check_table(small_tables::with_kernels(two_stages({3, 5, 18}, kBatch, 16, {1}), 3, 5), modes,
              Data(3, 9, 11, {3}, 1));
  check_table(small_tables::with_kernels(small_tables::one_cell(), 7, 5), modes,
              Data(3, 1, 2, {40}, 1));
  check_table(small_tables::one_cell(), modes, Data(3, 35, 18, {1}, 1));
  check_table(two_stages({3, 8, 18}, kBatch, 16, {1, 3}), modes, Data(3, 17, 20, {1}, 3));
  check_table(prepared(small_tables::choice_blocks(), modes, {1, 2}), modes,
              Data(3, 17, 20, {1}, 3), kBf16OfBlocks);
  check_table(prepared(small_tables::vertex_cells(), modes, {1}), modes, Data(3, 17, 20, {1}, 3),
              kBf16OfBlocks);
}

// Whatever order threads and blocks run in, the bits are the same: no barrier is missing.
void check_orders() {
  const Modes modes = {kBatch, kBatch, kBatch};
  using small_tables::every_lane;
  const std::vector<Sections> tables = {
      every_lane(two_stages({3, 8, 18}, kBatch), 3, {1, 3}),
      prepared(every_lane(small_tables::choice_blocks(), 3), modes, {1, 2}),
      prepared(every_lane(small_tables::vertex_cells(), 2), modes, {1})};
  const Data data(3, 18, 20, {1}, 2);  // of several tiles
  for (const Sections& sections : tables) {
    const Network network(sections);
    const auto arena = random_arena(network.table);
    for (const Precision precision : kPrecisions) {
      const auto run = [&](emulator::Order order) {
        emulator::set_order(order);
        Scores scores =
            cuda_runs::run(network.table, 0, arena.data(), data, options_of(data, precision));
        emulator::set_order(emulator::Order::kForward);
        return scores;
      };
      const Scores expected = run(emulator::Order::kForward);
      for (const auto order : {emulator::Order::kReverse, emulator::Order::kShuffled}) {
        const Scores scores = run(order);
        for (size_t lane = 0; lane < network.table.chunk(0).size(); ++lane) {
          CHECK(scores.is_same(lane, expected, lane, 1));
        }
      }
    }
  }
}

// Alone, beside others, and beside lanes whose weights are no numbers, a lane has the same bits;
// and so have images in minibatches of other sizes, where statistics are running.
void check_invariance() {
  const std::vector<Sections> tables = {small_tables::every_lane(two_stages({3, 3, 9}, kBatch), 3),
                                        small_tables::choice_blocks({3, 5, 3, 2, 7}),
                                        small_tables::vertex_cells({3, 5, 7, 3})};
  const std::vector<std::vector<int32_t>> shared = {{1, 3}, {1, 2, 3, 5}, {1, 2, 3}};
  const Data data(3, 6, 5, {4, 2}, 1);
  for (size_t k = 0; k < tables.size(); ++k) {
    Sections each = tables[k], all = tables[k];
    const auto lanes = static_cast<int32_t>(each[nasfast::kLanes].size()) / 3;
    for (Sections* sections : {&each, &all}) (*sections)[nasfast::kSettings][0] = kBatch;
    small_tables::set_chunks(each, 1, {});
    small_tables::set_chunks(all, lanes, shared[k]);
    const Network alone(each), beside(all);
    const auto arena = random_arena(alone.table);
    for (const Precision precision : kPrecisions) {
      const auto options = options_of(data, precision);
      const Scores scores = cuda_runs::run(beside.table, 0, arena.data(), data, options);
      for (int32_t lane = 0; lane < lanes; ++lane) {
        const Scores expected = cuda_runs::run(alone.table, lane, arena.data(), data, options);
        CHECK(scores.is_same(static_cast<size_t>(lane), expected, 0, 6));
      }
    }
  }
}

// A chunk that is bound once more works with other weights and other memory.
void check_bound_again() {
  const Network network(two_stages({3, 3, 9}, kBatch, 4, {1}));
  const Data data(3, 6, 5, {4}, 1);
  auto arena = random_arena(network.table);
  const auto options = options_of(data, Precision::kFp32);
  nasfast::cuda::Chunk chunk(network.table, {0, 0, 4}, options, 4, {});
  nasfast::cuda::HostBuffer host;
  const auto logits_with = [&](nasfast::cuda::Chunk& of, const cuda_runs::DeviceMemory& memory) {
    std::vector<float> logits(size_t{4} * 4 * 5);
    of.bind({memory.get(), arena.data()}, &of == &chunk ? nullptr : &host);
    of.upload(nullptr);
    of.run({data.images.data(), nullptr, 4, 0}, {logits.data(), nullptr, nullptr, 4}, nullptr);
    return logits;
  };
  const cuda_runs::DeviceMemory memory(chunk.bytes()), other(chunk.bytes());
  const auto before = logits_with(chunk, memory);
  for (float& weight : arena) weight *= 0.5f;
  const auto expected = cuda_runs::run(network.table, 0, arena.data(), data, options).logits;
  CHECK(logits_with(chunk, other) == expected);
  CHECK(before != expected);
  nasfast::cuda::Chunk guessed(network.table, {0, 0, 4}, options, 4, {memory.get(), arena.data()});
  CHECK_EQ(guessed.bytes(), chunk.bytes());
  CHECK(logits_with(guessed, memory) == expected);
  CHECK(logits_with(guessed, other) == expected);  // where it was not expected
  // Whatever the size of the minibatch before.
  float unused[4 * 5];
  guessed.run({data.images.data(), nullptr, 1, 0}, {unused, nullptr, nullptr, 1}, nullptr);
  CHECK(logits_with(guessed, other) == expected);
}

// A weight that is no number marks the lanes that read it, and no other.
void check_no_number() {
  auto sections = two_stages({3, 3, 9}, kBatch, 16, {});
  const Network network(sections);
  const auto arena = random_arena(network.table);
  const Data data(3, 6, 5, {4}, 1);
  for (const Precision precision : kPrecisions) {
    const auto options = options_of(data, precision);
    const Scores good = cuda_runs::run(network.table, 0, arena.data(), data, options);
    auto broken = arena;
    const nasfast::Unit& unit = network.table.units()[2];  // conv1x1 of the first cell
    broken[static_cast<size_t>(unit.weight)] = std::numeric_limits<float>::quiet_NaN();
    const Scores scores = cuda_runs::run(network.table, 0, broken.data(), data, options);
    int32_t hurt = 0;
    for (size_t lane = 0; lane < network.table.chunk(0).size(); ++lane) {
      if (scores.is_same(lane, good, lane, 4)) continue;
      ++hurt;
      for (size_t i = 4 * lane; i < 4 * lane + 4; ++i) {
        CHECK(std::isnan(scores.loss[i]));
        CHECK_EQ(scores.correct[i], 0);
      }
    }
    CHECK(hurt > 0);
    CHECK(hurt < static_cast<int32_t>(network.table.chunk(0).size()));
  }
}

// All lanes of a step run in one launch, however many they are.
void check_launches() {
  const Data data(3, 2, 2, {1}, 1);
  const auto launches = [&](int32_t lanes) {
    auto sections = two_stages({3, 3, 9}, kBatch, lanes, {1});
    const Network network(sections);
    const auto arena = random_arena(network.table);
    const int64_t before = emulator::num_launches();
    cuda_runs::run(network.table, 0, arena.data(), data, options_of(data, Precision::kFp32));
    return emulator::num_launches() - before;
  };
  CHECK(launches(16) <= 24);
  CHECK(launches(16) <= launches(4) + 4);
}

void check_refusals() {
  const Network network(small_tables::one_cell());
  const auto refuse = [&](const nasfast::cuda::Options& options, const char* words) {
    try {
      nasfast::cuda::Chunk chunk(network.table, {0, 0, 1}, options, 4, {});
      check::fail("refusals", 0, std::string("not refused: ") + words);
    } catch (const std::invalid_argument& error) {
      CHECK(std::string(error.what()).find(words) != std::string::npos);
    }
  };
  refuse({Precision::kFp32, 4, 4, kRunning, kBatch}, "running");
  refuse({Precision::kFp32, 4, 4, nasfast::kRecalibrate, kBatch}, "recalibrate");
  const Network mixed(small_tables::mixed_stages());
  CHECK_THROWS(nasfast::cuda::Chunk(mixed.table, {0, 0, 1}, {Precision::kFp32, 4, 4}, 4, {}),
               std::invalid_argument);
  nasfast::cuda::Chunk chunk(network.table, {0, 0, 1}, {Precision::kFp32, 4, 4}, 4, {});
  CHECK_THROWS(chunk.run({nullptr, nullptr, 5, 0}, {}, nullptr), std::invalid_argument);
  CHECK_THROWS(chunk.run({nullptr, nullptr, 0, 0}, {}, nullptr), std::invalid_argument);
}

// A device with less shared memory than a network wants is named before anything runs; what a
// device refuses is reported once.
void check_small_device() {
  const Data data(3, 8, 8, {1}, 1);
  const Network network(two_stages({3, 70, 130}, kBatch));
  const auto arena = random_arena(network.table);
  const auto message = [&]() -> std::string {
    try {
      cuda_runs::run(network.table, 0, arena.data(), data, options_of(data, Precision::kFp32));
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  emulator::set_most_shared(64 * 1024);
  CHECK(message().find("shared memory, on a CUDA device that has 65536") != std::string::npos);
  emulator::set_most_shared(163 * 1024);
  CHECK_EQ(message(), "");
  const auto nothing = emulator::launch(nullptr, [] {}, dim3(0), 32, 0, nullptr);
  CHECK_THROWS(nasfast::cuda::check("launch", nothing), nasfast::cuda::Error);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
}

// The first of equal logits is the one chosen; a label that names no class is never met.
void check_labels() {
  const Network network(small_tables::one_cell());
  auto arena = random_arena(network.table);
  const nasfast::Unit& classifier = network.table.units().back();
  std::fill_n(arena.begin() + classifier.weight, 10, 0.0f);
  std::fill_n(arena.begin() + classifier.bias, 5, 0.5f);
  Data data(3, 4, 4, {5}, 1);
  data.labels = {0, 4, 5, -1, int64_t{1} << 40};
  const Scores scores =
      cuda_runs::run(network.table, 0, arena.data(), data, options_of(data, Precision::kFp32));
  CHECK(scores.correct == std::vector<uint8_t>({1, 0, 0, 0, 0}));
  for (size_t i = 0; i < 5; ++i) CHECK_EQ(std::isnan(scores.loss[i]), i >= 2);
}

}  // namespace

int main() {
  check_two_stages();
  check_blocks();
  check_small();
  check_wide();
  check_orders();
  check_invariance();
  check_bound_again();
  check_no_number();
  check_launches();
  check_refusals();
  check_small_device();
  check_labels();
  return check::result();
}
