// Which layers share a block table.
#include <gtest/gtest.h>

#include <filesystem>

#include "coordinator/model/kv_cache.h"
#include "tests/support/goldens_dir.h"

namespace expertmesh {
namespace {

TEST(KvGroups, LayersOfOneSpanShareATable) {
  ModelSpec spec = read_model_spec(test::goldens_dir() / "models/mixtral-window", {});
  auto& layers = spec.stacks.front().layers;
  std::size_t const one_layer = kv_cache_specs(spec, DType::f32)[0].bytes_per_block / layers.size();
  LayerSpec const layer = layers[0];
  std::vector<AttentionSpan> const spans{{SpanKind::window, 16}, {}, {SpanKind::window, 16}, {SpanKind::chunked, 16},
                                         {SpanKind::window, 32}, {}};
  layers.assign(spans.size(), layer);
  for (std::size_t l = 0; l < spans.size(); ++l) layers[l].attention.span = spans[l];

  auto const groups = kv_cache_specs(spec, DType::f32);
  ASSERT_EQ(groups.size(), 4U);
  auto const expect = [&](std::size_t g, KvCacheKind kind, std::size_t tokens, std::vector<std::uint32_t> const& of) {
    EXPECT_EQ(groups[g].kind, kind) << g;
    EXPECT_EQ(groups[g].span_tokens, tokens) << g;
    EXPECT_EQ(groups[g].layers, of) << g;
    EXPECT_EQ(groups[g].bytes_per_block, of.size() * one_layer) << g;
  };
  expect(0, KvCacheKind::window, 16, {0, 2});
  expect(1, KvCacheKind::full, 0, {1, 5});
  expect(2, KvCacheKind::chunked, 16, {3});
  expect(3, KvCacheKind::window, 32, {4});

  KvCache cache(spec, groups, {2, 3, 4, 5});
  for (std::uint32_t l = 0; l < layers.size(); ++l)
    EXPECT_EQ(cache.layer(l).shape().num_blocks, cache.group_of(l) + 2) << "layer " << l;
}

}  // namespace
}  // namespace expertmesh
