#include "common/base/check.h"

#include <execinfo.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>

namespace expertmesh {

void check_failed(char const* expression, char const* file, int line, std::string const& values) {
  std::fprintf(stderr, "\nexpertmesh: broken invariant at %s:%d\n  %s\n  %s\n", file, line, expression, values.c_str());
  std::array<void*, 64> frames{};
  backtrace_symbols_fd(frames.data(), backtrace(frames.data(), frames.size()), STDERR_FILENO);
  std::abort();
}

}  // namespace expertmesh
