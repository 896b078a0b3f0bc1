#include "coordinator/bench/options.h"

#include <CLI/CLI.hpp>
#include <charconv>

#include "common/base/option_checks.h"
#include "coordinator/runtime_flags.h"

namespace expertmesh {
namespace {

void add_engine_options(CLI::App& command, EngineBenchOptions& options) {
  options.runtime.dtype = DType::bf16;
  command.add_option("model", options.runtime.model_dir, "Model directory or config.json; its weights are not read")
      ->required();
  command
      .add_option("--batch-sizes", options.batch_sizes,
                  "Sequences that decode together, one run each; on a GPU [1,8,32,128,256]")
      ->delimiter(',')
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command.add_option("--input-len", options.input_len, "Tokens of each prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--output-len", options.output_len, "Decode steps")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--prefill-tokens", options.prefill_tokens, "Most prompt tokens of one step; on a GPU [4096]")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add_runtime_flags(command, options.runtime);
  command.add_flag("--stages", options.stages,
                   "Print each stage's bytes, operations, floor and time, and what one and all threads can do");
  command.add_option("--json", options.json, "File for all figures");
}

// What keeps a GPU busy, where the command line does not say otherwise.
void choose_for_gpu(CLI::App const& command, EngineBenchOptions& options) {
  if (command.count("--batch-sizes") == 0) options.batch_sizes = {1, 8, 32, 128, 256};
  if (command.count("--prefill-tokens") == 0) options.prefill_tokens = 4096;
  options.read_bytes = std::size_t{4} << 30;
}

std::optional<std::size_t> whole_number(std::string_view text) {
  std::size_t value = 0;
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "128" or "64:256"
std::optional<LengthRange> length_range(std::string_view text) {
  std::size_t const colon = std::min(text.find(':'), text.size());
  auto const min = whole_number(text.substr(0, colon));
  auto const max = colon == text.size() ? min : whole_number(text.substr(colon + 1));
  if (!min || !max || *min == 0 || *min > *max) return std::nullopt;
  return LengthRange{*min, *max};
}

void add_lengths(CLI::App& command, char const* name, LengthRange& range, char const* help) {
  command
      .add_option_function<std::string>(
          name, [&range](std::string const& text) { range = length_range(text).value(); }, help)
      ->check([](std::string const& text) {
        return length_range(text) ? "" : "expected a number of tokens such as 128 or 64:256, got '" + text + "'";
      })
      ->default_str(std::to_string(range.min));
}

void add_serve_options(CLI::App& command, ServeBenchOptions& options) {
  WorkloadOptions& w = options.workload;
  command.add_option("--base-url", options.base_url, "The server: http://HOST[:PORT]")->capture_default_str();
  command.add_option("--model", options.model, "Name of the model [the first that the server has]");
  add_choice<Endpoint>(command, "--endpoint", options.endpoint,
                       {{"completions", Endpoint::completions}, {"chat", Endpoint::chat}},
                       "completions (prompts of token ids) or chat (of words)")
      ->default_str("completions");
  command.add_option("--num-prompts", w.num_prompts, "Requests")->check(CLI::Range(1, 1 << 24))->capture_default_str();
  command.add_option("--request-rate", w.request_rate, "Requests a second, a Poisson process; inf: all at once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--max-concurrency", options.max_concurrency, "Requests under way at once; 0: no limit")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  add_lengths(command, "--input-len", w.input_len, "Tokens of a prompt: a number, or MIN:MAX");
  add_lengths(command, "--output-len", w.output_len, "Most tokens of an answer: a number, or MIN:MAX");
  command.add_option("--vocab", w.vocab, "Token ids of prompts are below this")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  command.add_option("--seed", w.seed, "The same seed, the same requests at the same times")->capture_default_str();
  command.add_flag("--ignore-eos", options.ignore_eos, "Answers go on to their full length");
  command.add_option("--disconnect-share", w.disconnect_share, "Share of requests whose client leaves in the middle")
      ->check(range_of_numbers(0, 1))
      ->capture_default_str();
  command.add_option("--api-key-file", options.api_key_file, "File with the server's API key; the first is sent");
  command.add_option("--timeout", options.timeout_s, "Seconds without a byte after which a request has failed")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_flag("--progress", options.progress, "Show progress even where there is no terminal");
  command.add_option("--json", options.json, "File for all figures, named as `vllm bench serve` names them");
}

void add_quality_options(CLI::App& command, QualityBenchOptions& options) {
  std::vector<std::string> names;
  for (NumberFormat const& format : number_formats()) names.emplace_back(format.name);
  command.add_option("model", options.model_dir, "Model directory")->required();
  command.add_option("--text", options.text, "File with the text that the model is to tell")->required();
  command
      .add_option("--window", options.window,
                  "Tokens that are run together; each window of the text begins at position 0")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command
      .add_option(
          "--max-tokens", options.max_tokens,
          "Tokens of the text that are used, of each of which the reference's logits are kept in memory; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  command.add_option("--reference", options.reference, "Format against which the others are held")
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  command
      .add_option("--formats", options.formats,
                  "Numbers of rows and weights: int8 and int4 as --quantization has them, with rows in bfloat16; "
                  "int8_kv: bfloat16 with an int8 KV cache")
      ->delimiter(',')
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  command.add_option("--threads", options.threads, "Compute threads; 0 takes every usable core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  add_isa_flag(command, options.isa);
  command.add_option("--json", options.json, "File for all figures");
}

}  // namespace

std::variant<EngineBenchOptions, ServeBenchOptions, QualityBenchOptions, ExitNow> parse_bench_command_line(
    int argc, char** argv) {
  CLI::App app{"ExpertMesh: measures the engine, a format or a server", "expertmesh bench"};
  app.set_version_flag("--version", "expertmesh " EM_VERSION);
  app.require_subcommand(1);
  app.footer("Also: expertmesh bench scale MODEL: both, over numbers of workers and ways to reach them, with a report");
  app.failure_message([](CLI::App const*, CLI::Error const& error) {
    return "expertmesh bench: " + std::string(error.what()) + "; see --help\n";
  });
  EngineBenchOptions engine;
  auto* e =
      app.add_subcommand("engine", "Time steps without a server, with dummy weights, against the machine's limits");
  add_engine_options(*e, engine);
  QualityBenchOptions quality;
  auto* q = app.add_subcommand("quality",
                               "Hold a checkpoint's logits over a text in each format of weights and KV cache against "
                               "those in larger numbers");
  add_quality_options(*q, quality);
  ServeBenchOptions serve;
  auto* s = app.add_subcommand("serve", "Send requests to a running server and time its answers");
  add_serve_options(*s, serve);
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& error) {
    int const code = app.exit(error);
    return ExitNow{code == 0 ? 0 : 2};
  }
  if (s->parsed()) return serve;
  if (q->parsed()) return quality;
  if (engine.runtime.device != "cpu") choose_for_gpu(*e, engine);
  return engine;
}

}  // namespace expertmesh
