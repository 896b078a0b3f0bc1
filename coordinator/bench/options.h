// The command line of expertmesh-bench as plain data.
#pragma once
#include <variant>

#include "coordinator/bench/engine_bench.h"
#include "coordinator/bench/quality_bench.h"
#include "coordinator/bench/serve_report.h"

namespace expertmesh {

struct ExitNow {
  int code = 0;  // --help, --version, or a bad command line that has been reported
};

// Prints help and usage errors itself.
std::variant<EngineBenchOptions, ServeBenchOptions, QualityBenchOptions, ExitNow> parse_bench_command_line(int argc,
                                                                                                           char** argv);

}  // namespace expertmesh
