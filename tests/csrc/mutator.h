// SPDX-License-Identifier: MIT
// Random damage to program tables.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "small_tables.h"

namespace small_tables {

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  // Damages one or two places of the sections, and now and then the header.
  std::vector<int32_t> damage(Sections sections) {
    for (uint32_t n = 1 + below(6) / 3; n > 0; --n) mutate(sections[below(sections.size())]);
    auto table = small_tables::pack(sections);
    if (below(20) == 0) table[below(3 + 2 * sections.size())] = extreme();
    return table;
  }

  // Damages one of some sections.
  std::vector<int32_t> damage_one_of(Sections sections, const std::vector<nasfast::Section>& some) {
    mutate(sections[some[below(some.size())]]);
    return pack(sections);
  }

 private:
  uint32_t below(size_t end) { return static_cast<uint32_t>(random_() % end); }

  int32_t extreme() {
    constexpr std::array<int32_t, 16> kExtremes = {
        0, -1, 1, 2, 3, 5, 16, 31, 33, 1000, 46341, 65536, 65537, 1 << 30, INT32_MAX, INT32_MIN};
    return kExtremes[below(kExtremes.size())];
  }

  void mutate(std::vector<int32_t>& section) {
    const uint32_t place = below(section.size() + 1);
    const uint32_t kind = below(8);
    if (kind == 0 || place == section.size()) {
      section.insert(section.begin() + place, static_cast<int32_t>(below(8)));
    } else if (kind == 1) {
      section.erase(section.begin() + place);
    } else if (kind == 2) {
      std::swap(section[place], section[below(section.size())]);
    } else if (kind == 3) {
      section[place] = extreme();
    } else {
      // An offset that is aligned too, or a near number.
      const int64_t step = kind == 4 ? 16 * (int64_t{below(5)} - 2) : int64_t{below(7)} - 3;
      section[place] = static_cast<int32_t>(section[place] + step);  // wraps around
    }
  }

  std::mt19937 random_;
};

}  // namespace small_tables
