// Load on a running server.
#pragma once
#include "coordinator/bench/serve_report.h"

namespace expertmesh {

struct ServeBenchResult {
  std::string model;  // as it was sent
  std::string date;   // of the start, UTC
  ServeFigures figures;
};
// Shows how it goes on standard error. Throws ModelError for bad options, NetworkError if the server cannot be asked.
ServeBenchResult run_serve_bench(ServeBenchOptions const& options);

}  // namespace expertmesh
