// Attention with a number added by distance, and to positions after the token's own.
#include <gtest/gtest.h>

#include <cmath>

#include "common/kernels/paged_attention.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

class AttentionBiasTest : public EachIsa {};
EM_FOR_EACH_ISA(AttentionBiasTest);

constexpr std::uint32_t kKeys = 75;  // in five scattered blocks
constexpr std::size_t kHeads = 6, kKvHeads = 3, kDim = 12;
constexpr float kScale = 0.5F;

struct Whole {
  std::uint32_t reach;
  bool to_the_end;  // tokens attend to all keys, else to those up to their own
  DType dtype;      // of the cache
  Matrix<float> q = random_matrix(kKeys, kHeads* kDim, 1);
  Matrix<float> k = random_matrix(kKeys, kKvHeads* kDim, 2);
  Matrix<float> v = random_matrix(kKeys, kKvHeads* kDim, 3);
  RelativeBias bias{kHeads, reach};
  std::vector<std::uint32_t> tables = {9, 2, 7, 0, 5};
  std::vector<std::uint32_t> offsets = {0};

  Whole(std::uint32_t how_far, bool all, DType type) : reach(how_far), to_the_end(all), dtype(type) {
    if (type == DType::i8)  // numbers that it holds exactly
      for (auto* x : {&k, &v})
        for (std::size_t i = 0; i < kKeys * kKvHeads * kDim; ++i) {
          float& number = x->view().data[i];
          number = i % kDim == 0 ? 1 : std::nearbyint(number * 127) / 127;
        }
    for (std::size_t h = 0; h < kHeads; ++h)
      for (std::int64_t d = -std::int64_t{reach}; d <= reach; ++d) bias.set(h, d, number(h, d));
  }
  [[nodiscard]] float number(std::size_t head, std::int64_t distance) const {
    std::int64_t const held = std::clamp<std::int64_t>(distance, -std::int64_t{reach}, reach);
    return 2.0F * std::sin(static_cast<float>(head * 31) + 1.7F * static_cast<float>(held));
  }
  [[nodiscard]] std::uint32_t last(std::uint32_t position) const { return to_the_end ? kKeys - 1 : position; }

  // In calls of `chunk` tokens, all keys written before.
  [[nodiscard]] Matrix<float> run(Exec const& exec, std::uint32_t chunk, bool with_bias = true) const {
    Matrix<float> out(kKeys, kHeads * kDim);
    KvLayer cache({.num_blocks = 10, .num_kv_heads = kKvHeads, .key_dim = kDim, .value_dim = kDim, .dtype = dtype});
    for (bool const attend : {false, true})
      for (std::uint32_t begin = 0; begin < kKeys; begin += chunk) {
        std::uint32_t const count = std::min(chunk, kKeys - begin);
        std::vector<std::uint32_t> positions, ends;
        for (std::uint32_t p = begin; p < begin + count; ++p) {
          positions.push_back(p);
          if (to_the_end) ends.push_back(kKeys - 1);
        }
        std::vector<std::uint32_t> const sequences(count);
        TokenPlaces const places{.positions = positions,
                                 .sequences = sequences,
                                 .block_tables = tables,
                                 .table_offsets = offsets,
                                 .last = ends};
        if (!attend)
          kv_write(exec, k.view().row_range(begin, count), v.view().row_range(begin, count), places, cache);
        else
          paged_attention(exec, q.view().row_range(begin, count), places, cache,
                          {.num_heads = kHeads, .scale = kScale, .bias = with_bias ? &bias : nullptr},
                          out.view().row_range(begin, count));
      }
    return out;
  }

  [[nodiscard]] std::vector<double> expected(std::uint32_t position, std::size_t head) const {
    std::size_t const g = head / (kHeads / kKvHeads);
    std::vector<double> out(kDim);
    double sum = 0;
    for (std::uint32_t p = 0; p <= last(position); ++p) {
      double score = 0;
      for (std::size_t i = 0; i < kDim; ++i)
        score += static_cast<double>(q.view().row(position)[head * kDim + i]) *
                 static_cast<double>(k.view().row(p)[g * kDim + i]);
      double const weight = std::exp(score * static_cast<double>(kScale) +
                                     static_cast<double>(number(head, std::int64_t{p} - std::int64_t{position})));
      sum += weight;
      for (std::size_t i = 0; i < kDim; ++i) out[i] += weight * static_cast<double>(v.view().row(p)[g * kDim + i]);
    }
    for (double& x : out) x /= sum;
    return out;
  }
};

TEST_P(AttentionBiasTest, AddsTheNumberOfEachDistance) {
  Rig const rig(GetParam(), 2);
  for (bool const to_the_end : {false, true})
    for (std::uint32_t const reach : {1U, 5U, 16U, 40U, 100U}) {  // less than a block, several, beyond all distances
      Whole const whole(reach, to_the_end, reach % 2 == 0 ? DType::i8 : DType::f32);
      Matrix<float> const got = whole.run(rig.exec, kKeys);
      for (std::uint32_t p = 0; p < kKeys; ++p)
        for (std::size_t h = 0; h < kHeads; ++h) {
          auto const expected = whole.expected(p, h);
          for (std::size_t i = 0; i < kDim; ++i)
            ASSERT_NEAR(static_cast<double>(got.view().row(p)[h * kDim + i]), expected[i], 1e-5)
                << "reach " << reach << ", token " << p << ", head " << h;
        }
    }
}

TEST_P(AttentionBiasTest, BitsDoNotDependOnTheCall) {
  Rig const scalar(Isa::scalar, 1);
  Rig const rig(GetParam(), 3);
  for (bool const to_the_end : {false, true}) {
    Whole const whole(11, to_the_end, to_the_end ? DType::f32 : DType::i8);
    Matrix<float> const expected = whole.run(scalar.exec, kKeys);
    for (std::uint32_t const chunk : {1U, 7U, 16U, kKeys})
      EXPECT_TRUE(same_bits(whole.run(rig.exec, chunk).view(), expected.view())) << "chunk " << chunk;
  }
}

}  // namespace
}  // namespace expertmesh
