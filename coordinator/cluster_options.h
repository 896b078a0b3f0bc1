// A cluster file as the options of `serve` that say the same.
#pragma once
#include <filesystem>

#include "coordinator/model_runtime.h"

namespace expertmesh {

// Sets the devices, the workers of this host, how many others are awaited, and how they join. Throws ModelError.
void apply_cluster_file(std::filesystem::path const& file, ModelRuntimeOptions& options);

}  // namespace expertmesh
