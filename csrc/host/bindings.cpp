// SPDX-License-Identifier: MIT
// The module _host: work on programs that needs neither torch nor the GIL's attention.
#include "host/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "program/program_table.h"

namespace py = pybind11;

namespace {

using Table = py::array_t<int32_t, py::array::c_style>;

std::span<const int32_t> view(const Table& table) {
  if (table.ndim() != 1) throw std::invalid_argument("program table: wanted one dimension");
  return {table.data(), static_cast<size_t>(table.size())};
}

py::dict count_work(const Table& table, int64_t height, int64_t width) {
  constexpr std::array<const char*, nasfast::kNumOpcodes> kNames = {
      "input", "zero", "copy", "sum", "conv", "avg_pool", "max_pool", "mix"};
  nasfast::Work work;
  {
    const auto flat = view(table);
    const py::gil_scoped_release release;
    work = nasfast::ProgramTable(flat).count_work(height, width);
  }
  py::dict evaluations;
  for (size_t op = 0; op < kNames.size(); ++op) evaluations[kNames[op]] = work.evaluations[op];
  py::dict result;
  result["evaluations"] = evaluations;
  result["macs"] = work.macs;
  result["cell_macs"] = work.cell_macs;
  result["shared_macs"] = work.shared_macs;
  result["chunk_macs"] = work.chunk_macs;
  return result;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() =
      "Planning helpers over packed program tables (csrc/program/program_table.h), pair counts of "
      "rank metrics (csrc/host/kendall.h) and cells of NAS-Bench-101 (csrc/host/nb101.h).";
  m.def(
      "check_table", [](const Table& table) { nasfast::ProgramTable{view(table)}; },
      py::arg("table"), "Check everything a walk over the table relies on; ValueError if not so.");
  m.def("count_work", &count_work, py::arg("table"), py::arg("height"), py::arg("width"),
        "Count evaluations and multiply-accumulates of running every lane on one image.");
  bind_kendall(m);
  bind_nb101(m);
}
