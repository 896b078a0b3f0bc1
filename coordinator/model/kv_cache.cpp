#include "coordinator/model/kv_cache.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {
namespace {
KvLayerShape shape_of(AttentionSpec const& a, DType dtype, std::size_t blocks) {
  if (auto const* latent = std::get_if<LatentProjection>(&a.projection))
    return {.num_blocks = blocks,
            .num_kv_heads = 1,
            .key_dim = latent->kv_rank + latent->rope_dim,
            .value_dim = latent->kv_rank,
            .values = KvValues::in_keys,
            .dtype = dtype};
  auto const& p = std::get<GroupedProjection>(a.projection);
  return {.num_blocks = blocks,
          .num_kv_heads = p.num_kv_heads,
          .key_dim = p.head_dim,
          .value_dim = p.head_dim,
          .dtype = dtype};
}

KvCacheKind kind_of(SpanKind span) {
  switch (span) {
    case SpanKind::full:
      return KvCacheKind::full;
    case SpanKind::window:
      return KvCacheKind::window;
    case SpanKind::chunked:
      return KvCacheKind::chunked;
  }
  EM_CHECK(false, "SpanKind " << static_cast<int>(span));
}
}  // namespace

std::size_t kv_bytes_per_token(AttentionSpec const& attention, DType dtype) {
  return KvLayer::bytes_per_block(shape_of(attention, dtype, 1)) / kKvBlockTokens;
}

std::vector<KvCacheSpec> kv_cache_specs(ModelSpec const& spec, DType dtype) {
  std::vector<KvCacheSpec> groups;
  auto const& layers = spec.decoder().layers;
  for (std::uint32_t l = 0; l < layers.size(); ++l) {
    AttentionSpec const& a = layers[l].attention;
    KvCacheKind const kind = kind_of(a.span.kind);
    auto group = std::ranges::find_if(
        groups, [&](KvCacheSpec const& g) { return g.kind == kind && g.span_tokens == a.span.tokens; });
    if (group == groups.end()) {
      groups.push_back(
          {.kind = kind, .span_tokens = a.span.tokens, .block_tokens = kKvBlockTokens, .dtype = dtype, .layers = {}});
      group = groups.end() - 1;
    }
    group->bytes_per_block += KvLayer::bytes_per_block(shape_of(a, dtype, 1));
    group->layers.push_back(l);
  }
  if (!spec.encoder()) return groups;
  KvCacheSpec cross{.kind = KvCacheKind::cross, .block_tokens = kKvBlockTokens, .dtype = dtype, .layers = {}};
  cross.bytes_per_block = KvLayer::bytes_per_block(shape_of(spec.encoder()->layers.front().attention, dtype, 1));
  for (std::uint32_t l = 0; l < layers.size(); ++l) {
    cross.bytes_per_block += KvLayer::bytes_per_block(shape_of(layers[l].cross.value().attention, dtype, 1));
    cross.layers.push_back(l);
  }
  groups.push_back(std::move(cross));
  return groups;
}

KvCache::KvCache(ModelSpec const& spec, std::vector<KvCacheSpec> const& groups, std::vector<std::size_t> const& blocks,
                 DeviceMemory* device)
    : num_groups_(groups.size()) {
  auto const& layers = spec.decoder().layers;
  group_of_.resize(layers.size());
  for (std::size_t g = 0; g < groups.size(); ++g)
    if (groups[g].kind != KvCacheKind::cross)
      for (std::uint32_t l : groups[g].layers) group_of_[l] = g;
  for (std::size_t l = 0; l < layers.size(); ++l)
    layers_.emplace_back(shape_of(layers[l].attention, groups[group_of_[l]].dtype, blocks[group_of_[l]]), device);
  if (!spec.encoder()) return;
  cross_group_ = groups.size() - 1;
  auto const add = [&](std::vector<KvLayer>& list, AttentionSpec const& a) {
    list.emplace_back(shape_of(a, groups[cross_group_].dtype, blocks[cross_group_]), device);
  };
  for (auto const& layer : layers) add(cross_, layer.cross.value().attention);
  add(encoder_, spec.encoder()->layers.front().attention);
}

void KvCache::touch(ThreadPlan const& threads, std::stop_token const& stop) {
  for (auto* list : {&layers_, &cross_, &encoder_})
    for (KvLayer& layer : *list)
      if (!layer.touch(threads, stop)) return;
}

void KvCache::check(std::span<TokenPlaces const> places) const {
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    bool const is_first =
        std::ranges::find(group_of_, group_of_[l]) - group_of_.begin() == static_cast<std::ptrdiff_t>(l);
    if (is_first) check_blocks(places[group_of_[l]], layers_[l].shape().num_blocks);
  }
}

}  // namespace expertmesh
