#include "coordinator/options.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <limits>

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

std::optional<DType> dtype_option(std::string const& name) {
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  return std::nullopt;
}

}  // namespace

std::variant<ServeOptions, InfoOptions, ExitNow> parse_command_line(int argc, char** argv) {
  CLI::App app{"ExpertMesh: serves sparse Mixture-of-Experts language models from a group of machines", "expertmesh"};
  app.set_version_flag("--version", "expertmesh " EM_VERSION);
  app.require_subcommand(1);

  ServeOptions serve;
  std::string serve_dtype = "auto";
  std::string load_format = "auto";
  std::string kv_bytes;
  std::string body_bytes = "8M";
  std::string isa;
  auto* s = app.add_subcommand("serve", "Serve a model through an OpenAI-compatible HTTP API");
  s->add_option("model", serve.model_dir, "Hugging Face model directory")->required();
  s->add_option("--host", serve.host, "Address to listen on")->capture_default_str();
  s->add_option("--port", serve.port, "Port to listen on; 0 takes any free one")->capture_default_str();
  s->add_option("--workers", serve.workers,
                "Worker processes that hold the experts, over MPI; 0 keeps the experts in this process")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  s->add_option("--threads", serve.threads, "Compute threads of the coordinator; 0 takes every usable core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  s->add_option("--worker-threads", serve.worker_threads, "Compute threads of each worker; 0 shares the usable cores")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  s->add_option("--dtype", serve_dtype,
                "Numbers of weights and wire rows; auto: float32 for a float32 checkpoint, else bfloat16")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  s->add_option("--load-format", load_format, "dummy: deterministic random weights from config.json alone")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  s->add_option("--seed", serve.dummy_seed, "Seed of the dummy weights")->capture_default_str();
  s->add_option("--max-model-len", serve.max_model_len, "Longest sequence, prompt and answer [the checkpoint's]")
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
  s->add_option("--kv-cache-memory", kv_bytes,
                "Bytes of the KV cache, such as 4G [fits max-num-seqs sequences, at most 40% of free memory]")
      ->check(check_bytes);
  s->add_option("--served-model-name", serve.served_model_name, "Name of the model in the API [the folder's name]");
  s->add_option("--max-logprobs", serve.max_logprobs, "Most log-probabilities a request may ask for at a position")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  s->add_flag("--enable-return-routed-experts", serve.return_routed_experts,
              "Allow \"return_routed_experts\" in requests");
  s->add_option("--router-noise", serve.router_noise_seed,
                "Turn the noise of noisy top-k gating on, with this seed [off]");
  s->add_option("--isa", isa,
                "Instruction set of the kernels: scalar, avx2, avx512_bf16 [the best this processor runs]")
      ->check(CLI::IsMember({"scalar", "avx2", "avx512_bf16"}));
  s->add_option("--http-threads", serve.http_threads, "Threads of the HTTP server")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  s->add_option("--max-connections", serve.max_connections, "Open HTTP connections")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  s->add_option("--max-body-size", body_bytes, "Largest request body")->check(check_bytes)->capture_default_str();
  s->add_option("--heartbeat-timeout-ms", serve.heartbeat_timeout_ms, "A worker silent for this long is dead")
      ->check(CLI::Range(50, 600000))
      ->capture_default_str();

  InfoOptions info;
  std::string info_dtype = "auto";
  auto* i = app.add_subcommand("info", "Describe a model directory: parameters, memory, what would be refused");
  i->add_option("model", info.model_dir, "Hugging Face model directory")->required();
  i->add_option("--workers", info.workers, "Workers to divide the experts among")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  i->add_option("--dtype", info_dtype, "As for serve")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();

  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& error) {
    int const code = app.exit(error);
    return ExitNow{code == 0 ? 0 : 2};
  }
  if (i->parsed()) {
    info.dtype = dtype_option(info_dtype);
    return info;
  }
  serve.dtype = dtype_option(serve_dtype);
  serve.load_format = load_format == "dummy" ? LoadFormat::dummy : LoadFormat::automatic;
  if (!kv_bytes.empty()) serve.kv_cache_bytes = parse_bytes(kv_bytes);
  serve.max_body_bytes = *parse_bytes(body_bytes);
  if (!isa.empty()) serve.isa = isa_from_name(isa);
  if (serve.served_model_name.empty()) {
    auto const path = std::filesystem::weakly_canonical(serve.model_dir);
    serve.served_model_name = path.filename().string();
  }
  return serve;
}

}  // namespace expertmesh
