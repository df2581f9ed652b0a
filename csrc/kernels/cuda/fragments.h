// SPDX-License-Identifier: MIT
// Which lane of a warp holds which numbers of a matrix in mma.m16n8k16 with 16-bit operands (PTX
// ISA, "Matrix Fragments for mma.m16n8k16"). `a` is [16 rows, 16 k], `b` [16 k, 8 columns], the sum
// [16 rows, 8 columns]. Below, the same of mma.m16n8k8 with tf32 operands.
#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace nasfast::kernels::cuda {

struct Element {
  int32_t row, column;
};

// Number `half` (0 low, 1 high) of register `r` < 4 of a lane.
NASFAST_HOST_DEVICE constexpr Element element_of_a(int32_t lane, int32_t r, int32_t half) {
  return {lane / 4 + r % 2 * 8, lane % 4 * 2 + half + r / 2 * 8};
}
// Of register `r` < 2; the row is k.
NASFAST_HOST_DEVICE constexpr Element element_of_b(int32_t lane, int32_t r, int32_t half) {
  return {lane % 4 * 2 + half + r * 8, lane / 4};
}
// Number `i` < 4 of the sum.
NASFAST_HOST_DEVICE constexpr Element element_of_sum(int32_t lane, int32_t i) {
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

// Row and first k that a lane names to load_matrices() for the fragment of `a`.
NASFAST_HOST_DEVICE constexpr Element address_of_a(int32_t lane) {
  return {lane % 16, lane / 16 * 8};
}
// For two fragments of `b`, of columns 0..7 and 8..15, from rows of k: registers 0 and 1 are of the
// first. Here `row` is the column of `b`, and `column` the first k.
NASFAST_HOST_DEVICE constexpr Element address_of_b(int32_t lane) {
  return {lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8};
}

// The same where matrices lie turned in memory, rows of 16 bytes being k, for
// load_turned_matrices(): here `row` is k, and `column` the first row of `a` or column of `b`.
NASFAST_HOST_DEVICE constexpr Element address_of_turned_a(int32_t lane) {
  return {lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8};
}
NASFAST_HOST_DEVICE constexpr Element address_of_turned_b(int32_t lane) {
  return {lane % 16, lane / 16 * 8};
}

// `a` is [16 rows, 8 k], `b` [8 k, 8 columns] ("Matrix Fragments for mma.m16n8k8"); the sum is that
// above. A register is one number.
namespace tf32 {

// Register `r` < 4 of a lane.
NASFAST_HOST_DEVICE constexpr Element element_of_a(int32_t lane, int32_t r) {
  return {lane / 4 + r % 2 * 8, lane % 4 + r / 2 * 4};
}
// Register `r` < 2; the row is k.
NASFAST_HOST_DEVICE constexpr Element element_of_b(int32_t lane, int32_t r) {
  return {lane % 4 + r * 4, lane / 4};
}

// As those above: a matrix of 8 rows of 16 bytes has 4 numbers a row here.
NASFAST_HOST_DEVICE constexpr Element address_of_a(int32_t lane) {
  return {lane % 16, lane / 16 * 4};
}
NASFAST_HOST_DEVICE constexpr Element address_of_b(int32_t lane) {
  return {lane / 16 * 8 + lane % 8, lane / 8 % 2 * 4};
}

// Matrices of 32-bit numbers are not turned as they are loaded: a lane loads its own. Which number
// is which k plays no part as long as both operands agree, so neighbouring lanes take rows that lie
// two apart: of rows of 16 numbers, 80 bytes each, these are in different banks.
NASFAST_HOST_DEVICE constexpr int32_t turned_row(int32_t k) { return k % 4 * 2 + k / 4; }

}  // namespace tf32

}  // namespace nasfast::kernels::cuda
