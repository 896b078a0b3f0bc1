// Sends the requests of a workload to a server with an OpenAI-compatible API and times its streamed answers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>  // before Boost 1.74 needs it
#include <vector>

#include "coordinator/bench/workload.h"

namespace expertmesh {

struct ServerAddress {
  std::string host;
  std::string port;
  std::string prefix;  // path before /v1, without a slash at the end
};
// "http://HOST[:PORT][/PREFIX]"; throws ModelError for anything else.
ServerAddress parse_base_url(std::string const& url);

enum class Endpoint : std::uint8_t { completions, chat };

struct LoadOptions {
  ServerAddress server;
  std::string model;
  std::string api_key;  // empty: none is sent
  Endpoint endpoint = Endpoint::completions;
  std::size_t max_concurrency = 0;  // requests under way at once; 0: no limit
  bool ignore_eos = false;
  std::size_t timeout_s = 600;  // without a byte from the server
};

struct RequestOutcome {
  enum class End : std::uint8_t { completed, failed, disconnected };
  End end = End::failed;
  std::string failure;            // why, where it failed
  std::size_t prompt_tokens = 0;  // as the server counted them
  std::size_t output_tokens = 0;
  double ttft_s = 0;                  // from the request's sending to the first piece of the answer
  double latency_s = 0;               // to its last piece
  std::vector<double> inter_token_s;  // between pieces
};

struct LoadProgressCounts {
  std::size_t running = 0;
  std::size_t completed = 0;
  std::size_t failed = 0;
  std::size_t disconnected = 0;
  std::size_t pieces = 0;  // of answers, so far
};

struct LoadResult {
  std::vector<RequestOutcome> outcomes;  // as the workload
  double duration_s = 0;                 // from the first request to the last answer
  std::size_t max_concurrent = 0;
};

// The name of the first model the server has. Throws NetworkError.
std::string ask_for_model(ServerAddress const& server, std::string const& api_key);

// on_progress: a few times a second, and at the end. What goes wrong with a request is its outcome, nothing is thrown.
LoadResult run_load(LoadOptions const& options, std::vector<PlannedRequest> const& workload,
                    std::function<void(LoadProgressCounts const&)> const& on_progress);

}  // namespace expertmesh
