#include "coordinator/options.h"

#include <spdlog/fmt/fmt.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <fstream>
#include <iostream>
#include <limits>

#include "common/base/error.h"
#include "common/base/option_checks.h"
#include "coordinator/cluster_options.h"
#include "coordinator/runtime_flags.h"
#include "coordinator/text/answer_parser.h"

namespace expertmesh {

std::optional<std::size_t> parse_bytes(std::string const& text) {
  std::size_t value = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return std::nullopt;
  std::string unit(end, text.data() + text.size());
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  if (unit.empty() || unit == "B") return value;
  std::size_t const power = std::string("KMGT").find(unit[0]);
  if (power == std::string::npos || (unit.size() > 1 && unit.substr(1) != "B" && unit.substr(1) != "IB"))
    return std::nullopt;
  std::size_t const shift = 10 * (power + 1);
  if (value > (std::numeric_limits<std::size_t>::max() >> shift)) return std::nullopt;
  return value << shift;
}

namespace {

std::string check_bytes(std::string const& text) {
  return parse_bytes(text) ? "" : "expected a number of bytes such as 512M or 4G, got '" + text + "'";
}

std::vector<std::string> with_auto(std::vector<std::string> names) {
  names.insert(names.begin(), "auto");
  return names;
}

std::string trimmed(std::string const& text) {
  std::size_t const begin = text.find_first_not_of(" \t\r");
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// Puts the options of the file named by "serve … --config FILE" before those of the command line, so that these win.
void add_config_file(std::vector<std::string>& arguments, CLI::App const& serve) {
  if (arguments.empty() || arguments.front() != "serve") return;
  std::string file;
  for (std::size_t a = 1; a < arguments.size(); ++a) {
    if (arguments[a] == "--config" && a + 1 < arguments.size()) file = arguments[a + 1];
    if (arguments[a].starts_with("--config=")) file = arguments[a].substr(std::string("--config=").size());
  }
  if (file.empty()) return;
  std::ifstream in(file);
  if (!in) throw ModelError("--config " + file + ": cannot be read");
  std::vector<std::string> added;
  std::size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    std::string const where = file + ":" + std::to_string(++number) + ": ";
    line = trimmed(line);
    if (line.empty() || line.front() == '#') continue;
    std::size_t const equals = line.find('=');
    std::string const name = trimmed(line.substr(0, equals));
    if (equals == std::string::npos || name.empty()) throw ModelError(where + "expected 'name = value'");
    CLI::Option const* option = name == "config" ? nullptr : serve.get_option_no_throw("--" + name);
    if (!option || name == "help") throw ModelError(fmt::format("{}no such option: '{}'", where, name));
    std::string const value = trimmed(line.substr(equals + 1));
    if (option->get_expected_min() > 0) {
      added.insert(added.end(), {"--" + name, value});  // in one, an empty value would be the next argument
    } else if (value == "true") {
      added.push_back("--" + name);
    } else if (value != "false") {
      throw ModelError(fmt::format("{}'{}' is true or false, got '{}'", where, name, value));
    }
  }
  arguments.insert(arguments.begin() + 1, added.begin(), added.end());
}

}  // namespace

std::variant<ServeOptions, InfoOptions, TokenizeOptions, RenderOptions, ExitNow> parse_command_line(int argc,
                                                                                                    char** argv) {
  CLI::App app{"ExpertMesh: serves sparse Mixture-of-Experts language models from a group of machines", "expertmesh"};
  app.set_version_flag("--version", "expertmesh " EM_VERSION);
  app.require_subcommand(1);
  app.footer(
      "worker, front, name-server, up, plan, bench engine|serve|scale, join [COUNT] [URL] and drain WORKER_ID [URL] "
      "are "
      "the launcher's: bench --help, and README.md");

  ServeOptions serve;
  std::string load_format = "auto";
  std::string kv_bytes;
  std::string body_bytes = "8M";
  std::string weights_rate = "1G";
  std::string quarantine = "256M";
  int coordinators = 1;
  std::size_t gather_us = 0;
  auto* s = app.add_subcommand("serve", "Serve a model through an OpenAI-compatible HTTP API");
  s->add_option("model", serve.model_dir, "Hugging Face model directory")->required();
  add_runtime_flags(*s, serve);
  s->add_option("--host", serve.host, "Address to listen on")->capture_default_str();
  s->add_option("--port", serve.port, "Port to listen on; 0 takes any free one")->capture_default_str();
  s->add_option("--load-format", load_format, "dummy: deterministic random weights from config.json alone")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  s->add_option(
      "--packed-cache", serve.packed_cache,
      "Folder in which experts are kept as they were packed, for the next start; it takes as much disk as they "
      "take memory, and needs the checkpoint's files to stay as they are [none]");
  s->add_option("--max-model-len", serve.max_model_len,
                "Longest sequence, prompt and answer; with an encoder the longest of each [the checkpoint's]")
      ->check(CLI::Range(1, 1 << 24));
  s->add_option("--max-num-seqs", serve.max_num_seqs, "Sequences that run at the same time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  s->add_option("--max-num-batched-tokens", serve.max_num_batched_tokens,
                "Tokens of one step, decode and prefill chunks together")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  s->add_option("--max-queued-requests", serve.max_queued_requests, "Requests that may wait; more get 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  s->add_option("--request-timeout", serve.request_timeout_s,
                "Seconds from acceptance to the last token; a longer request ends with an error; 0: no limit")
      ->capture_default_str();
  s->add_option("--queue-timeout", serve.queue_timeout_s,
                "Seconds a request may wait before its first token is computed; 0: no limit")
      ->capture_default_str();
  s->add_option("--step-budget-ms", serve.step_budget_ms,
                "Prompts are computed in chunks that keep a step within this time while others decode; 0: not cut")
      ->capture_default_str();
  s->add_option("--kv-cache-memory", kv_bytes,
                "Bytes of the KV cache, such as 4G [fits max-num-seqs sequences, at most 40% of free memory]")
      ->check(check_bytes);
  s->add_flag("!--no-prefix-cache", serve.prefix_cache,
              "Compute every prompt whole, even if an earlier request began like it");
  s->add_option("--served-model-name", serve.served_model_name, "Name of the model in the API [the folder's name]");
  s->add_option("--max-logprobs", serve.max_logprobs, "Most log-probabilities a request may ask for at a position")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  s->add_flag("--enable-return-routed-experts", serve.return_routed_experts,
              "Allow \"return_routed_experts\" in requests");
  s->add_option("--router-noise", serve.router_noise_seed,
                "Turn the noise of noisy top-k gating on, with this seed [off]");
  s->add_option("--http-threads", serve.http_threads, "Threads of the HTTP server")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  s->add_option("--max-connections", serve.max_connections, "Open HTTP connections")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  s->add_option("--max-body-size", body_bytes, "Largest request body")->check(check_bytes)->capture_default_str();
  s->add_option("--api-key-file", serve.api_key_file,
                "File with one API key a line; requests need one, but for /health and /ready [no key is asked]");
  s->add_option("--allowed-origin", serve.allowed_origin,
                "Origin of browser pages that may use the API (CORS); an empty one: none")
      ->capture_default_str();
  s->add_flag_callback(
      "--no-ui", [&serve] { serve.live_page = false; }, "No live page at / [there is one]");
  s->add_option("--tool-call-parser", serve.tool_call_parser,
                "How the model writes calls of tools; auto: as its chat template does; none: they stay text")
      ->check(CLI::IsMember(with_auto(tool_call_parser_names())))
      ->capture_default_str();
  s->add_option("--reasoning-parser", serve.reasoning_parser,
                "How it marks its reasoning, which is then kept apart from the content; auto, none: the same")
      ->check(CLI::IsMember(with_auto(reasoning_parser_names())))
      ->capture_default_str();
  s->add_flag("--enable-auto-tool-choice", serve.enable_auto_tool_choice,
              "Refuse to start if the model's way to write calls is not known [tools are then refused in requests]");
  s->add_option("--redundant-experts", serve.redundant_experts,
                "Replicas of each MoE layer's hottest experts, on other workers")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  s->add_option("--rebalance-interval", serve.rebalance_interval_s,
                "Seconds between looks at the experts' load, to move them if that pays; 0: never")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  s->add_option("--max-quarantine", quarantine,
                "Bytes that MPI may hold for dead workers; beyond them the server finishes what runs and starts anew")
      ->check(check_bytes)
      ->capture_default_str();
  s->add_option("--min-step-rate", serve.min_step_rate,
                "Steps a second, below which new requests get 503 while the coordinator streams experts that no worker "
                "holds; 0: never")
      ->check(range_of_numbers(0, 1e6))
      ->capture_default_str();
  s->add_flag("--checksum-messages", serve.checksum_messages,
              "A checksum in every message of rows; whoever sends a wrong one is fenced off");
  s->add_flag("--verify-weights", serve.verify_weights,
              "Read every expert here too, and refuse workers that loaded other bytes [compared among the workers]");
  s->add_option(
      "--interface", serve.interface,
      "Network interface, such as eth0, that workers of other hosts join through, and all their traffic keeps "
      "to [none may join]");
  s->add_option("--control-port", serve.control_port, "Port that they join at; 0 takes any free one")
      ->capture_default_str();
  s->add_option("--secret-file", serve.secret_file, "File with the secret that they have to know [a new one]");
  s->add_option(
      "--name-server", serve.name_server,
      "File of an Open MPI name server (expertmesh name-server FILE) for coordinators that share workers [one of "
      "its own]");
  s->add_option("--coordinators", coordinators,
                "Coordinators that share the workers, with one front for their clients (--workers, or a cluster file's "
                "coordinators)")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  s->add_option("--gather-us", gather_us,
                "With --coordinators: the most microseconds that a worker keeps a request for those of the other "
                "coordinators, so that one pass over an expert's weights serves the rows of all; 0: it never does")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  s->add_option("--remote-workers", serve.remote_workers, "Workers of other hosts to wait for before serving")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  s->add_option("--weights-rate", weights_rate,
                "Bytes a second of weights sent to hosts without the checkpoint; 0: none are sent")
      ->check(check_bytes)
      ->capture_default_str();
  s->add_option("--heartbeat-timeout-ms", serve.heartbeat_timeout_ms, "A worker silent for this long is dead")
      ->check(CLI::Range(50, 600000))
      ->capture_default_str();

  InfoOptions info;
  auto* i = app.add_subcommand("info", "Describe a model directory: parameters, memory, what would be refused");
  i->add_option("model", info.model_dir, "Hugging Face model directory")->required();
  i->add_option("--workers", info.workers, "Workers to divide the experts among")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  add_dtype_flag(*i, info.dtype);
  add_quantization_flag(*i, info.quantization);
  i->add_option("--device", info.device, "What holds the weights: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  add_kv_dtype_flag(*i, info.kv_dtype);
  i->add_flag("--json", info.json, "As one JSON object, with bytes and multiply-adds of each part of a layer");

  TokenizeOptions tokenizing;
  auto* t = app.add_subcommand("tokenize", "Answer JSON lines: {\"text\"} with {\"ids\"}");
  t->add_option("model", tokenizing.model_dir, "Directory with a tokenizer")->required();
  auto* decode =
      t->add_flag("--decode", tokenizing.decode, "{\"ids\"} with {\"text\"}; an id outside the vocabulary is an error");
  t->add_flag("--stream", tokenizing.stream,
              "{\"ids\"} with {\"pieces\"}, one for each id, and {\"tail\"}; such an id, too")
      ->excludes(decode);

  RenderOptions render;
  auto* r = app.add_subcommand(
      "render",
      "Answer JSON lines of chat messages with the text that the chat template makes of them; needs no weights");
  auto* r_dir = r->add_option("model", render.model_dir, "Directory with chat_template.jinja or tokenizer_config.json");
  r->add_option("--template", render.template_file, "A file with a template, instead of a directory")->excludes(r_dir);

  std::filesystem::path cluster;
  auto* c =
      s->add_option("--cluster", cluster,
                    "JSON file that says which workers run where, in place of the options for that: see README.md");
  for (char const* said_there :
       {"--device", "--workers", "--worker-threads", "--worker-device", "--worker-capacity", "--gpu-memory-utilization",
        "--gather-us", "--interface", "--control-port", "--secret-file", "--remote-workers"})
    c->excludes(s->get_option(said_there));

  std::filesystem::path config;
  s->add_option("--config", config, "File of options, one 'name = value' a line; the command line goes before it");
  for (auto* sub : {s, i, t, r})
    for (auto* option : sub->get_options()) option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);

  try {
    std::vector<std::string> arguments(argv + 1, argv + argc);
    add_config_file(arguments, *s);
    std::ranges::reverse(arguments);  // as CLI11 takes them
    app.parse(arguments);
  } catch (ModelError const& error) {
    std::cerr << "expertmesh: " << error.what() << std::endl;
    return ExitNow{2};
  } catch (CLI::ParseError const& error) {
    int const code = app.exit(error);
    return ExitNow{code == 0 ? 0 : 2};
  }
  if (i->parsed()) return info;
  if (t->parsed()) return tokenizing;
  if (r->parsed()) {
    if (!render.model_dir.empty() || render.template_file) return render;
    std::cerr << "expertmesh: render needs a model directory or --template FILE" << std::endl;
    return ExitNow{2};
  }
  serve.load_format = load_format == "dummy" ? LoadFormat::dummy : LoadFormat::automatic;
  if (!kv_bytes.empty()) serve.kv_cache_bytes = parse_bytes(kv_bytes);
  serve.max_quarantine_bytes = *parse_bytes(quarantine);
  serve.weights_per_second = *parse_bytes(weights_rate);
  if (coordinators > 1) {
    std::cerr << "expertmesh: --coordinators: this program is one of them; launch/expertmesh starts several"
              << std::endl;
    return ExitNow{2};
  }
  if (gather_us != 0) {
    std::cerr << "expertmesh: --gather-us: there are no other coordinators (--coordinators)" << std::endl;
    return ExitNow{2};
  }
  try {
    if (!cluster.empty()) apply_cluster_file(cluster, serve);
  } catch (ModelError const& error) {
    std::cerr << "expertmesh: " << error.what() << std::endl;
    return ExitNow{2};
  }
  if (serve.remote_workers > 0 && serve.interface.empty()) {
    std::cerr << "expertmesh: --remote-workers needs --interface, for them to join through" << std::endl;
    return ExitNow{2};
  }
  if (!serve.name_server.empty() && serve.interface.empty()) {
    std::cerr << "expertmesh: --name-server is for workers that join through --interface" << std::endl;
    return ExitNow{2};
  }
  serve.max_body_bytes = *parse_bytes(body_bytes);
  if (serve.served_model_name.empty()) {
    auto const path = std::filesystem::weakly_canonical(serve.model_dir);
    serve.served_model_name = path.filename().string();
  }
  return serve;
}

}  // namespace expertmesh
