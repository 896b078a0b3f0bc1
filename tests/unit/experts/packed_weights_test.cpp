#include "common/experts/packed_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "common/base/cores.h"
#include "common/checkpoint/fingerprint.h"
#include "common/checkpoint/packed_cache.h"
#include "common/experts/expert_store.h"
#include "tests/support/memory_weights.h"
#include "tests/support/model_copy.h"
#include "tests/support/tiny_experts.h"

namespace expertmesh {
namespace {

using test::MadeUpWeights;
using test::MemoryWeights;
using test::ScratchDir;

std::vector<float> add_numbers(MemoryWeights& source, std::string const& name, std::vector<std::size_t> shape,
                               std::uint64_t seed) {
  auto const bytes = source.add(name, DType::f32, std::move(shape));
  std::mt19937 random(seed);
  auto const numbers = test::random_floats(random, bytes.size() / sizeof(float));
  std::memcpy(bytes.data(), numbers.data(), bytes.size());
  return numbers;
}

// Element (n,k) of a matrix packed as float32: see packed_matrix.h.
float packed_element(PackedMatrix const& w, std::size_t n, std::size_t k) {
  return reinterpret_cast<float const*>(w.data())[(n / 32 * w.k() + k) * 32 + n % 32];
}

TEST(PackedWeights, PartsAndTheirBiasesLieOneBelowTheOther) {
  MemoryWeights source;
  auto const q = add_numbers(source, "q", {17, 5}, 1);
  auto const kv = add_numbers(source, "kv", {6, 5}, 2);  // k: even rows, v: odd ones
  auto const q_bias = add_numbers(source, "q.bias", {17}, 3);
  auto const v_bias = add_numbers(source, "v.bias", {2, 3}, 4);
  WeightReader reader(source);
  std::vector<LinearPart> parts = {{WeightSlice{"q"}, 17, VectorSlice{"q.bias"}},
                                   {{.name = "kv", .stored_rows = 6, .row_step = 2}, 3, {}},
                                   {{.name = "kv", .stored_rows = 6, .first_row = 1, .row_step = 2},
                                    3,
                                    VectorSlice{.name = "v.bias", .stack = 2, .index = 1}}};
  PackedLinear const fused = load_linear(reader, kFloat32Weights, parts, 5);
  ASSERT_EQ(fused.w.n(), 23U);
  ASSERT_EQ(fused.bias.size(), 23U);
  for (std::size_t n = 0; n < 23; ++n) {
    float const bias = n < 17 ? q_bias[n] : n < 20 ? 0.0F : v_bias[3 + n - 20];
    EXPECT_EQ(fused.bias[n], bias) << n;
    for (std::size_t k = 0; k < 5; ++k) {
      std::size_t const row = n < 17 ? n : n < 20 ? 2 * (n - 17) : 2 * (n - 20) + 1;
      EXPECT_EQ(packed_element(fused.w, n, k), (n < 17 ? q : kv)[row * 5 + k]) << n << "," << k;
    }
  }
  EXPECT_EQ(fused.size_bytes(), packed_bytes(kFloat32Weights, 23, 5) + 23 * sizeof(float));

  for (auto& part : parts) part.bias.reset();
  EXPECT_TRUE(load_linear(reader, kFloat32Weights, parts, 5).bias.empty());
}

// Rows that lie in the file as they are, and such that are gathered first.
TEST(PackedWeights, ThreadsThatShareTheRowsLeaveTheSameBytes) {
  MemoryWeights source;
  (void)add_numbers(source, "w", {101, 137}, 1);
  std::vector<LinearPart> const parts = {{WeightSlice{"w"}, 101, {}},
                                         {{.name = "w", .stored_rows = 101, .row_step = 2}, 51, {}}};
  ThreadPool pool(3);
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights}) {
    WeightReader reader(source);
    PackedLinear const alone = load_linear(reader, format, parts, 137);
    PackedLinear const shared = load_linear(reader, format, parts, 137, {.pool = &pool});
    EXPECT_TRUE(std::ranges::equal(std::span(alone.w.data(), alone.w.size_bytes()),
                                   std::span(shared.w.data(), shared.w.size_bytes())));
  }
}

// The tensors behind a weight that is stored as codes, of random bytes but for NaN.
void add_codes(MemoryWeights& source, WeightSlice const& w, std::size_t n, std::size_t k) {
  std::mt19937 random(7);
  for (TensorInfo const& info : tensors_of(w, n, k)) {
    bool const fp8 = info.kind == TensorKind::fp8;
    DType const type = fp8 ? DType::f8_e4m3 : info.kind == TensorKind::bytes ? DType::u8 : DType::f32;
    auto const bytes = source.add(info.name, type, info.shape);
    if (type == DType::f32) {
      auto const scales = test::random_floats(random, bytes.size() / sizeof(float));
      std::memcpy(bytes.data(), scales.data(), bytes.size());
    } else {
      bool const exponents = info.name.ends_with("_scales");
      for (std::byte& b : bytes) b = static_cast<std::byte>(exponents ? 100 + random() % 40 : random() % 0x7f);
    }
  }
}

// What the parts are packed as, and whether that is multiplied as the bfloat16 numbers are which the reader makes.
WeightFormat format_of_same_numbers(MemoryWeights const& source, std::vector<LinearPart> const& parts, std::size_t k) {
  ThreadPool pool(3);
  WeightReader reader(source);
  PackedLinear const packed = load_linear(reader, kBfloat16Weights, parts, k, {.pool = &pool});
  std::size_t rows = 0;
  for (LinearPart const& part : parts) rows += part.rows;
  PackedMatrix numbers(kBfloat16Weights, rows, k);
  std::size_t first = 0;
  for (LinearPart const& part : parts) {
    reader.read(part.weight, part.rows, k, [&](WeightRows const& read) {
      numbers.set_rows(first + read.first, read.count, read.type, read.data);
    });
    first += part.rows;
  }
  PackedMatrix const wide = from_codes(packed.w.format()) ? packed.w.widened() : PackedMatrix();
  PackedMatrix const& w = from_codes(packed.w.format()) ? wide : packed.w;
  EXPECT_TRUE(std::ranges::equal(std::span(w.data(), w.size_bytes()), std::span(numbers.data(), numbers.size_bytes())));
  EXPECT_EQ(packed.size_bytes(), packed_linear_bytes(kBfloat16Weights, parts, k));
  return packed.w.format();
}

// Blocks and panels begin at rows of their own: q, k and v fused, and halves, or every second row, of one tensor.
TEST(PackedWeights, CodesOfACheckpointStay) {
  MemoryWeights source;
  auto const fp8 = [](std::string const& name) {
    return WeightSlice{.name = name, .storage = WeightStorage::fp8_blocks};
  };
  for (auto const& [name, rows] : {std::pair("q", 141), {"k", 19}, {"v", 19}}) add_codes(source, fp8(name), rows, 300);
  EXPECT_EQ(format_of_same_numbers(source, {{fp8("q"), 141}, {fp8("k"), 19}, {fp8("v"), 19}}, 300), fp8_weights(128));

  auto const part = [](WeightSlice w, std::size_t first, std::size_t step) {
    w.first_row = first;
    w.row_step = step;
    return LinearPart{w, 131};
  };
  for (WeightStorage const storage : {WeightStorage::fp8_blocks, WeightStorage::mxfp4}) {
    WeightSlice const w{.name = "gate_up", .stack = 2, .index = 1, .stored_rows = 262, .storage = storage};
    add_codes(source, w, 131, 320);
    WeightFormat const expected = storage == WeightStorage::mxfp4 ? kMxfp4Weights : fp8_weights(128);
    EXPECT_EQ(format_of_same_numbers(source, {part(w, 0, 1), part(w, 131, 1)}, 320), expected);
    EXPECT_EQ(format_of_same_numbers(source, {part(w, 0, 2), part(w, 1, 2)}, 320), expected);
  }
  WeightSlice const across{.name = "across",
                           .transposed = true,
                           .storage = WeightStorage::fp8_blocks,
                           .block_rows = 64,
                           .block_columns = 32};
  add_codes(source, across, 77, 200);
  EXPECT_EQ(format_of_same_numbers(source, {{across, 77}}, 200), fp8_weights(64));
}

TEST(PackedWeights, CodesThatAreNotAlikeBecomeNumbers) {
  MemoryWeights source;
  (void)add_numbers(source, "numbers", {9, 96}, 1);
  auto const fp8 = [&](std::string const& name, std::size_t columns) {
    WeightSlice const w{.name = name, .storage = WeightStorage::fp8_blocks, .block_rows = 4, .block_columns = columns};
    add_codes(source, w, 9, 96);
    return LinearPart{w, 9};
  };
  LinearPart const by_32 = fp8("a", 32);
  EXPECT_EQ(format_of_same_numbers(source, {by_32}, 96), fp8_weights(32));
  EXPECT_EQ(format_of_same_numbers(source, {by_32, {WeightSlice{"numbers"}, 9}}, 96), kBfloat16Weights);
  EXPECT_EQ(format_of_same_numbers(source, {by_32, fp8("b", 64)}, 96), kBfloat16Weights);
  EXPECT_EQ(format_of_same_numbers(source, {fp8("c", 24)}, 96), kBfloat16Weights) << "scales that would take too much";
  for (WeightFormat const& format : {kFloat32Weights, kInt8Weights, kInt4Weights})
    EXPECT_EQ(packed_format(format, {&by_32, 1}, Holder::processor), format);
}

TEST(PackedWeights, DevicesHaveCodesWhoseScalesTheyMultiplyBy) {
  auto const fp8 = [](std::size_t columns) {
    WeightSlice const w{.name = "w", .storage = WeightStorage::fp8_blocks, .block_rows = 4, .block_columns = columns};
    return LinearPart{w, 9};
  };
  LinearPart const mxfp4{{.name = "w", .storage = WeightStorage::mxfp4}, 9};
  struct Case {
    LinearPart part;
    WeightFormat device, processor;
  };
  for (Case const& c : {Case{fp8(128), fp8_weights(128), fp8_weights(128)},
                        {fp8(256), fp8_weights(256), fp8_weights(256)},
                        {fp8(64), kBfloat16Weights, fp8_weights(64)},
                        {fp8(192), kBfloat16Weights, fp8_weights(192)},
                        {mxfp4, kMxfp4Weights, kMxfp4Weights}}) {
    EXPECT_EQ(packed_format(kBfloat16Weights, {&c.part, 1}, Holder::device), c.device);
    EXPECT_EQ(packed_format(kBfloat16Weights, {&c.part, 1}, Holder::processor), c.processor);
    EXPECT_EQ(packed_format(kFloat32Weights, {&c.part, 1}, Holder::device), kFloat32Weights);
    EXPECT_EQ(packed_linear_bytes(kBfloat16Weights, {&c.part, 1}, 384, Holder::device),
              device_weight_bytes(c.device, 9, 384));
  }
}

// One bias more or less at a time, with and without a gate.
TEST(PackedWeights, WhatAnFfnWillTakeIsWhatItTakes) {
  MadeUpWeights const source;
  FfnShape const shape{.hidden = 20, .intermediate = 12};
  for (unsigned mask = 0; mask < 16; ++mask)
    for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights}) {
      FfnTensors tensors{.up = {"up"}, .down = {"down"}};
      if ((mask & 1U) != 0) tensors.gate = WeightSlice{"gate"};
      if ((mask & 2U) != 0) tensors.up_bias = VectorSlice{"up.bias"};
      if ((mask & 4U) != 0) tensors.down_bias = VectorSlice{"down.bias"};
      if ((mask & 8U) != 0 && tensors.gate) tensors.gate_bias = VectorSlice{"gate.bias"};
      WeightReader reader(source);
      FfnWeights const ffn = load_ffn(reader, format, tensors, shape, {.kind = Activation::relu});
      EXPECT_EQ(ffn.size_bytes(), packed_ffn_bytes(format, tensors, shape)) << mask;
      EXPECT_EQ(ffn.gated(), (mask & 1U) != 0);
      EXPECT_EQ(ffn.gate_up.bias.size(), tensors.gate_bias || tensors.up_bias ? ffn.gate_up.w.n() : 0U) << mask;
      EXPECT_EQ(ffn.down.bias.size(), tensors.down_bias ? 20U : 0U) << mask;
      EXPECT_EQ(ffn.activation.kind, Activation::relu);
    }
}

TEST(PackedWeights, AnActivationThatNeedsAGateIsRefusedWithoutOne) {
  MadeUpWeights const source;
  WeightReader reader(source);
  EXPECT_THROW((void)load_ffn(reader, kFloat32Weights, {.up = {"up"}, .down = {"down"}}, {20, 12},
                              {.kind = Activation::clamped_silu, .alpha = 1, .limit = 1}),
               ModelError);
}

ExpertModelSpec biased_model(std::size_t num_experts) {
  ExpertModelSpec model = test::tiny_model(num_experts, DType::f32);
  for (auto& layer : model.layers) {
    layer.activation = {.kind = Activation::clamped_silu, .alpha = 1.702F, .limit = 7};
    for (std::size_t e = 0; e < num_experts; ++e) {
      std::string const at = "layers." + std::to_string(layer.layer) + ".";
      FfnTensors& t = layer.experts[e];
      t.gate = WeightSlice{.name = at + "gate_up", .stack = num_experts, .index = e, .stored_rows = 24, .row_step = 2};
      t.up = *t.gate;
      t.up.first_row = 1;
      t.down = {.name = at + "down", .stack = num_experts, .index = e, .transposed = true};
      t.gate_bias =
          VectorSlice{.name = at + "gate_up_bias", .stack = num_experts, .index = e, .stored_length = 24, .step = 2};
      t.up_bias = t.gate_bias;
      t.up_bias->first = 1;
      t.down_bias = VectorSlice{.name = at + "down_bias", .stack = num_experts, .index = e};
    }
  }
  return model;
}

TEST(ExpertStore, HoldsExpertsOfStackedTensorsWithTheirBiases) {
  ExpertModelSpec const model = biased_model(4);
  HeldExperts const held{{1, 3}, {}};
  MemoryWeights source;
  auto const gate_up = add_numbers(source, "layers.1.gate_up", {4, 24, 20}, 1);
  auto const down = add_numbers(source, "layers.1.down", {4, 12, 20}, 2);
  auto const gate_up_bias = add_numbers(source, "layers.1.gate_up_bias", {4, 24}, 3);
  auto const down_bias = add_numbers(source, "layers.1.down_bias", {4, 20}, 4);
  ThreadPool pool(2);
  ExpertStore const store(model, held, source, pool, [](std::size_t, std::size_t) {});
  EXPECT_EQ(store.resident_bytes(), packed_expert_bytes(model, held));
  for (std::size_t local : {0, 1}) {
    std::size_t const e = held[0][local];
    FfnWeights const& expert = store.expert(0, local);
    EXPECT_EQ(expert.activation, model.layers[0].activation);
    for (std::size_t n = 0; n < 24; ++n) {
      std::size_t const row = n < 12 ? 2 * n : 2 * (n - 12) + 1;
      EXPECT_EQ(expert.gate_up.bias[n], gate_up_bias[e * 24 + row]);
      for (std::size_t k = 0; k < 20; ++k)
        EXPECT_EQ(packed_element(expert.gate_up.w, n, k), gate_up[(e * 24 + row) * 20 + k]) << n << "," << k;
    }
    for (std::size_t n = 0; n < 20; ++n) {
      EXPECT_EQ(expert.down.bias[n], down_bias[e * 20 + n]);
      for (std::size_t k = 0; k < 12; ++k) EXPECT_EQ(packed_element(expert.down.w, n, k), down[(e * 12 + k) * 20 + n]);
    }
  }
  for (auto const& [name, entry] : source.reads()) EXPECT_TRUE(entry == 1U || entry == 3U) << name;
}

// So that a worker with a device, which has numbers, can be compared with one that has codes.
TEST(ExpertStore, TheChecksumOfCodesIsThatOfTheirNumbers) {
  MemoryWeights source;
  FfnTensors tensors{.up = {.name = "up", .storage = WeightStorage::mxfp4}, .down = {.name = "down"}};
  add_codes(source, tensors.up, 40, 64);
  (void)add_numbers(source, "down", {64, 40}, 1);
  ExpertLayerSpec const layer{
      .hidden = 64, .intermediate = 40, .activation = {.kind = Activation::relu}, .experts = {tensors}};
  FfnWeights expert = pack_expert(layer, 0, kBfloat16Weights, source);
  ASSERT_EQ(expert.gate_up.w.format(), kMxfp4Weights);
  std::uint64_t const sum = checksum_of(expert);
  PackedMatrix wide = expert.gate_up.w.widened();
  std::swap(expert.gate_up.w, wide);
  EXPECT_EQ(checksum_of(expert), sum);
  source.add("up_blocks", DType::u8, {40, 2, 16});
  EXPECT_NE(checksum_of(pack_expert(layer, 0, kBfloat16Weights, source)), sum);
}

// A source of its own for each start, with the cache of all.
struct Start {
  explicit Start(ScratchDir const& dir,
                 Fingerprint const& checkpoint = {.config = "c", .tensors = "t", .sizes = "s", .times = "1"})
      : made(std::make_unique<MadeUpWeights>()),
        tensors(*made),
        source(with_packed_cache(std::move(made), dir.path(), checkpoint, DType::bf16)) {}
  std::unique_ptr<MadeUpWeights> made;
  MadeUpWeights const& tensors;
  std::unique_ptr<WeightSource> const source;
};

auto const kIgnoreBytes = [](std::size_t, std::size_t) {};

TEST(ExpertStore, WhatACacheHasKeptIsTheSameAndIsNotReadFromTensors) {
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights})
    for (ExpertModelSpec model : {test::tiny_model(4, DType::f32), biased_model(4)}) {
      model.weights = format;
      ScratchDir const dir;
      ThreadPool pool(3);
      MadeUpWeights const plain;
      ExpertStore const expected(model, all_experts(model), plain, pool, kIgnoreBytes);
      {
        Start const start(dir);
        ExpertStore const store(model, all_experts(model), *start.source, pool, kIgnoreBytes);
        EXPECT_FALSE(start.tensors.loaded().empty());
        EXPECT_EQ(store.checksums(pool), expected.checksums(pool));
        start.source->packed_cache()->wait_until_written();
      }
      Start const start(dir);
      ExpertStore const store(model, all_experts(model), *start.source, pool, kIgnoreBytes);
      EXPECT_TRUE(start.tensors.loaded().empty());
      EXPECT_EQ(start.source->bytes_loaded(), 0U);
      EXPECT_GE(start.source->packed_cache()->bytes_read(), store.resident_bytes());
      EXPECT_EQ(store.resident_bytes(), expected.resident_bytes());
      EXPECT_EQ(store.checksums(pool), expected.checksums(pool));
      for (std::size_t i = 0; i < store.num_experts(); ++i) {
        EXPECT_EQ(checksum_of(store.expert(i)), checksum_of(expected.expert(i)));
        EXPECT_EQ(store.expert(i).activation, expected.expert(i).activation);
        EXPECT_EQ(store.expert(i).gated(), expected.expert(i).gated());
      }
    }
}

// What a cache has kept is copied then: the file's pages lie anywhere.
TEST(ExpertStore, OnSeveralNumaNodesExpertsAreTheSameAndSpread) {
  FfnTensors const tensors{.gate = WeightSlice{.name = "gate"}, .up = {.name = "up"}, .down = {.name = "down"}};
  ExpertModelSpec const model{
      .layers = {{.hidden = 320, .intermediate = 400, .activation = {.kind = Activation::silu}, .experts = {tensors}}},
      .weights = kFloat32Weights,
      .wire = DType::f32};
  ThreadPlan const two({{.index = 0, .num_threads = 1, .cores = allowed_cores()},
                        {.index = 1, .num_threads = 1, .cores = allowed_cores()}},
                       ThreadPlan::Pinning::node);
  ScratchDir const dir;
  ThreadPool pool(2);
  MadeUpWeights const plain;
  auto const sums = ExpertStore(model, all_experts(model), plain, pool, kIgnoreBytes).checksums(pool);
  for (bool const kept : {false, true}) {
    Start const start(dir);
    ExpertStore const store(model, all_experts(model), *start.source, pool, kIgnoreBytes, nullptr, {.threads = &two});
    EXPECT_EQ(start.tensors.loaded().empty(), kept);
    EXPECT_EQ(checksum_of(store.expert(0)), sums[0][0]);
    for (PackedLinear const* part : {&store.expert(0).gate_up, &store.expert(0).down})
      EXPECT_EQ(part->w.lies_by_regions(), pages_come_when_written(part->w.size_bytes()));
    start.source->packed_cache()->wait_until_written();
  }
}

TEST(ExpertStore, ACacheKeepsCodesAsTheyArePacked) {
  FfnTensors tensors{.up = {.name = "up", .storage = WeightStorage::mxfp4}, .down = {.name = "down"}};
  ExpertModelSpec const model{
      .layers = {{.hidden = 64, .intermediate = 40, .activation = {.kind = Activation::relu}, .experts = {tensors}}},
      .weights = kBfloat16Weights,
      .wire = DType::bf16};
  ScratchDir const dir;
  ThreadPool pool(2);
  std::vector<std::vector<std::uint64_t>> sums;
  for (bool const again : {false, true}) {
    auto memory = std::make_unique<MemoryWeights>();
    add_codes(*memory, tensors.up, 40, 64);
    (void)add_numbers(*memory, "down", {64, 40}, 1);
    auto const source = with_packed_cache(std::move(memory), dir.path(),
                                          {.config = "c", .tensors = "t", .sizes = "s", .times = "1"}, DType::bf16);
    ExpertStore const store(model, all_experts(model), *source, pool, kIgnoreBytes);
    EXPECT_EQ(source->bytes_loaded() == 0, again);
    EXPECT_EQ(store.expert(0).gate_up.w.format(), kMxfp4Weights);
    EXPECT_TRUE(!again || store.checksums(pool) == sums);
    sums = store.checksums(pool);
    EXPECT_EQ(sums[0][0], checksum_of(store.expert(0)));
    source->packed_cache()->wait_until_written();
  }
}

TEST(ExpertStore, AnExpertThatTheCacheLacksIsPackedAlone) {
  ExpertModelSpec const model = test::tiny_model(4, DType::f32);
  ScratchDir const dir;
  ThreadPool pool(2);
  std::vector<std::vector<std::uint64_t>> sums;
  {
    Start const start(dir);
    ExpertStore const store(model, all_experts(model), *start.source, pool, kIgnoreBytes);
    sums = store.checksums(pool);
    start.source->packed_cache()->wait_until_written();
    std::filesystem::resize_file(start.source->packed_cache()->folder() / "layer-3-expert-2", 5000);
  }
  for (bool const rebuilt : {false, true}) {
    Start const start(dir);
    ExpertStore const store(model, all_experts(model), *start.source, pool, kIgnoreBytes);
    EXPECT_EQ(start.tensors.loaded(), rebuilt
                                          ? std::set<std::string>{}
                                          : (std::set<std::string>{"layers.3.experts.2.gate", "layers.3.experts.2.up",
                                                                   "layers.3.experts.2.down"}));
    EXPECT_EQ(store.checksums(pool), sums);
    start.source->packed_cache()->wait_until_written();
  }
}

// A checkpoint that was written anew, with the same tensors in the same places.
TEST(ExpertStore, TheCacheOfAnOlderCheckpointIsNotUsed) {
  ExpertModelSpec const model = test::tiny_model(2, DType::f32);
  ScratchDir const dir;
  ThreadPool pool(2);
  Fingerprint checkpoint{.config = "c", .tensors = "t", .sizes = "s", .times = "1"};
  for (char const* times : {"1", "2"}) {
    checkpoint.times = times;
    Start const start(dir, checkpoint);
    ExpertStore const store(model, all_experts(model), *start.source, pool, kIgnoreBytes);
    EXPECT_EQ(start.tensors.loaded().size(), 12U) << times;
    start.source->packed_cache()->wait_until_written();
  }
  Start const start(dir, checkpoint);
  ExpertStore const store(model, all_experts(model), *start.source, pool, kIgnoreBytes);
  EXPECT_TRUE(start.tensors.loaded().empty());
}

TEST(ExpertStore, TheChecksumCoversTheBiases) {
  MadeUpWeights const source;
  ExpertModelSpec const model = biased_model(2);
  FfnWeights expert = pack_expert(model.layers[0], 0, kFloat32Weights, source);
  std::uint64_t const sum = checksum_of(expert);
  EXPECT_EQ(checksum_of(pack_expert(model.layers[0], 0, kFloat32Weights, source)), sum);
  EXPECT_NE(checksum_of(pack_expert(model.layers[0], 1, kFloat32Weights, source)), sum);
  for (AlignedBuffer<float>* bias : {&expert.gate_up.bias, &expert.down.bias})
    for (std::size_t i : {std::size_t{0}, bias->size() - 1}) {
      float const before = (*bias)[i];
      (*bias)[i] = before + 1;
      EXPECT_NE(checksum_of(expert), sum) << i;
      (*bias)[i] = before;
    }
  EXPECT_EQ(checksum_of(expert), sum);
}

}  // namespace
}  // namespace expertmesh
