// The command line of expertmesh-coordinator as plain data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>

#include "common/checkpoint/weight_source.h"
#include "common/kernels/exec.h"

namespace expertmesh {

struct ServeOptions {
  std::filesystem::path model_dir;
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;       // 0: any free one
  std::size_t workers = 0;         // 0: experts in this process
  std::size_t threads = 0;         // 0: all usable cores
  std::size_t worker_threads = 0;  // 0: usable cores / workers, at least 1
  std::optional<DType> dtype;      // none: auto
  LoadFormat load_format = LoadFormat::automatic;
  std::uint64_t dummy_seed = 0;
  std::optional<std::size_t> max_model_len;  // none: the checkpoint's
  std::size_t max_num_seqs = 64;
  std::size_t max_num_batched_tokens = 512;
  std::size_t max_queued_requests = 256;
  std::optional<std::size_t> kv_cache_bytes;
  std::string served_model_name;  // empty: the folder's name
  std::size_t max_logprobs = 20;
  bool return_routed_experts = false;
  std::optional<std::uint64_t> router_noise_seed;
  std::optional<Isa> isa;  // none: the best this processor runs
  std::size_t http_threads = 2;
  std::size_t max_connections = 1024;
  std::size_t max_body_bytes = std::size_t{8} << 20;
  std::size_t heartbeat_timeout_ms = 200;
};

struct InfoOptions {
  std::filesystem::path model_dir;
  std::size_t workers = 1;
  std::optional<DType> dtype;
};

struct ExitNow {
  int code = 0;  // --help, --version, or a bad command line that has been reported
};

// Prints help and usage errors itself.
std::variant<ServeOptions, InfoOptions, ExitNow> parse_command_line(int argc, char** argv);

// "512M", "4G", "1073741824" -> bytes (K, M, G, T = powers of 1024; an i or B after them is fine). None if malformed.
std::optional<std::size_t> parse_bytes(std::string const& text);

}  // namespace expertmesh
