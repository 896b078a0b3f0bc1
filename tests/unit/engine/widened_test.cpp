// A model whose weights are FP8 or MXFP4 has, in bfloat16, the bits of the same checkpoint in bfloat16 numbers.
#include <gtest/gtest.h>

#include "common/base/bf16.h"
#include "common/checkpoint/weight_reader.h"
#include "tests/support/model_copy.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh {
namespace {

// The numbers of a tensor, where the checkpoint has that of this name, or codes for it: row-major, as `info` wants it.
std::vector<bf16> numbers_of(WeightSource const& source, TensorInfo const& info) {
  std::vector<bf16> out;
  bool const fp8 = source.holds(info.name + "_scale_inv");
  bool const mxfp4 = source.holds(info.name + "_blocks");
  if (!fp8 && !mxfp4) {
    for (float const x : to_floats(source.load(info))) out.push_back(to_bf16(x));
    return out;
  }
  WeightReader reader(source);
  std::size_t const stack = mxfp4 ? info.shape[0] : 1;
  std::size_t const n = info.shape[mxfp4 ? 2 : 0];  // MXFP4 lies across
  std::size_t const k = info.shape[1];
  for (std::size_t i = 0; i < stack; ++i) {
    WeightSlice const slice{.name = info.name,
                            .stack = mxfp4 ? stack : 0,
                            .index = i,
                            .storage = mxfp4 ? WeightStorage::mxfp4 : WeightStorage::fp8_blocks};
    std::vector<bf16> matrix(n * k);
    reader.read(slice, n, k, [&](WeightRows const& rows) {
      for (std::size_t r = 0; r < rows.count; ++r)
        for (std::size_t j = 0; j < k; ++j) {
          bf16 const x = to_bf16(reinterpret_cast<float const*>(rows.data)[r * k + j]);
          matrix[mxfp4 ? j * n + rows.first + r : (rows.first + r) * k + j] = x;
        }
    });
    out.insert(out.end(), matrix.begin(), matrix.end());
  }
  return out;
}

class WidenedCopy : public test::ModelCopy {
 public:
  explicit WidenedCopy(std::string const& golden_case) : ModelCopy(golden_case) {
    auto const source = open_checkpoint(ModelCopy::source(golden_case));
    edit_config([](nlohmann::json& config) { config.erase("quantization_config"); });
    nlohmann::json header;
    std::string data;
    for (TensorInfo const& info : expected_tensors(read_model_spec(path(), {})).required) {
      auto const numbers = numbers_of(*source, info);
      std::size_t const begin = data.size();
      data.append(reinterpret_cast<char const*>(numbers.data()), numbers.size() * sizeof(bf16));
      header[info.name] = {{"dtype", "BF16"}, {"shape", info.shape}, {"data_offsets", {begin, data.size()}}};
    }
    test::write_file(path() / "model.safetensors", test::safetensors_bytes(header.dump(), data));
  }
};

class CodedModel : public testing::TestWithParam<std::string> {};

TEST_P(CodedModel, HasTheBitsOfItsNumbers) {
  WidenedCopy const widened(GetParam());
  std::filesystem::path const dir = test::model_dir(GetParam());
  test::GoldenFile const golden(dir / "golden.safetensors");
  std::vector<std::vector<TokenId>> const prompts = {test::prompt_of(golden, 0), test::prompt_of(golden, 1)};
  for (Isa const isa : runnable_isas()) {
    test::Model coded(dir, DType::bf16, 2, isa);
    test::Model numbers(widened.path(), DType::bf16, 2, isa);
    EXPECT_LT(plan_model(coded.spec, kBfloat16Weights, DType::bf16, 1).worker_bytes,
              plan_model(numbers.spec, kBfloat16Weights, DType::bf16, 1).worker_bytes);
    auto const outputs = coded.run(prompts, test::kMaxTokens);
    auto const expected = numbers.run(prompts, test::kMaxTokens);
    for (std::size_t p = 0; p < prompts.size(); ++p) {
      EXPECT_EQ(outputs[p].logprobs, expected[p].logprobs) << name_of(isa) << " prompt " << p;
      EXPECT_EQ(outputs[p].experts, expected[p].experts) << name_of(isa) << " prompt " << p;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, CodedModel, testing::Values("deepseek_v3-fp8", "gpt_oss-mxfp4"), test::name_of_model);

}  // namespace
}  // namespace expertmesh
