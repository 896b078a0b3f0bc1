#include "coordinator/bench/engine_report.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

namespace expertmesh {
namespace {

double prefill_tokens_per_second(BatchFigures const& b) {
  return static_cast<double>(b.prompt_tokens) / b.prefill_seconds;
}
double prefill_flops_per_second(BatchFigures const& b) {
  return b.prefill_flops / b.prefill_seconds;
}
double decode_tokens_per_second(BatchFigures const& b) {
  return static_cast<double>(b.batch_size) / b.step_seconds;
}
double decode_bytes_per_second(BatchFigures const& b) {
  return b.bytes() / b.step_seconds;
}
// What lies between the stages: the batch made up, the engine told.
double other_seconds(BatchFigures const& b) {
  return b.mean_step_seconds - std::accumulate(b.decode_stages.seconds.begin(), b.decode_stages.seconds.end(), 0.0);
}

std::string experts_text(ModelRuntimeOptions const& options, EngineFigures const& figures) {
  if (options.workers > 0) return fmt::format("in {} workers on {}", options.workers, options.worker_device);
  return figures.device ? "on the device" : "in this process";
}

std::string machine_text(EngineFigures const& figures) {
  if (!figures.device)
    return fmt::format("machine    {} threads, {}: reads {:.1f} GB/s, computes {:.0f} GFLOP/s ({})\n",
                       figures.ceiling_threads, name_of(figures.isa), figures.memory_bytes_per_second / 1e9,
                       figures.flops_per_second / 1e9, name_of(figures.weights));
  std::string const tensor = figures.tensor_flops_per_second
                                 ? fmt::format("{:.0f} GFLOP/s", *figures.tensor_flops_per_second / 1e9)
                                 : "not measured";
  return fmt::format(
      "device     {}: reads {:.1f} GB/s, computes {:.0f} GFLOP/s (float32 multiply-adds)\n"
      "           tensor cores (bfloat16 by mma.sync, as the kernels use them): {}\n",
      *figures.device, figures.memory_bytes_per_second / 1e9, figures.flops_per_second / 1e9, tensor);
}

// Stages that a step of this kind has.
bool is_shown(Stage stage, EngineFigures const& figures) {
  return stage != Stage::fetch || figures.device;
}

// Operations a second at best, of the units that multiply the weights.
double peak(EngineFigures const& figures) {
  bool const tensor = figures.weights == DType::bf16 && figures.tensor_flops_per_second;
  return tensor ? *figures.tensor_flops_per_second : figures.flops_per_second;
}

// Of the least time a decode step can take: what it has to read, or to compute, whichever is longer.
double share_of_floor(BatchFigures const& b, EngineFigures const& figures) {
  return std::max(b.bytes() / figures.memory_bytes_per_second, b.step_flops / peak(figures)) / b.step_seconds;
}

double share_of_memory(double bytes, double seconds, EngineFigures const& figures) {
  return bytes / seconds / figures.memory_bytes_per_second;
}

// Where the time of a device's steps goes.
std::string gaps_table(EngineFigures const& figures) {
  std::string out = fmt::format(
      "\ndevice     ms a step; share: of read bandwidth, while it is busy; graphs: steps that were one launch\n"
      "{:>5}{:>10}{:>10}{:>8}{:>10}{:>8}{:>8}\n",
      "B", "step", "busy", "share", "gap", "", "graphs");
  for (BatchFigures const& b : figures.batches)
    out += fmt::format("{:>5}{:>10.3f}{:>10.3f}{:>7.1f}%{:>10.3f}{:>7.1f}%{:>7.0f}%\n", b.batch_size,
                       b.mean_step_seconds * 1e3, b.device_seconds * 1e3,
                       100 * share_of_memory(b.bytes(), b.device_seconds, figures), b.gap_seconds() * 1e3,
                       100 * b.gap_seconds() / b.mean_step_seconds, 100 * b.share_of_graphs);
  return out;
}

// Of a device's steps with workers: it has nothing to do while it waits for them.
std::string exchange_table(EngineFigures const& figures) {
  std::string out = "\nrows by   ";
  for (std::string const& transport : figures.row_transports) out += " " + transport;
  out += fmt::format(
      "\nexchange   ms a step by the device's clock, from rows packed to rows combined, the workers' experts in it;\n"
      "           static: steps whose exchange took the static form\n"
      "{:>5}{:>10}{:>10}{:>10}{:>8}{:>8}\n",
      "B", "step", "device", "exchange", "share", "static");
  for (BatchFigures const& b : figures.batches)
    out += fmt::format("{:>5}{:>10.3f}{:>10.3f}{:>10.3f}{:>7.1f}%{:>7.0f}%\n", b.batch_size, b.mean_step_seconds * 1e3,
                       b.device_seconds * 1e3, b.exchange_seconds() * 1e3,
                       100 * b.exchange_seconds() / b.device_seconds, 100 * b.share_of_static);
  return out;
}

std::string ceilings_table(EngineFigures const& figures) {
  std::string out = fmt::format(
      "\nceilings   GB/s read, GFLOP/s (GOP/s); cache: 4 MiB a thread, over and over; barrier: of an op, us\n"
      "{:>8}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
      "threads", "memory", "cache", "f32", "bf16", "int8", "barrier");
  for (CeilingsOf const& c : figures.ceilings)
    out += fmt::format("{:>8}{:>10.1f}{:>10.1f}{:>10.0f}{:>10.0f}{:>10.0f}{:>10.2f}\n", c.threads,
                       c.memory_bytes_per_second / 1e9, c.cache_bytes_per_second / 1e9, c.f32 / 1e9, c.bf16 / 1e9,
                       c.int8 / 1e9, c.barrier_seconds * 1e6);
  return out;
}

// Every stage that takes time, and all of them.
std::string stages_table(std::string_view what, StageMeans const& stages) {
  std::string out =
      fmt::format("{:<16}{:>10}{:>10}{:>11}{:>11}{:>9}\n", what, "MB", "GFLOP", "floor ms", "ms", "share");
  auto const line = [&](std::string_view name, double bytes, double operations, double floor, double seconds) {
    out += fmt::format("{:<16}{:>10.2f}{:>10.3f}{:>11.3f}{:>11.3f}{:>8.1f}%\n", name, bytes / 1e6, operations / 1e9,
                       floor * 1e3, seconds * 1e3, 100 * floor / seconds);
  };
  double bytes = 0, operations = 0, floors = 0, seconds = 0;
  for (std::size_t s = 0; s < kNumStages; ++s) {
    if (stages.seconds[s] <= 0) continue;
    line(kStageNames[s], stages.bytes[s], stages.operations[s], stages.floors[s], stages.seconds[s]);
    bytes += stages.bytes[s];
    operations += stages.operations[s];
    floors += stages.floors[s];
    seconds += stages.seconds[s];
  }
  line("all", bytes, operations, floors, seconds);
  return out;
}

nlohmann::ordered_json to_json(StageMeans const& stages) {
  nlohmann::ordered_json out;
  for (std::size_t s = 0; s < kNumStages; ++s)
    out[std::string(kStageNames[s])] = {{"bytes", stages.bytes[s]},
                                        {"operations", stages.operations[s]},
                                        {"floor_ms", stages.floors[s] * 1e3},
                                        {"ms", stages.seconds[s] * 1e3}};
  return out;
}

}  // namespace

std::string to_table(EngineBenchOptions const& options, EngineFigures const& figures) {
  std::string out =
      fmt::format("model      {}: {:.0f} M parameters, {:.0f} M active, {}, weights {}, KV cache {}, experts {}\n",
                  options.runtime.model_dir.string(), static_cast<double>(figures.plan.parameters) / 1e6,
                  static_cast<double>(figures.plan.active_parameters) / 1e6, name_of(figures.dtype),
                  name_of(figures.weights), name_of(figures.kv_dtype), experts_text(options.runtime, figures));
  out += machine_text(figures);

  out += fmt::format("\nprefill    {} tokens a prompt, {} a step\n{:>5}{:>10}{:>10}{:>10}{:>8}\n", options.input_len,
                     options.prefill_tokens, "B", "tokens", "tok/s", "GFLOP/s", "share");
  for (BatchFigures const& b : figures.batches)
    out += fmt::format("{:>5}{:>10}{:>10.1f}{:>10.1f}{:>7.1f}%\n", b.batch_size, b.prompt_tokens,
                       prefill_tokens_per_second(b), prefill_flops_per_second(b) / 1e9,
                       100 * prefill_flops_per_second(b) / peak(figures));

  out += fmt::format(
      "\ndecode     {} steps; floor: share of the least time, to read or to compute what it has to\n"
      "{:>5}{:>10}{:>10}{:>14}{:>12}{:>9}{:>8}{:>8}{:>8}\n",
      options.output_len, "B", "step ms", "tok/s", "experts hit", "weights MB", "KV MB", "GB/s", "share", "floor");
  for (BatchFigures const& b : figures.batches)
    out += fmt::format("{:>5}{:>10.2f}{:>10.1f}{:>14}{:>12.1f}{:>9.2f}{:>8.1f}{:>7.1f}%{:>7.1f}%\n", b.batch_size,
                       b.step_seconds * 1e3, decode_tokens_per_second(b),
                       fmt::format("{:.1f} of {}", b.experts_hit, figures.num_experts), b.weight_bytes / 1e6,
                       b.kv_bytes / 1e6, decode_bytes_per_second(b) / 1e9,
                       100 * share_of_memory(b.bytes(), b.step_seconds, figures), 100 * share_of_floor(b, figures));
  if (figures.device) out += options.runtime.workers > 0 ? exchange_table(figures) : gaps_table(figures);

  out += fmt::format("\nms a step\n{:>5}", "B");
  for (std::size_t s = 0; s < kNumStages; ++s)
    if (is_shown(Stage(s), figures)) out += fmt::format("{:>16}", kStageNames[s]);
  out += fmt::format("{:>16}\n", "other");
  for (BatchFigures const& b : figures.batches) {
    auto const cell = [&](double seconds) {
      return fmt::format("{:>9.3f}{:>6.1f}%", seconds * 1e3, 100 * seconds / b.mean_step_seconds);
    };
    out += fmt::format("{:>5}", b.batch_size);
    for (std::size_t s = 0; s < kNumStages; ++s)
      if (is_shown(Stage(s), figures)) out += cell(b.decode_stages.seconds[s]);
    out += cell(other_seconds(b)) + "\n";
  }
  if (!options.stages || figures.device) return out;
  out += ceilings_table(figures);
  out +=
      "\nstages     floor: of each, its bytes over what memory gives or its operations over the peak of the weights'\n"
      "           type; what caches keep can be faster\n";
  for (BatchFigures const& b : figures.batches) {
    out += fmt::format("\nB {}, {} prompts of {} tokens, mean of {} steps\n", b.batch_size, b.batch_size,
                       options.input_len, b.prefill_stages.num_steps);
    out += stages_table("prefill", b.prefill_stages);
    out += stages_table("decode", b.decode_stages);
  }
  return out;
}

std::string to_json(EngineBenchOptions const& options, EngineFigures const& figures) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (BatchFigures const& b : figures.batches) {
    nlohmann::ordered_json stages;
    for (std::size_t s = 0; s < kNumStages; ++s)
      if (is_shown(Stage(s), figures)) stages[std::string(kStageNames[s])] = b.decode_stages.seconds[s] * 1e3;
    stages["other"] = other_seconds(b) * 1e3;
    results.push_back({{"batch_size", b.batch_size},
                       {"prefill",
                        {{"tokens", b.prompt_tokens},
                         {"duration_ms", b.prefill_seconds * 1e3},
                         {"tokens_per_second", prefill_tokens_per_second(b)},
                         {"gflop_per_second", prefill_flops_per_second(b) / 1e9},
                         {"share_of_compute_ceiling", prefill_flops_per_second(b) / figures.flops_per_second}}},
                       {"decode",
                        {{"steps", options.output_len},
                         {"median_step_ms", b.step_seconds * 1e3},
                         {"mean_step_ms", b.mean_step_seconds * 1e3},
                         {"tokens_per_second", decode_tokens_per_second(b)},
                         {"experts_hit_per_layer", b.experts_hit},
                         {"weight_bytes_per_step", b.weight_bytes},
                         {"kv_bytes_per_step", b.kv_bytes},
                         {"gb_per_second", decode_bytes_per_second(b) / 1e9},
                         {"share_of_memory_ceiling", share_of_memory(b.bytes(), b.step_seconds, figures)},
                         {"share_of_floor", share_of_floor(b, figures)},
                         {"stage_ms", std::move(stages)}}}});
    if (!figures.device) {
      results.back()["prefill"]["stages"] = to_json(b.prefill_stages);
      results.back()["decode"]["stages"] = to_json(b.decode_stages);
      continue;
    }
    auto& prefill = results.back()["prefill"];
    if (figures.tensor_flops_per_second)
      prefill["share_of_tensor_ceiling"] = prefill_flops_per_second(b) / *figures.tensor_flops_per_second;
    auto& decode = results.back()["decode"];
    if (options.runtime.workers > 0) {
      decode["device_ms"] = b.device_seconds * 1e3;
      decode["exchange_ms"] = b.exchange_seconds() * 1e3;
      decode["share_of_static"] = b.share_of_static;
      continue;
    }
    decode["device_busy_ms"] = b.device_seconds * 1e3;
    decode["host_gap_ms"] = b.gap_seconds() * 1e3;
    decode["share_of_graphs"] = b.share_of_graphs;
    decode["share_of_memory_ceiling_while_busy"] = share_of_memory(b.bytes(), b.device_seconds, figures);
  }
  nlohmann::ordered_json ceilings{{"threads", figures.ceiling_threads},
                                  {"memory_gb_per_second", figures.memory_bytes_per_second / 1e9},
                                  {"compute_gflop_per_second", figures.flops_per_second / 1e9}};
  if (figures.tensor_flops_per_second) ceilings["tensor_gflop_per_second"] = *figures.tensor_flops_per_second / 1e9;

  ModelRuntimeOptions const& r = options.runtime;
  return nlohmann::ordered_json{{"benchmark", "engine"},
                                {"model", r.model_dir.string()},
                                {"parameters", figures.plan.parameters},
                                {"active_parameters", figures.plan.active_parameters},
                                {"num_experts", figures.num_experts},
                                {"dtype", name_of(figures.dtype)},
                                {"weights", name_of(figures.weights)},
                                {"kv_cache_dtype", name_of(figures.kv_dtype)},
                                {"isa", name_of(figures.isa)},
                                {"device", figures.device.value_or("cpu")},
                                {"workers", r.workers},
                                {"row_transports", figures.row_transports},
                                {"input_len", options.input_len},
                                {"output_len", options.output_len},
                                {"prefill_tokens", options.prefill_tokens},
                                {"seed", r.dummy_seed},
                                {"ceilings", std::move(ceilings)},
                                {"results", std::move(results)}}
             .dump(2) +
         "\n";
}

}  // namespace expertmesh
