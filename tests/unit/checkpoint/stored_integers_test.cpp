// Weights that checkpoints store as integers, and 8-bit floats with scales of other shapes than blocks.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>

#include "common/checkpoint/integer_weights.h"
#include "common/checkpoint/weight_reader.h"
#include "tests/support/golden_file.h"
#include "tests/support/memory_weights.h"
#include "tests/support/model_copy.h"
#include "tests/support/stored_integers.h"

namespace expertmesh {
namespace {

using test::expect_words;
using test::IntegerMatrix;
using test::MemoryWeights;
using test::refusal;

// Every form that a config can lead to.
std::vector<StoredIntegers> forms(std::size_t group_size) {
  std::vector<StoredIntegers> out;
  auto const add = [&](IntegerLayout layout, std::size_t bits, ZeroPoints zeros, bool index) {
    out.push_back({layout, bits, group_size, zeros, index, false});
  };
  for (std::size_t const bits : {4, 8}) {
    for (ZeroPoints const zeros : {ZeroPoints::stored, ZeroPoints::stored_minus_one})
      add(IntegerLayout::gptq, bits, zeros, true);
    for (ZeroPoints const zeros : {ZeroPoints::middle, ZeroPoints::stored})
      for (bool const index : {false, true}) add(IntegerLayout::packed, bits, zeros, index && group_size != 0);
  }
  add(IntegerLayout::awq, 4, ZeroPoints::stored, false);
  for (ZeroPoints const zeros : {ZeroPoints::middle, ZeroPoints::stored}) {
    add(IntegerLayout::bytes, 8, zeros, group_size != 0);
    if (group_size == 0) out.push_back({IntegerLayout::bytes, 8, 0, zeros, false, true});
  }
  return out;
}

void add_to(MemoryWeights& source, std::vector<test::RawTensor> const& tensors) {
  for (auto const& tensor : tensors) {
    auto const into = source.add(tensor.name, tensor.dtype, tensor.shape);
    ASSERT_EQ(into.size(), tensor.bytes.size()) << tensor.name;
    std::ranges::copy(tensor.bytes, into.begin());
  }
}

std::vector<float> read_all(WeightSource const& source, WeightSlice const& w, std::size_t rows, std::size_t k) {
  std::vector<float> out;
  WeightReader(source).read(w, rows, k, [&](WeightRows const& part) {
    EXPECT_EQ(part.first * k, out.size());
    auto const* numbers = reinterpret_cast<float const*>(part.data);
    out.insert(out.end(), numbers, numbers + part.count * k);
  });
  return out;
}

TEST(StoredIntegers, EveryFormAndPartReadsAsItIsDescribed) {
  std::mt19937 random(1);
  std::size_t count = 0;
  for (std::size_t const group_size : {0, 5, 32, 64, 128})
    for (StoredIntegers const& form : forms(group_size))
      for (std::size_t const rows : {1, 7, 33})
        for (std::size_t const k : {1, 33, 96, 200}) {
          WeightSlice w{.name = "m", .storage = WeightStorage::integers, .integers = form};
          if (++count % 2 == 0) {  // the odd rows of more
            w.stored_rows = 2 * rows + 3;
            w.first_row = 1;
            w.row_step = 2;
          }
          IntegerMatrix const m = test::random_matrix(form, w.stored_rows == 0 ? rows : w.stored_rows, k, random);
          MemoryWeights source;
          DType const scales = std::array{DType::f32, DType::bf16, DType::f16}[count % 3];
          add_to(source, test::stored_tensors(form, "m", m, scales));
          auto const read = read_all(source, w, rows, k);
          ASSERT_EQ(read.size(), rows * k);
          std::size_t wrong = 0;
          for (std::size_t n = 0; n < rows; ++n)
            for (std::size_t e = 0; e < k; ++e)
              wrong +=
                  std::bit_cast<int>(read[n * k + e]) != std::bit_cast<int>(m.weight(w.first_row + n * w.row_step, e));
          EXPECT_EQ(wrong, 0U) << form_of(w) << " [" << rows << "," << k << "] first " << w.first_row;
        }
}

// Chunks of rows that are widened together.
TEST(StoredIntegers, ManyRows) {
  std::mt19937 random(2);
  for (StoredIntegers const& form : forms(128)) {
    WeightSlice const w{.name = "m", .storage = WeightStorage::integers, .integers = form};
    IntegerMatrix const m = test::random_matrix(form, 300, 1000, random);
    MemoryWeights source;
    add_to(source, test::stored_tensors(form, "m", m, DType::f32));
    auto const read = read_all(source, w, 300, 1000);
    std::size_t wrong = 0;
    for (std::size_t n = 0; n < 300; ++n)
      for (std::size_t e = 0; e < 1000; ++e) wrong += read[n * 1000 + e] != m.weight(n, e);
    EXPECT_EQ(wrong, 0U) << form_of(w);
  }
}

// Weights that keep their own bits are made of these.
TEST(StoredIntegers, CodesAndGroupsAreTheStoredOnes) {
  std::mt19937 random(3);
  for (StoredIntegers const& form : forms(32)) {
    WeightSlice const w{.name = "m", .storage = WeightStorage::integers, .integers = form};
    IntegerMatrix const m = test::random_matrix(form, 9, 80, random);
    MemoryWeights source;
    add_to(source, test::stored_tensors(form, "m", m, DType::f32));
    std::vector<StoredTensor> tensors;
    for (TensorInfo const& info : integer_tensors_of(w, 9, 80))
      if (info.values.empty()) tensors.push_back(source.load(info));
    std::vector<StoredTensor const*> views;
    for (auto const& tensor : tensors) views.push_back(&tensor);
    IntegerWeights const weights(w, 9, 80, views);
    EXPECT_EQ(weights.num_groups(), 3U);
    EXPECT_EQ(weights.num_columns(), 32U);
    EXPECT_EQ(weights.group_of(), form.has_group_index ? m.group_of : std::vector<std::uint32_t>{});
    std::vector<std::uint8_t> codes(4UL * 80);
    weights.codes(3, 4, codes.data());
    for (std::size_t i = 0; i < codes.size(); ++i) ASSERT_EQ(codes[i], m.codes[3UL * 80 + i]) << form_of(w);
    std::array<float, 3> scales{};
    std::array<float, 3> zeros{};
    weights.groups(8, scales.data(), zeros.data());
    for (std::size_t g = 0; g < 3; ++g) {
      EXPECT_EQ(scales[g], m.scales[24 + g]);
      EXPECT_EQ(zeros[g], static_cast<float>(m.zero_points[24 + g]));
    }
  }
}

TEST(StoredIntegers, AGroupThatIsNotThereIsRefusedByName) {
  StoredIntegers const form{.layout = IntegerLayout::gptq, .group_size = 32, .has_group_index = true};
  WeightSlice const w{.name = "m", .storage = WeightStorage::integers, .integers = form};
  std::mt19937 random(4);
  IntegerMatrix m = test::random_matrix(form, 8, 64, random);
  for (std::uint32_t const bad : {2U, 0xffffffffU}) {
    m.group_of[5] = bad;
    MemoryWeights source;
    add_to(source, test::stored_tensors(form, "m", m, DType::f32));
    expect_words(refusal([&] { (void)read_all(source, w, 8, 64); }), {"'m.g_idx'", "element 5", "there are 2"});
  }
}

// ---- what the tools that define the formats make of their own tensors
class ToolsCheckpoint : public testing::Test {
 protected:
  std::filesystem::path const dir = test::goldens_dir() / "quantised";
  std::unique_ptr<WeightSource> const source = open_checkpoint(dir);
  test::GoldenFile const golden{dir / "model.safetensors"};

  void check(std::string const& name, WeightSlice w) {
    auto const shape = golden.shape(name + ".dequantised");
    w.name = w.storage == WeightStorage::integers ? name : name + ".weight";
    auto const expected = golden.floats(name + ".dequantised");
    for (TensorInfo const& info : tensors_of(w, shape[0], shape[1])) (void)source->load(info);
    auto const read = read_all(*source, w, shape[0], shape[1]);
    ASSERT_EQ(read.size(), expected.size()) << name;
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < read.size(); ++i) wrong += read[i] != expected[i];
    EXPECT_EQ(wrong, 0U) << name;
  }
  void check(std::string const& name, StoredIntegers const& form) {
    check(name, WeightSlice{.storage = WeightStorage::integers, .integers = form});
  }
};

TEST_F(ToolsCheckpoint, ReadsAsTheToolsRead) {
  constexpr auto kMinusOne = ZeroPoints::stored_minus_one;
  check("gptq4", StoredIntegers{IntegerLayout::gptq, 4, 32, kMinusOne, true});
  check("gptq8", StoredIntegers{IntegerLayout::gptq, 8, 32, kMinusOne, true});
  check("gptq4_row", StoredIntegers{IntegerLayout::gptq, 4, 0, kMinusOne, true});
  check("awq", StoredIntegers{IntegerLayout::awq, 4, 32});
  check("packed4", StoredIntegers{IntegerLayout::packed, 4, 32, ZeroPoints::middle});
  check("packed4_zero", StoredIntegers{IntegerLayout::packed, 4, 32});
  check("packed4_order", StoredIntegers{IntegerLayout::packed, 4, 16, ZeroPoints::stored, true});
  check("packed8_row", StoredIntegers{IntegerLayout::packed, 8, 0});
  check("bytes_row", StoredIntegers{IntegerLayout::bytes, 8, 0, ZeroPoints::middle});
  check("bytes_zero", StoredIntegers{IntegerLayout::bytes, 8, 32});
  check("bytes_one", StoredIntegers{IntegerLayout::bytes, 8, 0, ZeroPoints::stored, false, true});
  check("fp8_row", WeightSlice{.storage = WeightStorage::fp8_scaled, .block_rows = 1, .block_columns = 0});
  check("fp8_one", WeightSlice{.storage = WeightStorage::fp8_scaled, .block_rows = 0, .block_columns = 0});
  check("fp8_block", WeightSlice{.storage = WeightStorage::fp8_scaled, .block_rows = 8, .block_columns = 32});
}

TEST_F(ToolsCheckpoint, TheSecondFormatOfGptqHasZeroPointsAsTheyAre) {
  MemoryWeights memory;
  for (auto const& [stored, name] : {std::pair("gptq4.qweight", "m.qweight"), {"gptq4.v2_qzeros", "m.qzeros"}}) {
    auto const shape = golden.shape(stored);
    auto const tensor = source->load(TensorInfo{stored, shape, TensorKind::words});
    std::ranges::copy(tensor.bytes, memory.add(name, DType::i32, shape).begin());
  }
  auto const scales = source->load(TensorInfo{"gptq4.scales", golden.shape("gptq4.scales")});
  std::ranges::copy(scales.bytes, memory.add("m.scales", DType::f16, golden.shape("gptq4.scales")).begin());
  auto const index = source->load(TensorInfo{"gptq4.g_idx", {64}, TensorKind::indices});
  std::ranges::copy(index.bytes, memory.add("m.g_idx", DType::i32, {64}).begin());
  WeightSlice const w{.name = "m",
                      .storage = WeightStorage::integers,
                      .integers = {IntegerLayout::gptq, 4, 32, ZeroPoints::stored, true}};
  EXPECT_EQ(read_all(memory, w, 32, 64), golden.floats("gptq4.dequantised"));
}

TEST_F(ToolsCheckpoint, ValuesThatTensorsMustHaveAreChecked) {
  TensorInfo info{"packed4.weight_shape", {2}, TensorKind::sizes};
  for (auto const& [values, words] : std::vector<std::pair<std::vector<std::size_t>, std::string>>{
           {{9, 64}, ""}, {{9, 65}, "element 1 is 64, expected 65"}, {{8}, "element 0 is 9, expected 8"}}) {
    info.values = values;
    if (words.empty())
      EXPECT_NO_THROW((void)source->load(info));
    else
      expect_words(refusal([&] { (void)source->load(info); }), {"model.safetensors", "'packed4.weight_shape'", words});
  }
  // The last one is for all that follow.
  expect_words(refusal([&] {
                 (void)source->load(TensorInfo{"awq.scales", {2, 32}, TensorKind::numbers, {0}});
               }),
               {"'awq.scales'", "element 0", "expected 0"});
}

}  // namespace
}  // namespace expertmesh
