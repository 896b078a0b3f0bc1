#include "common/kernels/exec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "common/kernels/grouped_ffn.h"
#include "common/kernels/linear.h"
#include "common/kernels/paged_attention.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace {
std::atomic<std::size_t> num_allocations = 0;
}  // namespace

// Every allocation of this program is counted. Not inlined: gcc would take malloc and delete for a mismatched pair.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++num_allocations;
  if (void* p = std::malloc(bytes == 0 ? 1 : bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}

namespace expertmesh {
namespace {

TEST(Exec, NamesGoBothWays) {
  for (Isa isa : kIsas) EXPECT_EQ(isa_from_name(name_of(isa)), isa);
  EXPECT_EQ(isa_from_name("avx1024"), std::nullopt);
}

TEST(Exec, ScalarRunsEverywhereAndTheBestIsTheLast) {
  ASSERT_FALSE(runnable_isas().empty());
  EXPECT_EQ(runnable_isas().front(), Isa::scalar);
  auto isas = runnable_isas();
  std::erase(isas, Isa::amx);  // only where it is asked for
  EXPECT_EQ(isas.back(), best_isa());
}

TEST(Exec, WhatTheProcessorDoesNotRunIsABrokenInvariant) {
  auto const isas = runnable_isas();
  for (Isa isa : kIsas)
    if (std::ranges::find(isas, isa) == isas.end()) {
      EXPECT_DEATH(Rig{isa},
                   "broken invariant.*\n.*\n.*" + std::string(name_of(isa)) + " does not run on this processor");
    }
}

TEST(Exec, MoreThanTheLimitsIsABrokenInvariant) {
  Rig rig(Isa::scalar);
  std::size_t const too_many = rig.exec.limits().max_rows + 1;
  Matrix<float> x(too_many, 2), y(too_many, 3);
  PackedMatrix const w(kFloat32Weights, 3, 2);
  EXPECT_DEATH(linear(rig.exec, x.view(), w, y.view()), "broken invariant.*");
}

class StepPathTest : public EachIsa {};
EM_FOR_EACH_ISA(StepPathTest);

TEST_P(StepPathTest, NothingAllocates) {
  Rig rig(GetParam(), 2);
  auto const x = reference::random_matrix(5, 32, 1);
  Matrix<float> y(5, 64);
  auto const up = reference::packed(kBfloat16Weights, reference::random_matrix(64, 32, 2).view());
  std::vector<float> const ones(64, 1.0F);
  FfnWeights const ffn{.gate_up = {reference::packed(kBfloat16Weights, reference::random_matrix(64, 32, 3).view()),
                                   AlignedBuffer<float>(std::span(ones))},
                       .down = {reference::packed(kBfloat16Weights, reference::random_matrix(32, 32, 4).view()), {}}};
  FfnWeights const* const groups[] = {&ffn};
  std::size_t const offsets[] = {0, 1};
  std::byte const* const in[] = {reinterpret_cast<std::byte const*>(x.view().data)};
  std::byte* const out[] = {reinterpret_cast<std::byte*>(y.view().data)};
  KvLayer cache({.num_blocks = 2, .num_kv_heads = 1, .key_dim = 32, .value_dim = 32, .dtype = DType::bf16});
  std::uint32_t const positions[] = {0, 1, 2, 3, 4};
  std::uint32_t const sequences[] = {0, 0, 0, 0, 0};
  std::uint32_t const tables[] = {1};
  std::uint32_t const table_offsets[] = {0, 1};
  TokenPlaces const places{positions, sequences, tables, table_offsets};

  std::size_t const before = num_allocations;
  linear(rig.exec, x.view(), up, y.view());
  grouped_ffn(rig.exec, {.groups = groups, .offsets = offsets, .in = in, .out = out, .wire = DType::f32});
  kv_write(rig.exec, x.view(), x.view(), places, cache);
  paged_attention(rig.exec, x.view(), places, cache, {.num_heads = 1}, y.view().columns(0, 32));
  EXPECT_EQ(num_allocations, before);
}

}  // namespace
}  // namespace expertmesh
