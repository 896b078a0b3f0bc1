// The reference checkpoints, run by a rig, and what the reference implementation gave.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tests/support/golden_file.h"
#include "tests/support/goldens_dir.h"
#include "tests/unit/engine/model_rig.h"

namespace expertmesh::test {

namespace fs = std::filesystem;
constexpr std::size_t kMaxTokens = ModelRig::kMaxTokens;

// Decoders only.
inline std::array const kReferenceModels = std::to_array<std::string>(
    {"deepseek_v2",    "deepseek_v3", "deepseek_v3-fp8", "dots1",           "ernie4_5_moe",
     "glm4_moe",       "gpt_oss",     "gpt_oss-mxfp4",   "granitemoe",      "granitemoeshared",
     "hunyuan_v1_moe", "llama",       "llama-dynamic",   "llama-linear",    "llama-llama3",
     "llama4",         "minimax_m2",  "mistral",         "mixtral",         "mixtral-window",
     "noisy_topk_moe", "olmoe",       "phimoe",          "phimoe-longrope", "qwen2",
     "qwen2_moe",      "qwen3",       "qwen3_moe"});

// As GoogleTest takes names.
inline std::string name_of_model(testing::TestParamInfo<std::string> const& info) {
  std::string name = info.param;
  std::ranges::replace(name, '-', '_');
  return name;
}

// Spells out what a rig's steps give.
struct Model : ModelRig {
  Model(fs::path const& dir, Numerics numerics, std::size_t threads, Isa isa, Device* device = nullptr,
        ExpertsAt experts_at = ExpertsAt::device)
      : ModelRig(read_model_spec(dir, {}), dir, numerics, threads, isa, 64, device, experts_at) {}

  // Runs the prompts side by side in chunks of at most `budget` tokens; row 0 of the result is prompt 0's, …: the
  // logits of every position as log-probabilities of all tokens in id order, and the routing.
  struct Output {
    std::vector<std::vector<float>> logprobs;                      // [T][V]
    std::vector<std::vector<std::vector<std::uint32_t>>> experts;  // [T][MoE layers][K]
  };
  std::vector<Output> run(std::vector<std::vector<TokenId>> const& prompts, std::size_t budget) {
    Scheduler scheduler({.max_num_seqs = 8, .max_num_batched_tokens = budget, .max_model_len = 128}, groups, blocks);
    std::vector<Sequence> sequences(prompts.size());
    std::vector<Output> outputs(prompts.size());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      sequences[i].id = SequenceId(i);
      sequences[i].tokens = prompts[i];
      sequences[i].prompt_length = prompts[i].size();
      sequences[i].max_length = prompts[i].size() + 1;
      sequences[i].prompt_logits = true;
      scheduler.submit(sequences[i]);
    }
    SamplingParams const greedy{.temperature = 0};
    for (;;) {
      StepBatch const& batch = scheduler.schedule();
      if (batch.num_tokens() == 0) break;
      std::vector<RowWish> const wishes(
          batch.logit_rows().size(),
          RowWish{.sampling = &greedy, .token_logprobs = spec.vocab, .prompt_logprobs = spec.vocab});
      auto const results = runner->run(batch, wishes);
      for (std::size_t i = 0; i < results.size(); ++i) {
        LogitRow const& row = batch.logit_rows()[i];
        auto& output = outputs[batch.sequences()[row.sequence]->id.value()];
        auto const& top = row.sample ? results[i].token_logprobs->top : results[i].prompt_logprobs->top;
        auto& line = output.logprobs.emplace_back(spec.vocab);
        for (auto const& entry : top) line[entry.token] = entry.logprob;
        auto& experts = output.experts.emplace_back();
        for (std::size_t m = 0; m < runner->num_moe_layers(); ++m) {
          auto const chosen = runner->routed(m, row.row);
          experts.emplace_back(chosen.begin(), chosen.end());
        }
      }
      scheduler.complete_step();
    }
    for (auto& s : sequences) scheduler.remove(s);
    return outputs;
  }
};

inline fs::path model_dir(std::string const& name) {
  return goldens_dir() / "models" / name;
}

// Keeps what the layers of one step computed, where `hidden` and `moe` name rows [T][H].
class KeepLayers final : public LayerTap {
 public:
  void hidden(std::size_t index, MatrixView<float const> x) override { keep(hidden_by_index[index], x); }
  void moe_output(std::size_t layer, MatrixView<float const> routed, MatrixView<float const> shared) override {
    keep(moe_by_layer[layer], routed);
    keep(shared_by_layer[layer], shared);
  }
  std::map<std::size_t, std::vector<float>> hidden_by_index;
  std::map<std::size_t, std::vector<float>> moe_by_layer;
  std::map<std::size_t, std::vector<float>> shared_by_layer;

 private:
  static void keep(std::vector<float>& out, MatrixView<float const> x) {
    out.clear();
    for (std::size_t t = 0; t < x.rows; ++t) out.insert(out.end(), x.row(t), x.row(t) + x.cols);
  }
};

inline std::vector<TokenId> prompt_of(GoldenFile const& golden, std::size_t i) {
  auto const ids = golden.ints("prompt" + std::to_string(i) + ".input_ids");
  return {ids.begin(), ids.end()};
}

inline std::size_t num_prompts(GoldenFile const& golden) {
  std::size_t count = 0;
  while (golden.has("prompt" + std::to_string(count) + ".input_ids")) ++count;
  return count;
}

inline float largest_of(std::vector<float> const& values) {
  float largest = 0;
  for (float x : values) largest = std::max(largest, std::fabs(x));
  return largest;
}

constexpr double kTolerance = 2e-4;  // of the largest value: stored weights are exact, only the order of sums differs

// The same with an int8 KV cache, of tokens before the first that goes to other experts, since a random router whose
// choice flips may give any logits. Each key and value of a head moves by up to 1/254 of the largest number in it, and
// a few layers add that up: most models stay below 0.03 (with a bfloat16 cache below 0.02), gpt_oss has 0.074, and
// phimoe, whose experts' weights change at thresholds, 0.098.
constexpr double kInt8KvTolerance = 0.12;

// Tokens before the first that goes to other experts.
template <class Output>
std::size_t num_routed_alike(Output const& a, Output const& b) {
  std::size_t t = 0;
  while (t < a.experts.size() && a.experts[t] == b.experts[t]) ++t;
  return t;
}

// The largest difference of the logits of every position, in units of the largest logit.
inline double logit_error(Model::Output const& output, std::vector<float> const& logits, std::size_t vocab) {
  double worst = 0;
  for (std::size_t t = 0; t < output.logprobs.size(); ++t) {
    double shift = 0;  // log-probabilities are the logits less a constant of the row
    for (std::size_t v = 0; v < vocab; ++v)
      shift += static_cast<double>(logits[t * vocab + v] - output.logprobs[t][v]) / static_cast<double>(vocab);
    for (std::size_t v = 0; v < vocab; ++v)
      worst = std::max(worst, std::fabs(output.logprobs[t][v] + shift - logits[t * vocab + v]));
  }
  return worst / static_cast<double>(largest_of(logits));
}

}  // namespace expertmesh::test
