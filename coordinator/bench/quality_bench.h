// What a model loses by each way to store its weights and keys: its logits over a text against those of the same
// checkpoint with larger numbers.
#pragma once
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/bench/logit_errors.h"
#include "coordinator/model_runtime.h"

namespace expertmesh {

struct NumberFormat {
  std::string_view name;
  DType dtype = DType::bf16;  // of rows, and weights that are not quantised
  Quantization quantization = Quantization::none;
  std::optional<DType> kv_dtype{};  // none: as dtype
};
// In bfloat16 rows, but for the first, which serves as reference only.
std::span<NumberFormat const> number_formats();
NumberFormat const* find_number_format(std::string_view name);  // null: there is none

struct QualityBenchOptions {
  std::filesystem::path model_dir;
  std::filesystem::path text;
  std::size_t window = 256;          // tokens that are run together, from position 0
  std::size_t max_tokens = 1 << 15;  // of the text; 0: all. Memory holds the reference's logits of each
  std::string reference = "float32";
  std::vector<std::string> formats{"bfloat16", "int8", "int4", "int8_kv"};
  std::size_t threads = 0;  // 0: every usable core
  std::optional<Isa> isa;
  std::optional<std::filesystem::path> json;
};

struct QualityFigures {
  std::size_t tokens = 0;  // that were run, in whole windows
  std::size_t windows = 0;
  Isa isa = Isa::scalar;
  std::vector<LogitErrors> errors;  // as QualityBenchOptions::formats; the reference's perplexity is in each
};

// The text is one string without special tokens, cut into windows; a last, shorter one is left out, unless it is the
// only one. Each token of a window but the first is one that came. Throws ModelError or FileError.
QualityFigures run_quality_bench(QualityBenchOptions const& options);

std::string to_table(QualityBenchOptions const& options, QualityFigures const& figures);
std::string to_json(QualityBenchOptions const& options, QualityFigures const& figures);

}  // namespace expertmesh
