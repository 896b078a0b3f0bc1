#include "coordinator/runtime_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "common/base/option_checks.h"

namespace expertmesh {
namespace {

constexpr char const* kAuto = "auto";

std::string text_of(std::optional<DType> dtype) {
  return dtype ? std::string(name_of(*dtype)) : kAuto;
}

// One of `types` by its name, or none for auto.
void add_type_flag(CLI::App& command, char const* name, std::optional<DType>& chosen, std::vector<DType> const& types,
                   char const* help) {
  std::vector<std::string> names{kAuto};
  for (DType const type : types) names.emplace_back(name_of(type));
  command
      .add_option_function<std::string>(
          name,
          [&chosen, types](std::string const& text) {
            auto const type = std::ranges::find(types, text, [](DType t) { return name_of(t); });
            chosen = type == types.end() ? std::nullopt : std::optional(*type);
          },
          help)
      ->check(CLI::IsMember(names))
      ->default_str(text_of(chosen));
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (Isa const isa : kIsas) names.emplace_back(name_of(isa));
  return names;
}

}  // namespace

void add_dtype_flag(CLI::App& command, std::optional<DType>& dtype) {
  add_type_flag(command, "--dtype", dtype, {DType::f32, DType::bf16},
                "Numbers of weights and wire rows; auto: float32 for a float32 checkpoint, else bfloat16");
}

void add_kv_dtype_flag(CLI::App& command, std::optional<DType>& dtype) {
  add_type_flag(
      command, "--kv-cache-dtype", dtype, {DType::f32, DType::bf16, DType::i8},
      "Numbers of the KV cache; int8: with a scale for each token's key and value of a head; auto: as --dtype");
}

void add_quantization_flag(CLI::App& command, Quantization& quantization) {
  add_choice<Quantization>(
      command, "--quantization", quantization,
      {{"none", Quantization::none}, {"int8", Quantization::int8}, {"int4", Quantization::int4}},
      "int8, int4: weights of linears and experts become that while they are loaded, activations at each of them int8 "
      "[none]");
}

void add_isa_flag(CLI::App& command, std::optional<Isa>& isa) {
  command
      .add_option_function<std::string>(
          "--isa", [&isa](std::string const& name) { isa = isa_from_name(name); },
          "Instruction set of the kernels [the best this processor runs]")
      ->check(CLI::IsMember(isa_names()));
}

void add_runtime_flags(CLI::App& command, ModelRuntimeOptions& options) {
  command
      .add_option("--workers", options.workers,
                  "Worker processes that hold the experts; 0 keeps the experts in this process")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--threads", options.threads, "Compute threads of the coordinator; 0 takes every usable core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command
      .add_option("--worker-threads", options.worker_threads,
                  "Compute threads of each worker; 0 shares the usable cores")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  add_choice<bool>(command, "--bind", options.bind, {{"auto", true}, {"none", false}},
                   "Compute threads, here and in the workers of this host: auto: on several NUMA nodes each keeps to "
                   "its node, whose memory has its share of the weights, and where there are more threads than cores "
                   "to a core; none: wherever the system puts them [auto]");
  add_dtype_flag(command, options.dtype);
  add_quantization_flag(command, options.quantization);
  add_kv_dtype_flag(command, options.kv_dtype);
  command.add_option("--seed", options.dummy_seed, "Seed of dummy weights")->capture_default_str();
  add_isa_flag(command, options.isa);
  auto* const device =
      command
          .add_option("--device", options.device,
                      "What runs the coordinator, and the experts without --workers: cpu, cuda or cuda:N")
          ->check(valid_device_name)
          ->capture_default_str();
  command.add_option("--worker-device", options.worker_device, "What runs the experts of workers: cpu, cuda or cuda:N")
      ->check(valid_device_name)
      ->capture_default_str();
  command
      .add_option(
          "--worker-capacity", options.worker_capacity,
          "Gigabytes of weights that a worker of this host reads a second: its share of the experts goes by that "
          "[measured]")
      ->check(range_of_numbers(0.001, 1e6));
  add_choice<MessageTransport>(
      command, "--transport", options.transport,
      {{"auto", MessageTransport::automatic}, {"shm", MessageTransport::shm}, {"mpi", MessageTransport::mpi}},
      "Messages to workers: auto: through shared memory on this host, else by MPI; shm: or refuse; mpi [auto]");
  add_choice<RowTransport>(
      command, "--row-transport", options.row_transport,
      {{"auto", RowTransport::automatic}, {"host", RowTransport::host}, {"nccl", RowTransport::nccl}},
      "Rows between GPUs: auto: by NCCL where both ends have it; host: with the messages; nccl: or refuse [auto]");
  command
      .add_option("--static-exchange-bytes", options.static_exchange_bytes,
                  "Decode steps whose rows by NCCL are at most so many bytes a layer, all workers and both ways "
                  "together, do without the host on their way; 0: none")
      ->check(CLI::Range(std::size_t{0}, std::size_t{1} << 40))
      ->capture_default_str();
  add_choice<MicroBatchRule>(
      command, "--micro-batches", options.micro_batches,
      {{"auto", MicroBatchRule::automatic}, {"1", MicroBatchRule::one}, {"2", MicroBatchRule::two}},
      "Of a step: 2: attention of one while workers run the experts of the other; auto: where steps of that size have "
      "been faster so, 1 where experts are in this process or workers on its cores [auto]");
  command.add_flag("--allow-mixed-numerics", options.mixed_numerics,
                   "Workers whose kernels are others than the profile's may take part: bits depend on who runs what");
  command.add_flag_callback(
      "--enforce-eager", [&options] { options.device_graphs = false; },
      "On a GPU, launch every kernel by itself, also where a step could be one CUDA graph");
  command
      .add_option("--gpu-memory-utilization", options.device_memory_share,
                  "Share of the GPU's free memory that weights and KV cache may take")
      ->check(range_of_numbers(0.05, 1))
      ->needs(device)
      ->capture_default_str();
  auto* const trace = command.add_option(
      "--trace", options.trace_file,
      "File for a trace of requests, steps, stages, exchanges and workers, for ui.perfetto.dev [none is written]");
  command.add_option("--trace-limit", options.trace_bytes, "Bytes of that file, after which no more is written [256M]")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::size_t{1} << 12, std::size_t{1} << 40))
      ->needs(trace);
}

}  // namespace expertmesh
