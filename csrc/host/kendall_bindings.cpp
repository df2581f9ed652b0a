// SPDX-License-Identifier: MIT
// Pair counts of rank metrics, to numpy arrays.
#include <pybind11/numpy.h>

#include <functional>
#include <string>
#include <type_traits>

#include "host/bindings.h"
#include "host/kendall.h"

namespace py = pybind11;

namespace {

using Column = py::array_t<double, py::array::c_style>;

// A row of the result is a PairCounts as it lies in memory.
static_assert(std::is_standard_layout_v<nasfast::PairCounts>);
constexpr py::ssize_t kFields = sizeof(nasfast::PairCounts) / sizeof(int64_t);

std::span<const double> view(const char* name, const Column& column) {
  if (column.ndim() != 1) throw std::invalid_argument(std::string(name) + ": wanted one dimension");
  return {column.data(), static_cast<size_t>(column.size())};
}

py::array_t<int64_t> count_pairs(const Column& x, const Column& y) {
  py::array_t<int64_t> out(kFields);
  auto* counts = reinterpret_cast<nasfast::PairCounts*>(out.mutable_data());
  const auto x_view = view("x", x), y_view = view("y", y);
  const py::gil_scoped_release release;
  *counts = nasfast::count_pairs(x_view, y_view);
  return out;
}

py::array_t<int64_t> bootstrap_pairs(const Column& x, const Column& y, int64_t resamples,
                                     uint64_t seed, int threads) {
  if (resamples < 0) throw std::invalid_argument("resamples: wanted at least 0");
  py::array_t<int64_t> out({static_cast<py::ssize_t>(resamples), kFields});
  auto* counts = reinterpret_cast<nasfast::PairCounts*>(out.mutable_data());
  const auto x_view = view("x", x), y_view = view("y", y);
  const py::gil_scoped_release release;
  nasfast::bootstrap_pairs(x_view, y_view, seed, threads, {counts, static_cast<size_t>(resamples)});
  return out;
}

}  // namespace

void bind_kendall(py::module_& m) {
  m.def("count_pairs", &count_pairs, py::arg("x"), py::arg("y"),
        "Count concordant, discordant and tied pairs: the fields of PairCounts, [10].");
  m.def("bootstrap_pairs", &bootstrap_pairs, py::arg("x"), py::arg("y"), py::arg("resamples"),
        py::arg("seed"), py::arg("threads"),
        "Count the pairs of resamples of the rows, [resamples, 10].");
}
