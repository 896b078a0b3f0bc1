// Our own bugs: a broken invariant aborts with expression, values and stack (never used on input from outside).
#pragma once
#include <sstream>
#include <string>

namespace expertmesh {
[[noreturn]] void check_failed(char const* expression, char const* file, int line, std::string const& values);
}  // namespace expertmesh

// EM_CHECK(count == total, "count " << count << ", total " << total)
#define EM_CHECK(expression, values)                                                      \
  do {                                                                                    \
    if (!(expression)) [[unlikely]] {                                                     \
      std::ostringstream em_check_stream;                                                 \
      em_check_stream << values; /* NOLINT(bugprone-macro-parentheses) */                 \
      ::expertmesh::check_failed(#expression, __FILE__, __LINE__, em_check_stream.str()); \
    }                                                                                     \
  } while (false)
