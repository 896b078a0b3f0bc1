// The figures of an engine benchmark for people and for programs, each beside what the machine could do.
#pragma once
#include <string>

#include "coordinator/bench/engine_bench.h"

namespace expertmesh {

std::string to_table(EngineBenchOptions const& options, EngineFigures const& figures);
std::string to_json(EngineBenchOptions const& options, EngineFigures const& figures);

}  // namespace expertmesh
