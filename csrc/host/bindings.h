// SPDX-License-Identifier: MIT
// What the files of the module _host add to it.
#pragma once

#include <pybind11/pybind11.h>

void bind_kendall(pybind11::module_& m);
void bind_nb101(pybind11::module_& m);
