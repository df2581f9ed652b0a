// SPDX-License-Identifier: MIT
// Cells of NAS-Bench-101, from and to numpy arrays.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "host/bindings.h"
#include "host/nb101.h"

namespace py = pybind11;
namespace nb101 = nasfast::nb101;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

constexpr py::ssize_t kDigestBytes = sizeof(nasfast::Digest);

Array<uint8_t> hash_cells(const Array<uint8_t>& num_vertices, const Array<uint32_t>& bits,
                          const Array<uint8_t>& ops) {
  if (num_vertices.ndim() != 1) throw std::invalid_argument("num_vertices: wanted one dimension");
  const py::ssize_t count = num_vertices.size();
  if (bits.ndim() != 1 || bits.size() != count) {
    throw std::invalid_argument("bits: wanted one for each cell");
  }
  if (ops.ndim() != 2 || ops.shape(0) != count || ops.shape(1) != nb101::kMaxInner) {
    throw std::invalid_argument("ops: wanted [cells, 5]");
  }
  Array<uint8_t> out({count, kDigestBytes});
  uint8_t* row = out.mutable_data();
  const uint8_t* sizes = num_vertices.data();
  const uint32_t* edges = bits.data();
  const uint8_t* first_op = ops.data();
  const py::gil_scoped_release release;
  for (py::ssize_t i = 0; i < count; ++i, first_op += nb101::kMaxInner, row += kDigestBytes) {
    nb101::Cell cell{edges[i], sizes[i], {}};
    std::copy_n(first_op, nb101::kMaxInner, cell.ops.begin());
    try {
      std::ranges::copy(nb101::hash(cell), row);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("cell " + std::to_string(i) + ": " + error.what());
    }
  }
  return out;
}

// Also looks whether the user wants to stop.
void call_back(const std::optional<py::function>& on_progress, int64_t done, int64_t total) {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  if (on_progress) (*on_progress)(done, total);
}

py::tuple enumerate_cells(int max_vertices, const std::optional<py::function>& on_progress) {
  nb101::List list;
  {
    const py::gil_scoped_release release;
    list = nb101::enumerate(
        max_vertices, [&](int64_t done, int64_t total) { call_back(on_progress, done, total); });
  }
  const auto count = static_cast<py::ssize_t>(list.entries.size());
  Array<uint8_t> hashes({count, kDigestBytes}), num_vertices(count);
  Array<uint32_t> bits(count);
  Array<uint8_t> ops({count, static_cast<py::ssize_t>(nb101::kMaxInner)});
  for (py::ssize_t i = 0; i < count; ++i) {
    const auto& [hash, cell] = list.entries[i];
    std::ranges::copy(hash, hashes.mutable_data(i));
    num_vertices.mutable_at(i) = cell.num_vertices;
    bits.mutable_at(i) = cell.bits;
    std::ranges::copy(cell.ops, ops.mutable_data(i));
  }
  return py::make_tuple(hashes, num_vertices, bits, ops, list.num_classes);
}

}  // namespace

void bind_nb101(py::module_& m) {
  m.def("nb101_hashes", &hash_cells, py::arg("num_vertices"), py::arg("bits"), py::arg("ops"),
        "Hash cells of NAS-Bench-101 after pruning, [cells, 16].");
  m.def("nb101_cells", &enumerate_cells, py::arg("max_vertices"), py::arg("on_progress"),
        "List all distinct cells of NAS-Bench-101 sorted by hash: hash, num_vertices, bits, ops, "
        "and the number of isomorphism classes.");
}
