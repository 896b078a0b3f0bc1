// The coordinator put together: model, experts, engine and HTTP server, from start to drain.
#pragma once
#include "coordinator/options.h"
#include "coordinator/restart.h"

namespace expertmesh {

// What serve() returns when this program should be started anew.
constexpr int kExitRestart = 75;

// Serves until SIGINT or SIGTERM, then drains. Returns the exit code; throws ModelError, OutsideError or ClusterError
// if the server cannot be brought up. With workers the process must be left by exit_without_finalize().
// restart: hears where clients have found this server.
int serve(ServeOptions const& options, Restart& restart);

}  // namespace expertmesh
