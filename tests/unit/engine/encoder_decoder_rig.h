// Encoder-decoder reference checkpoints, run by a rig, and what the reference implementation gave: its outputs have a
// kind of their own.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/golden_file.h"
#include "tests/support/model_copy.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh::encoder_decoder {

namespace fs = std::filesystem;
using test::kMaxTokens;
using test::kTolerance;
using test::largest_of;
using test::model_dir;
constexpr std::size_t kMaxLength = 320;  // of an input, and of an answer
constexpr std::size_t kBlocks = 96;
inline std::vector<std::string> const kModels{"nllb-moe", "switch_transformers"};

// What the encoder gave and what the decoder's layers left, of one sequence that runs alone.
class KeepRows final : public LayerTap {
 public:
  void hidden(std::size_t index, MatrixView<float const> x) override { append(hidden_by_index[index], x); }
  void encoder_output(std::size_t begin, MatrixView<float const> x) override {
    encoded.resize(begin * x.cols);
    append(encoded, x);
  }
  void moe_output(std::size_t, MatrixView<float const>, MatrixView<float const>) override {}
  std::map<std::size_t, std::vector<float>> hidden_by_index;
  std::vector<float> encoded;

 private:
  static void append(std::vector<float>& out, MatrixView<float const> x) {
    for (std::size_t t = 0; t < x.rows; ++t) out.insert(out.end(), x.row(t), x.row(t) + x.cols);
  }
};

struct Case {
  std::vector<TokenId> input;
  std::vector<TokenId> tokens;  // of the decoder
  std::size_t num_new = 0;      // greedy tokens to add
};
struct Output {
  std::vector<std::vector<float>> logprobs;                      // [tokens][V] of all ids in order
  std::vector<std::vector<std::vector<std::uint32_t>>> experts;  // [tokens][MoE layers][K] with kNoExpert
  std::vector<TokenId> new_tokens;
  bool operator==(Output const&) const = default;
};

struct Model : test::ModelRig {
  Model(fs::path const& dir, test::Numerics numerics, std::size_t threads, Isa isa, std::size_t max_tokens = kMaxTokens,
        std::size_t blocks_of_each = kBlocks, Device* device = nullptr,
        test::ExpertsAt experts_at = test::ExpertsAt::device)
      : Model(read_model_spec(dir, {}), dir, numerics, threads, isa, max_tokens, blocks_of_each, device, experts_at) {}
  Model(ModelSpec const& model, fs::path const& dir, test::Numerics numerics, std::size_t threads, Isa isa,
        std::size_t max_tokens, std::size_t blocks_of_each, Device* device, test::ExpertsAt experts_at)
      : ModelRig(model, dir, numerics, threads, isa,
                 std::vector<std::size_t>(kv_cache_specs(model, numerics.kv).size(), blocks_of_each), max_tokens,
                 device, experts_at),
        limits{.max_num_seqs = 4,
               .max_num_batched_tokens = max_tokens,
               .max_model_len = kMaxLength,
               .num_expert_counts = num_expert_counts(spec)} {}

  // Side by side. prefill_tokens: of prompts beside decodes. The steps are counted.
  std::vector<Output> run(std::vector<Case> const& cases, std::size_t prefill_tokens = kMaxTokens) {
    Scheduler scheduler(limits, groups, blocks);
    return run(scheduler, cases, prefill_tokens);
  }
  std::vector<Output> run(Scheduler& scheduler, std::vector<Case> const& cases,
                          std::size_t prefill_tokens = kMaxTokens) {
    std::vector<Sequence> sequences(cases.size());
    std::vector<Output> outputs(cases.size());
    for (std::size_t i = 0; i < cases.size(); ++i) {
      Sequence& s = sequences[i];
      s.id = SequenceId(i);
      s.input = cases[i].input;
      s.tokens = cases[i].tokens;
      s.prompt_length = s.tokens.size();
      s.max_length = s.prompt_length + std::max<std::size_t>(cases[i].num_new, 1);
      s.prompt_logits = true;
      scheduler.submit(s);
    }
    SamplingParams const greedy{.temperature = 0};
    num_steps = num_encoder_steps = 0;
    for (;; ++num_steps) {
      StepBatch const& batch = scheduler.schedule(prefill_tokens);
      bool const encodes = !scheduler.encoder_batch().empty();
      if (batch.num_tokens() == 0 && !encodes) break;
      if (encodes) {
        ++num_encoder_steps;
        if (runner->encode(scheduler.encoder_batch()).all) scheduler.complete_encoding();
      }
      if (batch.num_tokens() == 0) continue;
      std::vector<RowWish> const wishes(
          batch.logit_rows().size(),
          RowWish{.sampling = &greedy, .token_logprobs = spec.vocab, .prompt_logprobs = spec.vocab});
      auto const results = runner->run(batch, wishes);
      std::vector<std::pair<std::size_t, TokenId>> sampled;
      for (std::size_t i = 0; i < results.size(); ++i) {
        LogitRow const& row = batch.logit_rows()[i];
        std::size_t const which = batch.sequences()[row.sequence]->id.value();
        if (row.sample) sampled.emplace_back(which, *results[i].token);
        Output& output = outputs[which];
        if (row.position < output.logprobs.size()) continue;  // known from before a preemption
        auto const& top = row.sample ? results[i].token_logprobs->top : results[i].prompt_logprobs->top;
        auto& line = output.logprobs.emplace_back(spec.vocab);
        for (auto const& entry : top) line[static_cast<std::size_t>(entry.token)] = entry.logprob;
        auto& experts = output.experts.emplace_back();
        for (std::size_t m = 0; m < runner->num_routed_layers(); ++m) {
          auto const chosen = runner->routed(m, row.row);
          experts.emplace_back(chosen.begin(), chosen.end());
        }
      }
      scheduler.complete_step();
      scheduler.check_integrity();
      for (auto const& [which, token] : sampled) {
        if (outputs[which].new_tokens.size() == cases[which].num_new) continue;
        outputs[which].new_tokens.push_back(token);
        if (outputs[which].new_tokens.size() < cases[which].num_new)
          sequences[which].tokens.push_back(token);
        else
          scheduler.remove(sequences[which]);
      }
    }
    for (std::size_t i = 0; i < cases.size(); ++i)
      if (cases[i].num_new == 0) scheduler.remove(sequences[i]);
    num_preemptions = scheduler.num_preemptions();
    return outputs;
  }

  SchedulerLimits limits;
  std::size_t num_steps = 0, num_encoder_steps = 0, num_preemptions = 0;
};

// In units of the largest value.
inline double error_of(std::vector<float> const& got, std::vector<float> const& expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  return worst / static_cast<double>(largest_of(expected));
}

// Log-probabilities are the logits less a constant of the row.
inline double logit_error(Output const& output, std::vector<float> const& logits, std::size_t vocab) {
  std::vector<float> shifted;
  for (std::size_t t = 0; t < output.logprobs.size(); ++t) {
    double shift = 0;
    for (std::size_t v = 0; v < vocab; ++v)
      shift += static_cast<double>(logits[t * vocab + v] - output.logprobs[t][v]) / static_cast<double>(vocab);
    for (std::size_t v = 0; v < vocab; ++v) shifted.push_back(output.logprobs[t][v] + static_cast<float>(shift));
  }
  return error_of(shifted, logits);
}

struct Golden {
  explicit Golden(fs::path const& dir)
      : file(dir / "golden.safetensors"), json(nlohmann::json::parse(test::read_file(dir / "golden.json"))) {
    for (std::size_t i = 0; i < json.at("prompts").size(); ++i)
      forced.push_back({.input = ids(i, "input_ids"), .tokens = ids(i, "decoder_ids")});
  }
  [[nodiscard]] std::vector<TokenId> ids(std::size_t i, std::string const& name) const {
    auto const list = file.ints(prefix(i) + name);
    return {list.begin(), list.end()};
  }
  [[nodiscard]] std::vector<float> floats(std::size_t i, std::string const& name) const {
    return file.floats(prefix(i) + name);
  }
  [[nodiscard]] std::vector<TokenId> greedy(std::size_t i) const { return json.at("prompts").at(i).at("greedy"); }
  static std::string prefix(std::size_t i) { return "prompt" + std::to_string(i) + "."; }

  test::GoldenFile file;
  nlohmann::json json;
  std::vector<Case> forced;  // by the reference's decoder ids
};

}  // namespace expertmesh::encoder_decoder
