// expertmesh-front: one address for the clients of several coordinators. Exit codes: 0 asked to end; 1 failed; 2 a bad
// command line.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <mutex>

#include "common/base/error.h"
#include "common/base/host_port.h"
#include "common/base/log.h"
#include "coordinator/front/front.h"
#include "coordinator/http/api_keys.h"
#include "coordinator/shutdown_signal.h"

namespace expertmesh {
namespace {

constexpr std::chrono::seconds kDrainDeadline{30};

struct Options {
  std::vector<std::string> backends;
  std::string api_key_file;
  std::string allowed_origin = "*";
  std::size_t poll_interval_ms = 500;
  FrontOptions front;
};

HttpAddress address_of(std::string const& text) {
  auto place = split_host_port(text);
  if (!place) throw ModelError("--backends: expected HOST:PORT, got '" + text + "'");
  return {.host = std::move(place->host), .port = std::move(place->port)};
}

std::optional<int> parse(int argc, char** argv, Options& options) {
  CLI::App app{"One address for the clients of several coordinators", "expertmesh front"};
  HttpServerOptions& http = options.front.http;
  BalancerOptions& balancer = options.front.backends.balancer;
  http.port = 8000;
  app.add_option("--backends", options.backends, "The coordinators, HOST:PORT each, with commas between them")
      ->delimiter(',')
      ->required();
  app.add_option("--host", http.host, "Address to listen on")->capture_default_str();
  app.add_option("--port", http.port, "Port to listen on; 0 takes any free one")->capture_default_str();
  app.add_option("--http-threads", http.threads, "Threads towards clients; one more is towards the coordinators")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--max-connections", http.max_connections, "Open connections of clients; more wait")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-body-size", http.max_body_bytes, "Largest request body [8M]")
      ->transform(CLI::AsSizeValue(false));
  app.add_option(
         "--affinity-margin", balancer.margin_tokens,
         "Tokens that a coordinator which had the beginning of a prompt may have more to do than the least busy one, "
         "to get the prompt")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--max-prefixes", balancer.max_prefixes, "Beginnings of prompts that are remembered")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--poll-interval-ms", options.poll_interval_ms, "Between looks whether a coordinator is ready")
      ->check(CLI::Range(10, 600000))
      ->capture_default_str();
  app.add_option(
      "--api-key-file", options.api_key_file,
      "File with one API key a line; /metrics needs one (the coordinators judge the rest) [no key is asked]");
  app.add_option("--allowed-origin", options.allowed_origin,
                 "Origin of browser pages that may read the front's own answers (CORS; the coordinators' have theirs); "
                 "an empty one: none")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  for (auto const& text : options.backends) {
    if (std::ranges::count(options.backends, text) > 1) throw ModelError("--backends: '" + text + "' is there twice");
    options.front.backends.addresses.push_back(address_of(text));
  }
  options.front.backends.poll_interval = std::chrono::milliseconds(options.poll_interval_ms);
  if (!options.allowed_origin.empty()) options.front.allowed_origin = options.allowed_origin;
  if (!options.api_key_file.empty()) options.front.api_keys = read_api_keys(options.api_key_file);
  return std::nullopt;
}

int run(Options options) {
  HttpServerOptions const http = options.front.http;
  BalancerOptions const balancer = options.front.backends.balancer;
  ShutdownSignal const shutdown;
  // The port is known when the front is there, which may be ready before that.
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::string place;
  options.front.on_ready = [&] {
    std::lock_guard guard(mutex);
    std::cout << "ExpertMesh is ready at " << place << std::endl;
  };
  Front front(std::move(options.front));
  std::string const host = http.host.find(':') == std::string::npos ? http.host : "[" + http.host + "]";
  place = "http://" + host + ":" + std::to_string(front.port());
  spdlog::info("listening at {}, for {} coordinators", place, options.backends.size());
  spdlog::info(
      "limits: {} connections, bodies of {} bytes, headers of {} bytes, {} bytes unsent of an answer, {} prefixes",
      http.max_connections, http.max_body_bytes, http.max_header_bytes, http.max_unsent_bytes, balancer.max_prefixes);
  lock.unlock();
  shutdown.wait();
  spdlog::info("draining: no new requests, up to {} s for those under way", kDrainDeadline.count());
  front.stop(std::chrono::steady_clock::now() + kDrainDeadline);
  return 0;
}

}  // namespace
}  // namespace expertmesh

int main(int argc, char** argv) {
  using namespace expertmesh;
  try {
    init_log("front");
    Options options;
    if (auto const code = parse(argc, argv, options)) return *code;
    return run(std::move(options));
  } catch (ModelError const& error) {
    std::cerr << "expertmesh front: " << error.what() << std::endl;
    return 2;
  } catch (std::exception const& error) {
    std::cerr << "expertmesh front: " << error.what() << std::endl;
    return 1;
  }
}
