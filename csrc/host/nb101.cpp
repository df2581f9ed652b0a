// SPDX-License-Identifier: MIT
#include "host/nb101.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace nasfast::nb101 {
namespace {

constexpr int kInputLabel = -1;
constexpr int kOutputLabel = -2;
constexpr int kHexDigits = 32;

// Number of the pair (i, j), i < j.
constexpr int pair_of(int i, int j) { return i * (2 * kMaxVertices - i - 1) / 2 + j - i - 1; }

// Neighbours of each vertex as sets of bits.
struct Graph {
  int size;
  std::array<uint8_t, kMaxVertices> into;
  std::array<uint8_t, kMaxVertices> out_of;
};

Graph graph_of(uint32_t bits, int size) {
  Graph graph{size, {}, {}};
  for (int i = 0; i < size; ++i) {
    for (int j = i + 1; j < size; ++j) {
      if (bits >> pair_of(i, j) & 1) {
        graph.out_of[i] |= 1u << j;
        graph.into[j] |= 1u << i;
      }
    }
  }
  return graph;
}

// Vertices on a path from input to output, as a set of bits.
uint8_t on_paths(const Graph& graph) {
  const int last = graph.size - 1;
  unsigned from_input = 1, to_output = 1u << last;
  for (int v = 1; v <= last; ++v) {
    if (graph.into[v] & from_input) from_input |= 1u << v;
  }
  for (int v = last - 1; v >= 0; --v) {
    if (graph.out_of[v] & to_output) to_output |= 1u << v;
  }
  return static_cast<uint8_t>(from_input & to_output);
}

void check(const Cell& cell) {
  const int size = cell.num_vertices;
  if (size < 2 || size > kMaxVertices) {
    throw std::invalid_argument("wanted 2.." + std::to_string(kMaxVertices) + " vertices, got " +
                                std::to_string(size));
  }
  uint32_t possible = 0;
  for (int i = 0; i < size; ++i) {
    for (int j = i + 1; j < size; ++j) possible |= 1u << pair_of(i, j);
  }
  if (cell.bits & ~possible) throw std::invalid_argument("an edge joins no pair of its vertices");
  if (std::popcount(cell.bits) > kMaxEdges) {
    throw std::invalid_argument("wanted at most " + std::to_string(kMaxEdges) + " edges, got " +
                                std::to_string(std::popcount(cell.bits)));
  }
  for (int v = 0; v < kMaxInner; ++v) {
    const bool inner = v < size - 2;
    if (inner ? cell.ops[v] >= kNumOps : cell.ops[v] != kNoOp) {
      const std::string wanted = inner ? "an operation in 0.." + std::to_string(kNumOps - 1)
                                       : std::to_string(kNoOp) + " (no such vertex)";
      throw std::invalid_argument("vertex " + std::to_string(v + 1) + ": wanted " + wanted +
                                  ", got " + std::to_string(cell.ops[v]));
    }
  }
}

char* write_text(std::string_view text, char* out) {
  return std::copy(text.begin(), text.end(), out);
}

// By insertion: there are seven at most.
void sort_digests(Digest* digests, int count) {
  for (int i = 1; i < count; ++i) {
    for (int j = i; j > 0 && digests[j] < digests[j - 1]; --j)
      std::swap(digests[j], digests[j - 1]);
  }
}

// Hexadecimal digits of the digests in a set, in their order.
char* write_sorted(const std::array<Digest, kMaxVertices>& digests, unsigned set, char* out) {
  std::array<Digest, kMaxVertices> chosen;
  int count = 0;
  for (; set != 0; set &= set - 1) chosen[count++] = digests[std::countr_zero(set)];
  sort_digests(chosen.data(), count);
  for (int i = 0; i < count; ++i) out = write_hex(chosen[i], out);
  return out;
}

Digest hash_pruned(const Graph& graph, const std::array<int, kMaxVertices>& labels) {
  const int size = graph.size;
  std::array<Digest, kMaxVertices> digests{}, next{};
  char text[kMaxVertices * (kHexDigits + 4) + 2];  // the longest is the last: a list in quotes
  for (int v = 0; v < size; ++v) {
    const int length =
        std::snprintf(text, sizeof text, "(%d, %d, %d)", std::popcount(graph.out_of[v]),
                      std::popcount(graph.into[v]), labels[v]);
    digests[v] = md5({text, static_cast<size_t>(length)});
  }
  for (int round = 0; round < size; ++round) {
    for (int v = 0; v < size; ++v) {
      char* end = write_sorted(digests, graph.into[v], text);
      *end++ = '|';
      end = write_sorted(digests, graph.out_of[v], end);
      *end++ = '|';
      end = write_hex(digests[v], end);
      next[v] = md5({text, static_cast<size_t>(end - text)});
    }
    digests = next;
  }
  sort_digests(digests.data(), size);
  char* end = text;
  for (int v = 0; v < size; ++v) {
    end = write_text(v == 0 ? "['" : "', '", end);
    end = write_hex(digests[v], end);
  }
  end = write_text("']", end);
  return md5({text, static_cast<size_t>(end - text)});
}

Digest hash_checked(const Cell& cell) {
  const Graph whole = graph_of(cell.bits, cell.num_vertices);
  const unsigned kept = on_paths(whole);
  if (kept == 0) throw std::invalid_argument("no path leads from the input to the output");
  Graph graph{0, {}, {}};
  std::array<int, kMaxVertices> number{}, labels{};
  for (int v = 0; v < whole.size; ++v) {
    if (!(kept >> v & 1)) continue;
    number[v] = graph.size;
    labels[graph.size] = v == 0                ? kInputLabel
                         : v == whole.size - 1 ? kOutputLabel
                                               : cell.ops[v - 1];
    for (unsigned from = whole.into[v] & kept; from != 0; from &= from - 1) {
      const int source = number[std::countr_zero(from)];
      graph.into[graph.size] |= 1u << source;
      graph.out_of[source] |= 1u << graph.size;
    }
    ++graph.size;
  }
  return hash_pruned(graph, labels);
}

// Place of a pair in the number that orders matrices: by target, then source, the first is lowest.
constexpr int place_of(int i, int j) { return j * (j - 1) / 2 + i; }

// A matrix that comes first among its isomorphic ones, and how it maps to itself.
struct Matrix {
  uint32_t number;
  uint32_t bits;
  uint8_t num_vertices;
  std::vector<std::array<uint8_t, kMaxInner>> automorphisms;  // without the identity
};

using Permutation = std::array<uint8_t, kMaxInner>;  // inner vertex v + 1 becomes p[v] + 1

uint8_t image(const Permutation& p, int v, int size) {
  return v == 0 || v == size - 1 ? static_cast<uint8_t>(v) : p[v - 1] + 1;
}

// Number of the matrix with its vertices renumbered; false if an edge would lead backwards.
bool permute(const Graph& graph, const Permutation& p, uint32_t& number) {
  number = 0;
  for (int i = 0; i < graph.size; ++i) {
    const int from = image(p, i, graph.size);
    for (unsigned rest = graph.out_of[i]; rest != 0; rest &= rest - 1) {
      const int to = image(p, std::countr_zero(rest), graph.size);
      if (from >= to) return false;
      number |= 1u << place_of(from, to);
    }
  }
  return true;
}

// Whether no renumbering gives a smaller number; collects those that give the same.
bool is_first(const Graph& graph, Matrix& matrix) {
  Permutation p;
  std::iota(p.begin(), p.end(), uint8_t{0});
  const auto end = p.begin() + (graph.size - 2);
  while (std::next_permutation(p.begin(), end)) {
    uint32_t number;
    if (!permute(graph, p, number)) continue;
    if (number < matrix.number) return false;
    if (number == matrix.number) matrix.automorphisms.push_back(p);
  }
  return true;
}

std::vector<Matrix> first_matrices(int size) {
  std::vector<Matrix> found;
  for (uint32_t number = 0; number < 1u << place_of(0, size); ++number) {
    if (std::popcount(number) > kMaxEdges) continue;
    uint32_t bits = 0;
    for (int i = 0; i < size; ++i) {
      for (int j = i + 1; j < size; ++j) bits |= (number >> place_of(i, j) & 1) << pair_of(i, j);
    }
    const Graph graph = graph_of(bits, size);
    if (on_paths(graph) != (1u << size) - 1) continue;
    Matrix matrix{number, bits, static_cast<uint8_t>(size), {}};
    if (is_first(graph, matrix)) found.push_back(std::move(matrix));
  }
  return found;
}

// Advances to the next vector of operations in lexicographic order; false after the last.
bool next_ops(std::array<uint8_t, kMaxInner>& ops, int inner) {
  for (int v = inner - 1; v >= 0; --v) {
    if (++ops[v] < kNumOps) return true;
    ops[v] = 0;
  }
  return false;
}

bool is_first(const Matrix& matrix, const std::array<uint8_t, kMaxInner>& ops) {
  const int inner = matrix.num_vertices - 2;
  return std::none_of(matrix.automorphisms.begin(), matrix.automorphisms.end(),
                      [&](const Permutation& p) {
                        std::array<uint8_t, kMaxInner> moved = ops;
                        for (int v = 0; v < inner; ++v) moved[p[v]] = ops[v];
                        return moved < ops;
                      });
}

}  // namespace

Digest hash(const Cell& cell) {
  check(cell);
  return hash_checked(cell);
}

List enumerate(int max_vertices, const Progress& on_progress) {
  if (max_vertices < 2 || max_vertices > kMaxVertices) {
    throw std::invalid_argument("max_vertices: wanted 2.." + std::to_string(kMaxVertices) +
                                ", got " + std::to_string(max_vertices));
  }
  std::vector<Matrix> matrices;
  for (int size = 2; size <= max_vertices; ++size) {
    std::ranges::move(first_matrices(size), std::back_inserter(matrices));
  }
  const auto labellings = [](const Matrix& matrix) {
    int64_t count = 1;
    for (int v = 0; v < matrix.num_vertices - 2; ++v) count *= kNumOps;
    return count;
  };
  int64_t total = 0, done = 0;
  for (const Matrix& matrix : matrices) total += labellings(matrix);

  std::vector<Entry> entries;
  for (const Matrix& matrix : matrices) {
    const int inner = matrix.num_vertices - 2;
    Cell cell{matrix.bits, matrix.num_vertices, {}};
    std::fill(cell.ops.begin() + inner, cell.ops.end(), kNoOp);
    do {
      if (is_first(matrix, cell.ops)) entries.push_back({hash_checked(cell), cell});
    } while (next_ops(cell.ops, inner));
    done += labellings(matrix);
    if (on_progress) on_progress(done, total);
  }
  const auto num_classes = static_cast<int64_t>(entries.size());
  std::ranges::stable_sort(entries, {}, &Entry::hash);
  const auto same = std::ranges::unique(entries, {}, &Entry::hash);
  entries.erase(same.begin(), same.end());
  return {std::move(entries), num_classes};
}

}  // namespace nasfast::nb101
