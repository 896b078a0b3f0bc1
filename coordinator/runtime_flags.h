// Command-line options that every program with a model has.
#pragma once
#include "coordinator/model_runtime.h"

namespace CLI {
class App;
}

namespace expertmesh {

// --workers, --threads, --worker-threads, --bind, --dtype, --quantization, --kv-cache-dtype, --seed, --isa, --device,
// --worker-device, --worker-capacity, --transport, --row-transport, --static-exchange-bytes, --micro-batches,
// --allow-mixed-numerics, --enforce-eager, --gpu-memory-utilization, --trace, --trace-limit; what `options` holds is
// the default. options must outlive the parsing.
void add_runtime_flags(CLI::App& command, ModelRuntimeOptions& options);
void add_dtype_flag(CLI::App& command, std::optional<DType>& dtype);
void add_kv_dtype_flag(CLI::App& command, std::optional<DType>& dtype);
void add_isa_flag(CLI::App& command, std::optional<Isa>& isa);
void add_quantization_flag(CLI::App& command, Quantization& quantization);

}  // namespace expertmesh
