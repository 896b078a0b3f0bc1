#include "coordinator/bench/serve_report.h"

#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

double per_second(std::size_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

struct Throughputs {
  explicit Throughputs(ServeFigures const& f)
      : requests(per_second(f.completed, f.duration_s)),
        output(per_second(f.total_output_tokens, f.duration_s)),
        total(per_second(f.total_input_tokens + f.total_output_tokens, f.duration_s)) {}
  double requests;
  double output;
  double total;
};

}  // namespace

ServeFigures figures_of(LoadResult const& result) {
  ServeFigures figures;
  figures.duration_s = result.duration_s;
  figures.max_concurrent = result.max_concurrent;
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> itl;
  std::vector<double> e2el;
  for (RequestOutcome const& outcome : result.outcomes) {
    if (outcome.end == RequestOutcome::End::disconnected) ++figures.disconnected;
    if (outcome.end == RequestOutcome::End::failed) {
      ++figures.failed;
      ++figures.errors[outcome.failure];
    }
    if (outcome.end != RequestOutcome::End::completed) continue;
    ++figures.completed;
    figures.total_input_tokens += outcome.prompt_tokens;
    figures.total_output_tokens += outcome.output_tokens;
    ttft.push_back(outcome.ttft_s);
    e2el.push_back(outcome.latency_s);
    if (outcome.output_tokens > 1)
      tpot.push_back((outcome.latency_s - outcome.ttft_s) / static_cast<double>(outcome.output_tokens - 1));
    itl.insert(itl.end(), outcome.inter_token_s.begin(), outcome.inter_token_s.end());
  }
  figures.ttft_s = summarise(std::move(ttft));
  figures.tpot_s = summarise(std::move(tpot));
  figures.itl_s = summarise(std::move(itl));
  figures.e2el_s = summarise(std::move(e2el));
  return figures;
}

std::string to_table(ServeFigures const& f) {
  Throughputs const throughput(f);
  std::string out = fmt::format("requests     {} completed, {} failed, {} disconnected, at most {} at once\n",
                                f.completed, f.failed, f.disconnected, f.max_concurrent);
  for (auto const& [reason, count] : f.errors) out += fmt::format("failed       {} x {}\n", count, reason);
  out += fmt::format("duration     {:.2f} s\ntokens       {} in, {} out\n", f.duration_s, f.total_input_tokens,
                     f.total_output_tokens);
  out += fmt::format("throughput   {:.2f} requests/s, {:.1f} output tok/s, {:.1f} tok/s in and out\n",
                     throughput.requests, throughput.output, throughput.total);
  out += fmt::format("\n{:<30}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "ms", "mean", "median", "std", "p95", "p99");
  auto const line = [&](char const* name, Summary const& s) {
    out += fmt::format("{:<30}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}\n", name, s.mean * 1e3, s.median * 1e3,
                       s.stddev * 1e3, s.p95 * 1e3, s.p99 * 1e3);
  };
  line("time to first token (TTFT)", f.ttft_s);
  line("time per output token (TPOT)", f.tpot_s);
  line("inter-token latency (ITL)", f.itl_s);
  line("end-to-end latency (E2EL)", f.e2el_s);
  return out;
}

std::string to_json(ServeBenchOptions const& options, std::string const& model, std::string const& date,
                    ServeFigures const& f) {
  Throughputs const throughput(f);
  double const rate = options.workload.request_rate;
  nlohmann::ordered_json out{
      {"date", date},
      {"endpoint_type", options.endpoint == Endpoint::chat ? "openai-chat" : "openai"},
      {"model_id", model},
      {"num_prompts", options.workload.num_prompts},
      {"request_rate", std::isinf(rate) ? nlohmann::ordered_json("inf") : nlohmann::ordered_json(rate)},
      {"max_concurrency",
       options.max_concurrency == 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(options.max_concurrency)},
      {"seed", options.workload.seed},
      {"duration", f.duration_s},
      {"completed", f.completed},
      {"failed", f.failed},
      {"disconnected", f.disconnected},
      {"errors", f.errors},
      {"total_input_tokens", f.total_input_tokens},
      {"total_output_tokens", f.total_output_tokens},
      {"request_throughput", throughput.requests},
      {"output_throughput", throughput.output},
      {"total_token_throughput", throughput.total},
      {"max_concurrent_requests", f.max_concurrent}};
  auto const add = [&](std::string const& name, Summary const& s) {
    for (auto const& [kind, seconds] : {std::pair("mean", s.mean),
                                        {"median", s.median},
                                        {"std", s.stddev},
                                        {"p50", s.p50},
                                        {"p95", s.p95},
                                        {"p99", s.p99}})
      out[std::string(kind) + "_" + name + "_ms"] = seconds * 1e3;
  };
  add("ttft", f.ttft_s);
  add("tpot", f.tpot_s);
  add("itl", f.itl_s);
  add("e2el", f.e2el_s);
  return out.dump(2) + "\n";
}

}  // namespace expertmesh
