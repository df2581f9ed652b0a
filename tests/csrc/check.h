// SPDX-License-Identifier: MIT
// Checks for the C++ tests. A failed check prints where and what, and the test goes on; end `main`
// with `return check::result();`.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>

namespace check {

inline int failures = 0;

inline void fail(const char* file, int line, const std::string& what) {
  ++failures;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

template <typename T>
std::string show(const T& value) {
  if constexpr (requires(std::ostream& out) { out << value; }) {
    std::ostringstream out;
    out << value;
    return out.str();
  } else {
    return "(unprintable)";
  }
}

// A function, so that each side is evaluated once.
template <typename A, typename B>
void equal(const char* file, int line, const char* text, const A& actual, const B& expected) {
  if (!(actual == expected)) {
    fail(file, line, std::string(text) + ": got " + show(actual) + ", want " + show(expected));
  }
}

inline int result() {
  if (failures != 0) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) \
  ((condition) ? void() : check::fail(__FILE__, __LINE__, "failed: " #condition))
#define CHECK_EQ(actual, expected) \
  check::equal(__FILE__, __LINE__, #actual " == " #expected, (actual), (expected))
#define CHECK_THROWS(expression, exception)                                      \
  do {                                                                           \
    try {                                                                        \
      (void)(expression);                                                        \
      check::fail(__FILE__, __LINE__, #expression " did not throw " #exception); \
    } catch (const exception&) {                                                 \
    }                                                                            \
  } while (false)
