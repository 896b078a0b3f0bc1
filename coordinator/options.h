// The command line of expertmesh-coordinator as plain data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>

#include "coordinator/model_runtime.h"
#include "coordinator/render_command.h"
#include "coordinator/tokenize_command.h"

namespace expertmesh {

struct ServeOptions : ModelRuntimeOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;  // 0: any free one
  std::size_t max_queued_requests = 256;
  std::size_t request_timeout_s = 3600;  // 0: none
  std::size_t queue_timeout_s = 300;     // 0: none
  std::size_t step_budget_ms = 500;      // 0: prompt chunks are not cut
  std::size_t max_quarantine_bytes = std::size_t{256} << 20;
  double min_step_rate = 0;               // a second, while experts are streamed; 0: any
  std::size_t rebalance_interval_s = 60;  // 0: experts move only with their workers
  std::string served_model_name;          // empty: the folder's name
  std::size_t max_logprobs = 20;
  std::size_t http_threads = 2;
  std::size_t max_connections = 1024;
  std::size_t max_body_bytes = std::size_t{8} << 20;
  std::optional<std::filesystem::path> api_key_file;
  std::string allowed_origin = "*";       // empty: no CORS headers
  std::string tool_call_parser = "auto";  // "auto": by the chat template and the vocabulary, like the next
  std::string reasoning_parser = "auto";
  bool live_page = true;                 // at "/"
  bool enable_auto_tool_choice = false;  // a model whose calls cannot be read is refused
};

struct InfoOptions {
  std::filesystem::path model_dir;
  std::size_t workers = 1;
  std::optional<DType> dtype;
  Quantization quantization = Quantization::none;
  std::string device = "cpu";
  std::optional<DType> kv_dtype;
  bool json = false;
};

struct ExitNow {
  int code = 0;  // --help, --version, or a bad command line that has been reported
};

// Prints help and usage errors itself.
std::variant<ServeOptions, InfoOptions, TokenizeOptions, RenderOptions, ExitNow> parse_command_line(int argc,
                                                                                                    char** argv);

// "512M", "4G", "1073741824" -> bytes (K, M, G, T = powers of 1024; an i or B after them is fine). None if malformed.
std::optional<std::size_t> parse_bytes(std::string const& text);

}  // namespace expertmesh
