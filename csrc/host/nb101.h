// SPDX-License-Identifier: MIT
// Cells of NAS-Bench-101: their published hash, and the list of all of them.
// The definition is nasfast/spaces/nb101.py; this is the same, fast.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "host/md5.h"

namespace nasfast::nb101 {

constexpr int kMaxVertices = 7;  // with input (vertex 0) and output (the last)
constexpr int kMaxEdges = 9;
constexpr int kMaxInner = kMaxVertices - 2;
constexpr int kNumPairs = kMaxVertices * (kMaxVertices - 1) / 2;
constexpr uint8_t kNumOps = 3;
constexpr uint8_t kNoOp = 255;  // in `ops`, past the last inner vertex

struct Cell {
  uint32_t bits;         // bit b: an edge joins the b-th pair (0, 1), (0, 2), ..., (5, 6)
  uint8_t num_vertices;  // 2..kMaxVertices
  std::array<uint8_t, kMaxInner> ops;  // of vertices 1, 2, ...
};

struct Entry {
  Digest hash;
  Cell cell;
};

// Hash of the cell without the vertices that are on no path from input to output.
// Throws std::invalid_argument if the cell is not valid: wrong number of vertices, more than
// kMaxEdges edges, an edge or an operation past the last vertex, an unknown operation, or no path.
Digest hash(const Cell& cell);

// Every distinct cell of up to `max_vertices` vertices, all of them on paths from input to output,
// sorted by hash. Cells of equal hash are represented by the first in the order in which the
// benchmark's authors generated them: fewer vertices; then the smaller number whose bits from the
// lowest are the edges (0, 1), (0, 2), (1, 2), (0, 3), ... (by target, then source); then the
// smaller `ops`.
// Isomorphic cells have equal hashes, so only the first cell of each isomorphism class is hashed.
struct List {
  std::vector<Entry> entries;
  int64_t num_classes;  // isomorphism classes; more than the entries if two of them share a hash
};
using Progress = std::function<void(int64_t done, int64_t total)>;  // of labelled cells looked at
List enumerate(int max_vertices, const Progress& on_progress);

}  // namespace nasfast::nb101
