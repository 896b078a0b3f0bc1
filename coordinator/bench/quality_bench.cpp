#include "coordinator/bench/quality_bench.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

#include "common/base/available_memory.h"
#include "common/base/cores.h"
#include "common/base/log.h"
#include "coordinator/load_progress.h"
#include "coordinator/text/tokenizer.h"

namespace expertmesh {
namespace {

constexpr std::array kFormats{NumberFormat{.name = "float32", .dtype = DType::f32}, NumberFormat{.name = "bfloat16"},
                              NumberFormat{.name = "int8", .quantization = Quantization::int8},
                              NumberFormat{.name = "int4", .quantization = Quantization::int4},
                              NumberFormat{.name = "int8_kv", .kv_dtype = DType::i8}};
constexpr std::size_t kStepTokens = 64;  // whose logits are there at a time

using Window = std::span<TokenId const>;

std::string read_text(std::filesystem::path const& file) {
  std::ifstream in(file, std::ios::binary);
  std::string text;
  if (in) text.assign(std::istreambuf_iterator<char>(in), {});
  if (!in) throw FileError("read", errno, std::strerror(errno), file.string());
  return text;
}

// As many whole windows as there are.
std::vector<TokenId> ids_of(QualityBenchOptions const& options) {
  auto const tokenizer = Tokenizer::load(options.model_dir);
  if (!tokenizer) throw ModelError(options.model_dir.string() + ": neither tokenizer.json nor tokenizer.model");
  auto ids = tokenizer->encode(read_text(options.text), false);
  if (options.max_tokens > 0) ids.resize(std::min(ids.size(), options.max_tokens));
  if (ids.size() < 2)
    throw ModelError(options.text.string() + ": " + std::to_string(ids.size()) +
                     " tokens; the second is the first that can be told");
  if (ids.size() > options.window) ids.resize(ids.size() / options.window * options.window);
  return ids;
}

ModelRuntimeOptions runtime_options(QualityBenchOptions const& options, NumberFormat const& format) {
  ModelRuntimeOptions runtime;
  runtime.model_dir = options.model_dir;
  runtime.threads = options.threads;
  runtime.isa = options.isa;
  runtime.dtype = format.dtype;
  runtime.quantization = format.quantization;
  runtime.kv_dtype = format.kv_dtype;
  runtime.max_model_len = options.window;
  runtime.max_num_seqs = 1;
  runtime.max_num_batched_tokens = kStepTokens;
  runtime.prefix_cache = false;
  return runtime;
}

// A checkpoint in one format, one window at a time.
class Scorer {
 public:
  Scorer(QualityBenchOptions const& options, NumberFormat const& format) : runtime_(runtime_options(options, format)) {
    runtime_.load([](WorkerStatus const&) {});
    runtime_.runner().place_caller();
    runtime_.experts().wake();
  }
  ~Scorer() {
    runtime_.shut_down();
    restrict_to_cores(cores_);
  }
  Scorer(Scorer const&) = delete;
  Scorer& operator=(Scorer const&) = delete;

  [[nodiscard]] ModelSpec const& spec() const { return runtime_.spec(); }
  [[nodiscard]] Isa isa() const { return runtime_.isa(); }

  // logits: [V] log-probabilities at each position, valid during the call.
  void run(Window window, std::function<void(std::size_t position, std::span<float const> logits)> const& on_row) {
    std::size_t const vocab = runtime_.spec().vocab;
    row_.resize(vocab);
    Sequence sequence;
    sequence.id = SequenceId(1);
    sequence.tokens.assign(window.begin(), window.end());
    sequence.prompt_length = window.size();
    sequence.max_length = window.size();
    sequence.prompt_logits = true;
    runtime_.scheduler().submit(sequence);
    for (std::size_t position = 0; position < window.size();) {
      StepBatch const& batch = runtime_.scheduler().schedule();
      EM_CHECK(batch.num_tokens() > 0, "the KV cache has room for one window");
      std::vector<RowWish> const wishes(batch.logit_rows().size(),
                                        {.sampling = &greedy_, .token_logprobs = vocab, .prompt_logprobs = vocab});
      auto const results = runtime_.runner().run(batch, wishes);
      for (std::size_t i = 0; i < results.size(); ++i) {
        auto const& logprobs = batch.logit_rows()[i].sample ? results[i].token_logprobs : results[i].prompt_logprobs;
        for (TokenLogprob const& entry : logprobs->top) row_[entry.token] = entry.logprob;
        on_row(position++, row_);
      }
      runtime_.scheduler().complete_step();
    }
    runtime_.scheduler().remove(sequence);
  }

 private:
  std::vector<int> cores_ = allowed_cores();  // the calling thread's, before it is placed
  ModelRuntime runtime_;
  SamplingParams const greedy_ = [] {
    SamplingParams params;
    params.temperature = 0;
    return params;
  }();
  std::vector<float> row_;  // [V]
};

std::vector<Window> windows_of(std::vector<TokenId> const& ids, std::size_t window) {
  std::vector<Window> windows;
  for (std::size_t i = 0; i < ids.size(); i += window)
    windows.push_back(Window(ids).subspan(i, std::min(window, ids.size() - i)));
  return windows;
}

// Before anything is loaded.
void check(QualityBenchOptions const& options, std::size_t tokens) {
  ModelSpec const spec = read_model_spec(options.model_dir, {});
  if (spec.encoder())
    throw ModelError("config.json: field 'model_type': family '" + spec.family +
                     "' has an encoder; bench quality measures models without one");
  if (options.window > spec.max_position && !spec.goes_beyond_max_position)
    throw ModelError("--window " + std::to_string(options.window) + " is more than the " +
                     std::to_string(spec.max_position) +
                     " positions of the model (config.json: max_position_embeddings)");
  std::size_t const bytes = tokens * spec.vocab * sizeof(float);
  std::size_t const available = available_memory_bytes();
  if (bytes > available / 2)
    throw ModelError("the reference's logits of " + std::to_string(tokens) + " tokens take " + human_bytes(bytes) +
                     ", and " + human_bytes(available) + " are available: choose fewer --max-tokens");
}

}  // namespace

std::span<NumberFormat const> number_formats() {
  return kFormats;
}

NumberFormat const* find_number_format(std::string_view name) {
  auto const format = std::ranges::find(kFormats, name, &NumberFormat::name);
  return format == kFormats.end() ? nullptr : &*format;
}

QualityFigures run_quality_bench(QualityBenchOptions const& options) {
  auto const ids = ids_of(options);
  check(options, ids.size());
  auto const windows = windows_of(ids, options.window);
  QualityFigures figures{.tokens = ids.size(), .windows = windows.size(), .isa = {}, .errors = {}};
  std::vector<float> reference;  // [tokens][V]
  {
    spdlog::info("{}: {} tokens", options.reference, ids.size());
    Scorer scorer(options, *find_number_format(options.reference));
    reference.reserve(ids.size() * scorer.spec().vocab);
    figures.isa = scorer.isa();
    for (Window const window : windows)
      scorer.run(window, [&](std::size_t, std::span<float const> row) {
        reference.insert(reference.end(), row.begin(), row.end());
      });
  }
  for (std::string const& name : options.formats) {
    spdlog::info("{}: {} tokens", name, ids.size());
    Scorer scorer(options, *find_number_format(name));
    LogitErrors& errors = figures.errors.emplace_back();
    std::span<float const> rest(reference);
    for (Window const window : windows)
      scorer.run(window, [&](std::size_t position, std::span<float const> row) {
        bool const last = position + 1 == window.size();
        errors.add(rest.first(row.size()), row, last ? std::nullopt : std::optional<std::size_t>(window[position + 1]));
        rest = rest.subspan(row.size());
      });
  }
  return figures;
}

std::string to_table(QualityBenchOptions const& options, QualityFigures const& figures) {
  double const of_reference = figures.errors.empty() ? 0 : figures.errors.front().reference_perplexity();
  std::string out = fmt::format(
      "model      {}\ntext       {}: {} tokens in windows of {}, {}\nreference  {}: perplexity {:.4f}\n\n"
      "error: of logits, in units of their standard deviation\n"
      "{:<12}{:>12}{:>10}{:>12}{:>12}{:>16}{:>16}\n",
      options.model_dir.string(), options.text.string(), figures.tokens, options.window, name_of(figures.isa),
      options.reference, of_reference, "format", "perplexity", "change", "error rms", "largest", "KL divergence",
      "same choice");
  for (std::size_t f = 0; f < figures.errors.size(); ++f) {
    LogitErrors const& e = figures.errors[f];
    out += fmt::format("{:<12}{:>12.4f}{:>+9.2f}%{:>11.2f}%{:>11.2f}%{:>16.6f}{:>15.2f}%\n", options.formats[f],
                       e.perplexity(), 100 * (e.perplexity() / of_reference - 1), 100 * e.rms(), 100 * e.largest(),
                       e.divergence(), 100 * e.same_choice());
  }
  return out;
}

std::string to_json(QualityBenchOptions const& options, QualityFigures const& figures) {
  nlohmann::ordered_json formats = nlohmann::ordered_json::array();
  for (std::size_t f = 0; f < figures.errors.size(); ++f) {
    LogitErrors const& e = figures.errors[f];
    formats.push_back({{"format", options.formats[f]},
                       {"perplexity", e.perplexity()},
                       {"logit_error_rms", e.rms()},
                       {"logit_error_largest", e.largest()},
                       {"kl_divergence", e.divergence()},
                       {"same_choice", e.same_choice()}});
  }
  return nlohmann::ordered_json{
             {"benchmark", "quality"},
             {"model", options.model_dir.string()},
             {"text", options.text.string()},
             {"tokens", figures.tokens},
             {"windows", figures.windows},
             {"isa", name_of(figures.isa)},
             {"reference", options.reference},
             {"reference_perplexity", figures.errors.empty() ? 0 : figures.errors.front().reference_perplexity()},
             {"formats", std::move(formats)}}
             .dump(2) +
         "\n";
}

}  // namespace expertmesh
