// What each format of weights and KV cache costs the reference checkpoints' logits.
#include <spdlog/fmt/fmt.h>

#include <iostream>

#include "coordinator/bench/logit_errors.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh {
namespace {

using test::Model;

// Errors are the root of their mean square in units of the logits' standard deviation, of tokens before the first that
// goes to other experts than in float32: a random router whose choice flips may give any logits.
//
// What to expect of random weights: rounding changes the result of a linear by a share of it that does not depend on
// its size. bfloat16 activations: 2^-9 at most, 0.2%. int8: the largest of 128 Gaussian numbers is 2.7 deviations, of
// which a step is 1/127, and the error 1/sqrt(12) of a step: 0.6%, with weights and activations 0.9%. int4: the largest
// of 32 is 2.1 deviations, a step some 1/7.5 of that: 8%. These checkpoints have three or four layers of some four
// linears one behind the other, whose errors add as random ones do: times 3.5, that is 0.6%, 3% and 28%. Most are near
// that (medians 0.7%, 3.7%, 26%). `most` is about twice that: norms, sinks and attention make more of an error, in
// gpt_oss and phimoe most. The granite ones scale down what layers add. `least`: as if nothing had been rounded.
struct Format {
  char const* name;
  test::Numerics numerics;
  double least, most;
};
Format const kFormats[] = {{"bfloat16", DType::bf16, 0.001, 0.03},
                           {"int8", {DType::bf16, Quantization::int8}, 0.006, 0.07},
                           {"int4", {DType::bf16, Quantization::int4}, 0.06, 0.6},
                           {"int8_kv", {DType::bf16, DType::i8}, 0.0015, 0.06}};

class FormatQuality : public testing::TestWithParam<std::string> {};

TEST_P(FormatQuality, LogitsAreAsFarFromTheReferencesAsTheFormatExplains) {
  auto const dir = test::model_dir(GetParam());
  test::GoldenFile const golden(dir / "golden.safetensors");
  std::vector<std::vector<TokenId>> prompts;
  for (std::size_t i = 0; i < test::num_prompts(golden); ++i) prompts.push_back(test::prompt_of(golden, i));
  auto const exact = Model(dir, DType::f32, 2, best_isa()).run(prompts, test::kMaxTokens);
  std::string line = fmt::format("{:<17}", GetParam());
  double before = 0;  // of tokens that go to the same experts, in the format before
  // Where an expert's weight changes at a threshold, one that was crossed is no rounding.
  double const allowed = GetParam().starts_with("phimoe") ? 2 : 1;
  for (Format const& format : kFormats) {
    Model model(dir, format.numerics, 2, best_isa());
    auto const outputs = model.run(prompts, test::kMaxTokens);
    std::size_t const vocab = model.spec.vocab;
    LogitErrors all;
    LogitErrors alike;
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      auto const logits = golden.floats("prompt" + std::to_string(p) + ".logits");  // [T,V]
      std::size_t const num_alike = test::num_routed_alike(outputs[p], exact[p]);
      for (std::size_t t = 0; t < prompts[p].size(); ++t) {
        auto const reference = std::span(logits).subspan(t * vocab, vocab);
        all.add(reference, outputs[p].logprobs[t], std::nullopt);
        if (t < num_alike) alike.add(reference, outputs[p].logprobs[t], std::nullopt);
      }
    }
    line += fmt::format(" | {} {:.2f}% of {}, same choice {:.0f}% of {}", format.name, 100 * alike.rms(),
                        alike.num_rows(), 100 * all.same_choice(), all.num_rows());
    if (alike.num_rows() > 0) {
      EXPECT_LE(alike.rms(), allowed * format.most) << format.name;
      EXPECT_GE(alike.rms(), format.least) << format.name << ": as if nothing had been rounded";
    }
    if (std::string_view(format.name) == "int8_kv" || alike.num_rows() == 0) continue;
    EXPECT_GT(alike.rms(), before) << format.name << ": no worse than the format of twice the size";
    before = alike.rms();
  }
  std::cout << line << std::endl;
}

INSTANTIATE_TEST_SUITE_P(Cases, FormatQuality, testing::ValuesIn(test::kReferenceModels), test::name_of_model);

}  // namespace
}  // namespace expertmesh
