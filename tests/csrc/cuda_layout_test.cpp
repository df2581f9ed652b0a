// SPDX-License-Identifier: MIT
// The index maps that CUDA kernels and their host share: every number has one place.
#include <set>
#include <tuple>
#include <vector>

#include "check.h"
#include "kernels/cuda/fragments.h"
#include "kernels/cuda/layout.h"

namespace {

using namespace nasfast::kernels::cuda;

// Lanes and registers hold every element of their matrices once, or in the sum's case too.
void check_fragments() {
  std::set<std::pair<int32_t, int32_t>> of_a, of_b, of_sum;
  for (int32_t lane = 0; lane < 32; ++lane) {
    for (int32_t half = 0; half < 2; ++half) {
      for (int32_t r = 0; r < 4; ++r) {
        const Element at = element_of_a(lane, r, half);
        CHECK(at.row >= 0 && at.row < 16 && at.column >= 0 && at.column < 16);
        of_a.emplace(at.row, at.column);
      }
      for (int32_t r = 0; r < 2; ++r) {
        const Element at = element_of_b(lane, r, half);
        CHECK(at.row >= 0 && at.row < 16 && at.column >= 0 && at.column < 8);
        of_b.emplace(at.row, at.column);
      }
    }
    for (int32_t i = 0; i < 4; ++i) {
      const Element at = element_of_sum(lane, i);
      CHECK(at.row >= 0 && at.row < 16 && at.column >= 0 && at.column < 8);
      of_sum.emplace(at.row, at.column);
    }
  }
  CHECK_EQ(of_a.size(), 256u);
  CHECK_EQ(of_b.size(), 128u);
  CHECK_EQ(of_sum.size(), 128u);
}

// What load_matrices() gives a lane when rows are named by address_of_*: register j is numbers
// lane % 4 * 2 and the next of row lane / 4 of matrix j, whose rows lanes 8 * j ... name.
void check_addresses() {
  for (int32_t lane = 0; lane < 32; ++lane) {
    for (int32_t half = 0; half < 2; ++half) {
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t offset = lane % 4 * 2 + half;
        const Element a = address_of_a(8 * j + lane / 4), b = address_of_b(8 * j + lane / 4);
        const Element of_a = element_of_a(lane, j, half);
        CHECK_EQ(a.row, of_a.row);
        CHECK_EQ(a.column + offset, of_a.column);
        // Two fragments of b: registers 0 and 1 of columns 0..7, then of columns 8..15.
        const Element of_b = element_of_b(lane, j % 2, half);
        CHECK_EQ(b.row, of_b.column + j / 2 * 8);
        CHECK_EQ(b.column + offset, of_b.row);
      }
    }
  }
}

// The same of load_turned_matrices(): register j is numbers lane / 4 of rows lane % 4 * 2 and the
// next of matrix j.
void check_turned_addresses() {
  for (int32_t lane = 0; lane < 32; ++lane) {
    for (int32_t half = 0; half < 2; ++half) {
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t row = 8 * j + lane % 4 * 2 + half;
        const Element a = address_of_turned_a(row), b = address_of_turned_b(row);
        const Element of_a = element_of_a(lane, j, half);
        CHECK_EQ(a.row, of_a.column);
        CHECK_EQ(a.column + lane / 4, of_a.row);
        const Element of_b = element_of_b(lane, j % 2, half);
        CHECK_EQ(b.row, of_b.row);
        CHECK_EQ(b.column + lane / 4, of_b.column + j / 2 * 8);
      }
    }
  }
}

// As the three above, of tf32: a register is one number.
void check_tf32() {
  std::set<std::pair<int32_t, int32_t>> of_a, of_b;
  std::set<int32_t> turned;
  for (int32_t lane = 0; lane < 32; ++lane) {
    for (int32_t j = 0; j < 4; ++j) {
      const Element at = tf32::element_of_a(lane, j), of_two = tf32::element_of_b(lane, j % 2);
      CHECK(at.row >= 0 && at.row < 16 && at.column >= 0 && at.column < 8);
      CHECK(of_two.row >= 0 && of_two.row < 8 && of_two.column >= 0 && of_two.column < 8);
      of_a.emplace(at.row, at.column);
      of_b.emplace(of_two.row, of_two.column);
      const Element a = tf32::address_of_a(8 * j + lane / 4);
      const Element b = tf32::address_of_b(8 * j + lane / 4);
      CHECK_EQ(a.row, at.row);
      CHECK_EQ(a.column + lane % 4, at.column);
      CHECK_EQ(b.row, of_two.column + j / 2 * 8);
      CHECK_EQ(b.column + lane % 4, of_two.row);
      CHECK_EQ(tf32::address_of_a(lane).row,
               address_of_a(lane).row);  // multiply() has one for both
    }
    turned.insert(tf32::turned_row(lane % 8));
  }
  CHECK_EQ(of_a.size(), 128u);
  CHECK_EQ(of_b.size(), 64u);
  CHECK_EQ(turned.size(), 8u);
  CHECK_EQ(*turned.rbegin(), 7);
}

// The 32 numbers that lanes load for a register, of rows of 16 numbers, lie in different banks.
void check_turned_banks() {
  const int32_t pitch = shared_pitch(Precision::kTf32, 16) / 4;
  for (int32_t r = 0; r < 4; ++r) {
    std::set<int32_t> of_a, of_b;
    for (int32_t lane = 0; lane < 32; ++lane) {
      const Element a = tf32::element_of_a(lane, r), b = tf32::element_of_b(lane, r % 2);
      of_a.insert((tf32::turned_row(a.column) * pitch + a.row) % 32);
      of_b.insert((tf32::turned_row(b.row) * pitch + b.column) % 32);
    }
    CHECK_EQ(of_a.size(), 32u);
    CHECK_EQ(of_b.size(), 32u);
  }
}

// Eight rows that a matrix is loaded from lie in different banks: there are 8 vectors of them.
void check_banks() {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16, Precision::kTf32}) {
    for (int32_t numbers = 16; numbers <= 512; numbers += 16) {
      std::set<int32_t> banks;
      for (int32_t row = 0; row < 8; ++row) {
        const int32_t at = row * shared_pitch(precision, numbers);
        CHECK_EQ(at % kVectorBytes, 0);
        banks.insert(at / kVectorBytes % 8);
      }
      CHECK_EQ(banks.size(), 8u);
    }
  }
}

void check_tile(const Tile& tile, const Sides& sides) {
  std::vector<int32_t> seen(static_cast<size_t>(sides.images * sides.height * sides.width), 0);
  int32_t total = 0;
  for (int32_t index = 0; index < num_tiles(tile, sides); ++index) {
    const Pixel origin = origin_of(tile, sides, index);
    CHECK(has(sides, origin));
    int32_t count = 0;
    for (int32_t row = 0; row < tile.rows(); ++row) {
      const Pixel in_tile = tile.pixel(row);
      const Pixel p = {origin.image + in_tile.image, origin.y + in_tile.y, origin.x + in_tile.x};
      if (!has(sides, p)) continue;
      ++count;
      ++seen[static_cast<size_t>(index_of(sides, p))];
    }
    CHECK_EQ(count_of(tile, sides, index), count);
    total += count;
  }
  CHECK_EQ(total, static_cast<int32_t>(seen.size()));
  for (const int32_t times : seen) CHECK_EQ(times, 1);
}

void check_padding(const Tile& tile, int32_t halo) {
  std::set<int32_t> own;
  for (int32_t row = 0; row < tile.rows(); ++row) {
    const int32_t padded = tile.padded_row(tile.pixel(row), halo);
    own.insert(padded);
    const Pixel back = tile.padded_pixel(padded, halo), there = tile.pixel(row);
    CHECK_EQ(std::tie(back.image, back.y, back.x), std::tie(there.image, there.y, there.x));
  }
  CHECK_EQ(own.size(), static_cast<size_t>(tile.rows()));
  CHECK(*own.rbegin() < tile.padded_rows(halo));
  for (int32_t row = 0; row < tile.padded_rows(halo); ++row) {
    const Pixel p = tile.padded_pixel(row, halo);
    CHECK(p.y >= -halo && p.y < tile.height() + halo && p.x >= -halo && p.x < tile.width() + halo);
    CHECK_EQ(tile.padded_row(p, halo), row);
  }
}

void check_tiles() {
  const std::vector<int32_t> sides = {1, 2, 3, 5, 7, 8, 9, 16, 17, 32, 33};
  for (const int32_t height : sides) {
    for (const int32_t width : sides) {
      for (int32_t most = 16; most <= kTileRows; most *= 2) {
        const Tile tile = tile_for(height, width, most);
        CHECK_EQ(tile.rows(), most);
        CHECK(tile.height() >= 2 && tile.width() >= 2);
        for (const int32_t images : {1, 3, 16}) {
          const Sides all = {images, height, width};
          check_tile(tile, all);
          // Halved tiles are those of the halved value, one for each.
          const Sides half = {images, (height + 1) / 2, (width + 1) / 2};
          check_tile(tile.halved(), half);
          CHECK_EQ(num_tiles(tile.halved(), half), num_tiles(tile, all));
          for (int32_t index = 0; index < num_tiles(tile, all); ++index) {
            const Pixel a = origin_of(tile, all, index);
            const Pixel b = origin_of(tile.halved(), half, index);
            CHECK_EQ(std::tuple(a.image, a.y / 2, a.x / 2), std::tuple(b.image, b.y, b.x));
          }
        }
        for (int32_t halo = 0; halo <= 2; ++halo) check_padding(tile, halo);
      }
    }
  }
}

}  // namespace

int main() {
  check_fragments();
  check_addresses();
  check_turned_addresses();
  check_tf32();
  check_banks();
  check_turned_banks();
  check_tiles();
  return check::result();
}
