// Times of steps without a server around them: prompts, then decoding, at several batch sizes, with dummy weights.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/model_runtime.h"

namespace expertmesh {

struct EngineBenchOptions {
  ModelRuntimeOptions runtime;  // model_dir: as the user gave it, a directory or a config.json; sizes are set here
  std::vector<std::size_t> batch_sizes{1, 4, 16, 64};
  std::size_t input_len = 128;                    // tokens of a prompt
  std::size_t output_len = 32;                    // decode steps
  std::size_t prefill_tokens = 512;               // most of a step
  std::size_t read_bytes = std::size_t{1} << 30;  // read to see how fast memory is; much more than any cache
  bool stages = false;                            // print a table of each stage's work, floor and time
  std::optional<std::filesystem::path> json;
};

// The stages of steps, means over them.
struct StageMeans {
  StageSeconds seconds{};
  StageSeconds floors{};                        // the least they could take; nothing with a device
  std::array<double, kNumStages> bytes{};       // that they had to move; likewise
  std::array<double, kNumStages> operations{};  // likewise; a multiply-add is two
  std::size_t num_steps = 0;
};

// What so many threads can do.
struct CeilingsOf {
  std::size_t threads = 0;
  double memory_bytes_per_second = 0;  // read
  double cache_bytes_per_second = 0;   // read, of what the last level keeps
  double f32 = 0, bf16 = 0, int8 = 0;  // operations a second
  double barrier_seconds = 0;          // of an op with nothing to do
};

// What was measured at one batch size.
struct BatchFigures {
  std::size_t batch_size = 0;     // B
  std::size_t prompt_tokens = 0;  // of all B prompts
  double prefill_seconds = 0;     // from nothing to the last prompt's logits
  double prefill_flops = 0;       // operations this takes
  double step_seconds = 0;        // of a decode step, median; each makes B tokens
  double weight_bytes = 0;        // read in a decode step, mean
  double kv_bytes = 0;            // read in a decode step, mean
  double step_flops = 0;          // operations a decode step takes, mean
  double experts_hit = 0;         // distinct experts of a MoE layer in a decode step, mean
  StageMeans prefill_stages{};    // of a step with prompts
  StageMeans decode_stages{};
  double mean_step_seconds = 0;  // what the stages are parts of
  // Of a device. Its stages' times are of other steps, by its own clock, all of whose calls lay ready before the device
  // began: it never waited for the host within a stage, up to the first fetch. The marks are in them, some microseconds
  // a layer.
  // With workers it waits for them, and for the host that reads the routing in the exact form.
  double device_seconds = 0;   // of all stages but fetch: without workers what the kernels take; 0: no device
  double share_of_graphs = 0;  // of the decode steps, that were one CUDA graph each
  double share_of_static = 0;  // of the decode steps, whose exchange took the static form
  [[nodiscard]] double bytes() const { return weight_bytes + kv_bytes; }
  // That the device had nothing to do.
  [[nodiscard]] double gap_seconds() const { return mean_step_seconds - device_seconds; }
  // Of device_seconds with workers: from a layer's rows packed to its rows combined, the workers' computation included.
  [[nodiscard]] double exchange_seconds() const;
};

struct EngineFigures {
  ModelPlan plan;               // with all experts in one place
  DType dtype = DType::bf16;    // of rows
  DType weights = DType::bf16;  // of packed weights
  DType kv_dtype = DType::bf16;
  Isa isa = Isa::scalar;
  std::size_t num_experts = 0;          // of a MoE layer
  std::size_t ceiling_threads = 0;      // that measured the next two: those of all processes, at most the cores
  double memory_bytes_per_second = 0;   // read, at best
  double flops_per_second = 0;          // at best, at the weights' type; of a device in fp32, as its kernels work
  std::optional<std::string> device{};  // its name; the figures above are its own then, of no threads
  std::optional<double> tensor_flops_per_second{};  // of its tensor cores, bf16, at best
  std::vector<CeilingsOf> ceilings{};               // of one thread and of all; with --stages
  std::vector<std::string> row_transports{};        // of each worker: WorkerStatus::row_transport
  std::vector<BatchFigures> batches;                // as EngineBenchOptions::batch_sizes
};

// Throws ModelError, OutsideError, ClusterError or ExpertsLost; ClusterError also if a worker died. With workers the
// process must be left by exit_without_finalize().
EngineFigures run_engine_bench(EngineBenchOptions const& options);

}  // namespace expertmesh
