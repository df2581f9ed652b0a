// SPDX-License-Identifier: MIT
// Groups of lanes on the emulated device: the same bits whatever memory there is, and whether
// minibatches are repeated as a graph or not.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_runs.h"
#include "engine/cuda/scorer.h"

namespace {

using namespace engine_runs;
using cuda_runs::Device;
using cuda_runs::has;
using cuda_runs::kMuch;
using cuda_runs::options_of;
using cuda_runs::refusal;
using nasfast::kBatch;
using nasfast::cuda::Budget;
using nasfast::cuda::Graph;
using nasfast::cuda::lanes_of_chunk;
using nasfast::cuda::Scorer;
using nasfast::kernels::cuda::Precision;

constexpr size_t kNever = 1000;

Scores score(const Network& network, const std::vector<float>& arena, const Data& data,
             Precision precision, Device& device, const Budget& budget,
             size_t least_replays = kNever) {
  const auto rows = network.table.chunk(0).size() * static_cast<size_t>(data.count());
  const auto classes = static_cast<size_t>(network.table.positions().back().out_channels);
  Scores scores{std::vector<float>(rows * classes), std::vector<float>(rows),
                std::vector<uint8_t>(rows, 2)};
  Scorer scorer(network.table, lanes_of_chunk(network.table, 0), options_of(data, precision),
                budget, device.allocator(), least_replays);
  scorer.run(arena.data(), data.get(), data.labels.data(),
             {scores.logits.data(), scores.loss.data(), scores.correct.data(), data.count()},
             nullptr);
  return scores;
}

void check_same(const Network& network, const Data& data, const Scores& scores,
                const Scores& expected) {
  const auto images = static_cast<size_t>(data.count());
  for (size_t lane = 0; lane < network.table.chunk(0).size(); ++lane) {
    CHECK(scores.is_same(lane, expected, lane, images));
  }
}

struct Example {
  Network network{small_tables::every_lane(two_stages({3, 4, 9}, kBatch), 3, {1, 3})};
  std::vector<float> arena = random_arena(network.table);
  Data data{3, 6, 5, {3, 2, 3, 1, 3, 3, 2}, 1};

  // Of all lanes in one group.
  Scores scores(Precision precision) const {
    return cuda_runs::run(network.table, 0, arena.data(), data, options_of(data, precision));
  }
  int64_t bytes(int32_t first, int32_t count, Precision precision = Precision::kFp32) const {
    return nasfast::cuda::Chunk(network.table, {0, first, count}, options_of(data, precision), 3,
                                {})
        .bytes();
  }
  int64_t bytes() const { return bytes(0, static_cast<int32_t>(network.table.chunk(0).size())); }
};

void check_groups() {
  const Example example;
  const auto& [network, arena, data] = example;
  const auto lanes = static_cast<int32_t>(network.table.chunk(0).size());
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    const Scores expected = example.scores(precision);
    const int64_t all = example.bytes(0, lanes, precision);
    int64_t one = 0;  // the largest
    for (int32_t lane = 0; lane < lanes; ++lane)
      one = std::max(one, example.bytes(lane, 1, precision));
    CHECK(one < all);
    Device whole;
    check_same(network, data, score(network, arena, data, precision, whole, {kMuch, kMuch}),
               expected);
    CHECK(whole.asked == std::vector{all});
    // However small the budget, nothing more is asked for.
    for (const int64_t budget : {all - 1, (one + all) / 2, one + one / 8, one}) {
      Device device;
      check_same(network, data, score(network, arena, data, precision, device, {budget, budget}),
                 expected);
      for (const int64_t asked : device.asked) CHECK(asked <= budget);
    }
    // A lane may take more than groups do.
    Device lonely;
    check_same(network, data, score(network, arena, data, precision, lonely, {1, kMuch}), expected);
  }
}

void check_out_of_memory() {
  const Example example;
  const auto& [network, arena, data] = example;
  const int64_t all = example.bytes();
  const Scores expected = example.scores(Precision::kFp32);
  Device smaller{all - 1, {}, {}};
  check_same(network, data, score(network, arena, data, Precision::kFp32, smaller, {kMuch, kMuch}),
             expected);
  CHECK_EQ(smaller.asked[0], all);
  CHECK(smaller.asked.size() > 1 && smaller.asked[1] < all);
  Device tiny{1000, {}, {}};
  const std::string none =
      refusal([&] { score(network, arena, data, Precision::kFp32, tiny, {kMuch, kMuch}); });
  const int64_t one = example.bytes(0, 1);
  CHECK(has(none, "out of memory: lane "));
  CHECK(has(none, " needs " + std::to_string(one) + " bytes for minibatches of 3 images of 6x5"));
  CHECK_EQ(tiny.asked.back(), one);
  Device device;
  const std::string little =
      refusal([&] { score(network, arena, data, Precision::kFp32, device, {1000, 1000}); });
  CHECK(has(little, "memory: lane "));
  CHECK(has(little, "needs " + std::to_string(one) + " bytes"));
  CHECK(has(little, "got 1000"));
  CHECK(device.asked.empty());
}

// The same launches, recorded once.
void check_replays() {
  const Example example;
  const auto& [network, arena, data] = example;
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    const Scores expected = example.scores(precision);
    for (const size_t least : {2, 4}) {
      Device device;
      check_same(network, data,
                 score(network, arena, data, precision, device, {kMuch, kMuch}, least), expected);
      CHECK_EQ(device.asked.size(), size_t{1});
      const int64_t half = device.asked[0] / 2;
      check_same(network, data,
                 score(network, arena, data, precision, device, {half, kMuch}, least), expected);
    }
  }
  Device device;
  const int64_t before = emulator::num_launches();
  score(network, arena, data, Precision::kFp32, device, {kMuch, kMuch}, 2);
  const int64_t recorded = emulator::num_launches();
  score(network, arena, data, Precision::kFp32, device, {kMuch, kMuch});
  CHECK_EQ(recorded - before, emulator::num_launches() - recorded);
}

// A device that is slower than the host finds all that it was given still there.
void check_late() {
  const Example example;
  const auto& [network, arena, data] = example;
  const int64_t all = example.bytes();
  const Scores expected = example.scores(Precision::kFp32);
  emulator::set_late(true);
  for (const size_t least : {size_t{2}, kNever}) {
    for (const int64_t wanted : {int64_t{1}, all / 2}) {
      Device device;
      check_same(network, data,
                 score(network, arena, data, Precision::kFp32, device, {wanted, kMuch}, least),
                 expected);
    }
  }
  Device smaller{all - 1, {}, {}};
  check_same(network, data, score(network, arena, data, Precision::kFp32, smaller, {kMuch, kMuch}),
             expected);
  // Without page-locked memory it only takes longer.
  emulator::set_page_locked(false);
  Device device;
  check_same(network, data, score(network, arena, data, Precision::kFp32, device, {all / 2, kMuch}),
             expected);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
  emulator::set_page_locked(true);
  emulator::set_late(false);
}

// Logits alone need no labels.
void check_logits() {
  const Example example;
  const auto& [network, arena, data] = example;
  const auto options = options_of(data, Precision::kFp32);
  const Scores expected = cuda_runs::run(network.table, 0, arena.data(), data, options);
  std::vector<float> logits(expected.logits.size());
  Device device;
  Scorer scorer(network.table, lanes_of_chunk(network.table, 0), options, {kMuch, kMuch},
                device.allocator(), 2);
  scorer.run(arena.data(), data.get(), nullptr, {logits.data(), nullptr, nullptr, data.count()},
             nullptr);
  CHECK(logits == expected.logits);
}

// A scorer forgets the minibatches of the call before, and how many lanes fitted.
void check_calls() {
  const Example example;
  const auto& [network, arena, data] = example;
  const auto options = options_of(data, Precision::kFp32);
  const Data other(3, 6, 5, {2, 2}, 2);
  const auto lanes = static_cast<int32_t>(network.table.chunk(0).size());
  const auto bytes_of = [&](int32_t most_images) {
    return nasfast::cuda::Chunk(network.table, {0, 0, lanes}, options, most_images, {}).bytes();
  };
  Device device{bytes_of(3) - 1, {}, {}};
  Scorer scorer(network.table, lanes_of_chunk(network.table, 0), options, {kMuch, kMuch},
                device.allocator(), kNever);
  for (const Data* images : {&data, &other}) {
    const Scores expected = cuda_runs::run(network.table, 0, arena.data(), *images, options);
    std::vector<float> logits(expected.logits.size());
    scorer.run(arena.data(), images->get(), nullptr,
               {logits.data(), nullptr, nullptr, images->count()}, nullptr);
    CHECK(logits == expected.logits);
    device.bytes = kMuch;
  }
  CHECK_EQ(device.asked.front(), bytes_of(3));
  CHECK_EQ(device.asked.back(), bytes_of(2));
  const auto refused = [&](const std::vector<int64_t>& sizes) {
    return refusal(
        [&] { scorer.run(arena.data(), {data.images.data(), sizes}, nullptr, {}, nullptr); });
  };
  CHECK(has(refused({}), "sizes: wanted at least one minibatch"));
  CHECK(has(refused({3, 0}), "sizes: wanted minibatches of 1 to"));
}

// Lanes with weights of their own: each is that of a chunk, scored with its weights.
void check_own_weights() {
  const Example example;
  const auto& [network, shared, data] = example;
  const auto lanes = static_cast<int32_t>(network.table.lanes().size());
  const auto images = static_cast<size_t>(data.count());
  std::vector<float> arenas;
  for (int32_t lane = 0; lane < lanes; ++lane) {
    for (const float weight : shared) {
      arenas.push_back(weight * (1.0f + 0.01f * static_cast<float>(lane % 5)));
    }
  }
  for (const Precision precision : {Precision::kFp32, Precision::kBf16, Precision::kTf32}) {
    const auto options = options_of(data, precision);
    std::vector<Scores> expected;  // by weights
    for (int32_t k = 0; k < 5; ++k) {
      expected.push_back(cuda_runs::run(
          network.table, 0, arenas.data() + static_cast<size_t>(k) * shared.size(), data, options));
    }
    int64_t all = 0;
    for (const bool is_whole : {true, false}) {
      const auto rows = static_cast<size_t>(lanes) * images;
      Scores scores{{}, std::vector<float>(rows), std::vector<uint8_t>(rows, 2)};
      Device device;
      Scorer scorer(network.table, nasfast::cuda::lanes_with_own_weights(network.table), options,
                    {is_whole ? kMuch : all / 3, kMuch}, device.allocator(), 2);
      scorer.run(arenas.data(), data.get(), data.labels.data(),
                 {nullptr, scores.loss.data(), scores.correct.data(), data.count()}, nullptr);
      if (is_whole) all = device.asked.back();
      CHECK(is_whole || device.asked.back() <= all / 3);
      for (int32_t row = 0; row < lanes; ++row) {
        const int32_t lane = network.table.chunk(0)[static_cast<size_t>(row)];
        const Scores& wanted = expected[static_cast<size_t>(lane % 5)];
        for (size_t i = 0; i < images; ++i) {
          const size_t got = static_cast<size_t>(lane) * images + i;
          const size_t at = static_cast<size_t>(row) * images + i;
          CHECK_EQ(scores.loss[got], wanted.loss[at]);
          CHECK_EQ(int{scores.correct[got]}, int{wanted.correct[at]});
        }
      }
    }
  }
}

// What cannot be recorded is refused, and what was being recorded is forgotten.
void check_recording() {
  float host = 1, device = 2;
  const auto copy_from_host = [&](cudaStream_t stream) {
    nasfast::cuda::check(
        "copy", cudaMemcpyAsync(&device, &host, sizeof host, cudaMemcpyHostToDevice, stream));
  };
  const std::string refused = refusal([&] { const Graph graph(copy_from_host); });
  CHECK(has(refused, "copy: operation not permitted when stream is capturing"));
  const std::string other =
      refusal([&] { const Graph graph([&](cudaStream_t) { copy_from_host(nullptr); }); });
  CHECK(has(other, "copy: operation not permitted when stream is capturing"));
  CHECK_EQ(device, 2.0f);
  // Tables are no exception, unless they are small.
  std::vector<std::byte> table(100'000);
  const auto copy_table = [&](cudaStream_t stream, size_t bytes) {
    nasfast::cuda::Gatherer tables(table.data());
    const std::vector<std::byte> rows(bytes, std::byte{7});
    tables.add(rows);
    tables.copy_few(stream);
  };
  CHECK(has(refusal([&] { const Graph large([&](cudaStream_t s) { copy_table(s, 70'000); }); }),
            "stream: wanted one that is not being recorded, as tables of 70000 bytes"));
  const auto count_copied = [&] { return std::ranges::count(table, std::byte{7}); };
  for (const size_t bytes : {1, 15, 16, 3839, 3840, 3841, 50'000}) {
    std::ranges::fill(table, std::byte{0});
    const Graph small([&](cudaStream_t s) { copy_table(s, bytes); });
    CHECK_EQ(count_copied(), 0);
    small.launch(nullptr);
    CHECK_EQ(count_copied(), static_cast<std::ptrdiff_t>(bytes));
    CHECK(table[bytes - 1] == std::byte{7});
  }
  copy_table(nullptr, 70'000);
  CHECK_EQ(count_copied(), 70'000);
  const Graph graph([&](cudaStream_t stream) {
    nasfast::cuda::check(
        "copy", cudaMemcpyAsync(&device, &host, sizeof host, cudaMemcpyDeviceToDevice, stream));
  });
  CHECK_EQ(device, 2.0f);
  graph.launch(nullptr);
  CHECK_EQ(device, 1.0f);
}

}  // namespace

int main() {
  check_groups();
  check_out_of_memory();
  check_replays();
  check_late();
  check_logits();
  check_calls();
  check_own_weights();
  check_recording();
  return check::result();
}
