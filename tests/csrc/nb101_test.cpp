// SPDX-License-Identifier: MIT
// MD5 against published digests, and the hash and the list of NAS-Bench-101's cells.
#include "host/nb101.h"

#include <algorithm>
#include <random>
#include <stdexcept>
#include <string>

#include "check.h"

namespace {

namespace nb101 = nasfast::nb101;

std::string hex(const nasfast::Digest& digest) {
  char text[32];
  return {text, nasfast::write_hex(digest, text)};
}

// The letters of the alphabet, over and over.
std::string letters(size_t length) {
  std::string text(length, 'a');
  for (size_t i = 0; i < length; ++i) text[i] += static_cast<char>(i % 26);
  return text;
}

void test_md5() {
  // The suite of RFC 1321.
  CHECK_EQ(hex(nasfast::md5("")), "d41d8cd98f00b204e9800998ecf8427e");
  CHECK_EQ(hex(nasfast::md5("a")), "0cc175b9c0f1b6a831c399e269772661");
  CHECK_EQ(hex(nasfast::md5("abc")), "900150983cd24fb0d6963f7d28e17f72");
  CHECK_EQ(hex(nasfast::md5("message digest")), "f96b697d7cb7938d525a2f31aaf161d0");
  CHECK_EQ(hex(nasfast::md5(letters(26))), "c3fcd3d76192e4007dfb496cca67e13b");
  // Where the padding needs a block of its own, and where it does not.
  CHECK_EQ(hex(nasfast::md5(letters(55))), "0d7ae056b2f015cd7dc67494efd658f1");
  CHECK_EQ(hex(nasfast::md5(letters(56))), "31fcfb5165169eb55898e7e4cf34d19a");
  CHECK_EQ(hex(nasfast::md5(letters(63))), "1b30c0670c15e7da3c2ba7bce77ebe99");
  CHECK_EQ(hex(nasfast::md5(letters(64))), "a2eaf6295c32adc403865fd96a2f182b");
  CHECK_EQ(hex(nasfast::md5(letters(65))), "eba2cce0ca8df47e62414a736b3105a2");
  CHECK_EQ(hex(nasfast::md5(letters(119))), "b05187e08da41fa3ef16bd56afaafd99");
  CHECK_EQ(hex(nasfast::md5(letters(120))), "62af9b597a9f55e16ab2b897387fc052");
  CHECK_EQ(hex(nasfast::md5(letters(250))), "578d8dffce566966620d6c01f57a2528");
}

constexpr uint8_t kNone = nb101::kNoOp;

void test_published_hashes() {
  CHECK_EQ(hex(nb101::hash({1394777, 7, {0, 2, 0, 0, 1}})), "00005c142e6f48ac74fdcf73e3439874");
  CHECK_EQ(hex(nb101::hash({1, 2, {kNone, kNone, kNone, kNone, kNone}})),
           "043721b9c7fe8c5fad811d47d83132ec");
  CHECK_EQ(hex(nb101::hash({67, 3, {1, kNone, kNone, kNone, kNone}})),
           "09fc2d10bdd6225e167a6f81a22a3f06");
  CHECK_EQ(hex(nb101::hash({1892545, 7, {1, 2, 0, 0, 2}})), "ffff76fafa7b0cdf545fd7feee9c8bf9");
}

void test_loose_ends_change_nothing() {
  // Edges 0-1, 1-2 of three vertices; then a vertex 2 that only the input leads to.
  const nasfast::Digest chain = nb101::hash({65, 3, {2, kNone, kNone, kNone, kNone}});
  const uint32_t loose = 1u << 0 | 1u << 1 | 1u << 7;  // (0, 1), (0, 2), (1, 3)
  for (uint8_t op = 0; op < nb101::kNumOps; ++op) {
    CHECK(nb101::hash({loose, 4, {2, op, kNone, kNone, kNone}}) == chain);
  }
}

void test_invalid_cells() {
  const std::array<uint8_t, 5> none = {kNone, kNone, kNone, kNone, kNone};
  CHECK_THROWS(nb101::hash({1, 1, none}), std::invalid_argument);
  CHECK_THROWS(nb101::hash({1, 8, none}), std::invalid_argument);
  CHECK_THROWS(nb101::hash({3, 2, none}), std::invalid_argument);       // an edge too many
  CHECK_THROWS(nb101::hash({1u << 21, 7, {}}), std::invalid_argument);  // no such pair
  CHECK_THROWS(nb101::hash({0x1fffff, 7, {}}), std::invalid_argument);  // 21 edges
  CHECK_THROWS(nb101::hash({0, 2, none}), std::invalid_argument);       // no path
  CHECK_THROWS(nb101::hash({67, 3, none}), std::invalid_argument);      // no operation
  CHECK_THROWS(nb101::hash({67, 3, {3, kNone, kNone, kNone, kNone}}), std::invalid_argument);
  CHECK_THROWS(nb101::hash({67, 3, {0, 0, kNone, kNone, kNone}}), std::invalid_argument);
  CHECK_THROWS(nb101::enumerate(1, {}), std::invalid_argument);
  CHECK_THROWS(nb101::enumerate(8, {}), std::invalid_argument);
}

// Any 21 bits and operations: a hash, or one clear refusal.
void test_random_cells() {
  std::mt19937 random(7);
  int hashed = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const auto size = static_cast<uint8_t>(random() % 10);
    nb101::Cell cell{static_cast<uint32_t>(random() & random() & random()), size, {}};
    for (int v = 0; v < nb101::kMaxInner; ++v) cell.ops[v] = v < size - 2 ? random() % 4 : kNone;
    try {
      nb101::hash(cell);
      ++hashed;
    } catch (const std::invalid_argument&) {
    }
  }
  CHECK(hashed > 20);
}

void test_list() {
  constexpr int64_t kCounts[] = {1, 7, 91, 2532, 64542};
  for (int size = 2; size <= 6; ++size) {
    int64_t seen = 0, total = 0;
    const nb101::List list = nb101::enumerate(size, [&](int64_t done, int64_t all) {
      CHECK(seen < done && done <= all);
      seen = done;
      total = all;
    });
    CHECK_EQ(seen, total);
    CHECK_EQ(static_cast<int64_t>(list.entries.size()), kCounts[size - 2]);
    CHECK_EQ(list.num_classes, kCounts[size - 2]);
    const auto not_before = [](const auto& one, const auto& next) { return one.hash >= next.hash; };
    CHECK(std::ranges::adjacent_find(list.entries, not_before) == list.entries.end());
    for (size_t i = 0; i < list.entries.size(); i += 1 + list.entries.size() / 100) {
      CHECK(nb101::hash(list.entries[i].cell) == list.entries[i].hash);
    }
  }
}

}  // namespace

int main() {
  test_md5();
  test_published_hashes();
  test_loose_ends_change_nothing();
  test_invalid_cells();
  test_random_cells();
  test_list();
  return check::result();
}
