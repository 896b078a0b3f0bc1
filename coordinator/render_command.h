// `expertmesh render`: chat templates without a model.
#pragma once
#include "coordinator/options.h"

namespace expertmesh {

// JSON lines of standard input, as ChatTemplates::render takes them, to {"text"} or {"error"} on standard output, one
// line each. ModelError if there is no template; OutsideError if the renderer cannot be started.
void render_lines(RenderOptions const& options);

}  // namespace expertmesh
