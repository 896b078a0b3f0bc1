// The figures of a load test, with the names that `vllm bench serve` gives them.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "coordinator/bench/load_generator.h"
#include "coordinator/bench/statistics.h"

namespace expertmesh {

struct ServeBenchOptions {
  std::string base_url = "http://127.0.0.1:8000";
  std::optional<std::string> model;  // none: the server is asked
  std::optional<std::filesystem::path> api_key_file;
  WorkloadOptions workload;
  Endpoint endpoint = Endpoint::completions;
  std::size_t max_concurrency = 0;  // 0: no limit
  bool ignore_eos = false;
  std::size_t timeout_s = 600;
  bool progress = false;  // shown even where there is no terminal
  std::optional<std::filesystem::path> json;
};

struct ServeFigures {
  std::size_t completed = 0;
  std::size_t failed = 0;
  std::size_t disconnected = 0;
  std::map<std::string, std::size_t> errors;  // reason -> requests
  std::size_t total_input_tokens = 0;         // of completed requests
  std::size_t total_output_tokens = 0;
  double duration_s = 0;
  std::size_t max_concurrent = 0;
  Summary ttft_s;  // of completed requests: to the first token
  Summary tpot_s;  // mean time of each further token, of those with more than one
  Summary itl_s;   // between pieces of an answer
  Summary e2el_s;  // to the last token
};
ServeFigures figures_of(LoadResult const& result);

std::string to_table(ServeFigures const& figures);
// model: as it was sent. date: of the start, text.
std::string to_json(ServeBenchOptions const& options, std::string const& model, std::string const& date,
                    ServeFigures const& figures);

}  // namespace expertmesh
