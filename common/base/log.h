// The process's log: one line per event on standard error, through spdlog.
#pragma once
#include <spdlog/spdlog.h>

#include <string>

namespace expertmesh {
// Lines carry time, level and `process` ("coordinator", "worker 2"). Level from EXPERTMESH_LOG_LEVEL (trace, debug,
// info, warn, error); anything else there is refused with a ModelError that names the variable.
void init_log(std::string const& process);
}  // namespace expertmesh
