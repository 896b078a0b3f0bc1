// The paged KV cache: which layers share a block table, and the bytes behind it.
#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "common/kernels/paged_attention.h"
#include "coordinator/model/model_spec.h"
#include "coordinator/scheduler/kv_cache_spec.h"

namespace expertmesh {

// Bytes that the cache holds of one token for such attention; blocks are full.
std::size_t kv_bytes_per_token(AttentionSpec const& attention, DType dtype);

// Layers of the decoder with the same attention span share one group, hence one block table. Order: first layer first.
// With an encoder the last group holds what its output is to every layer's cross-attention, and the keys and values of
// the encoder layer under way.
std::vector<KvCacheSpec> kv_cache_specs(ModelSpec const& spec, DType dtype);

class KvCache {
 public:
  // blocks[g]: number of blocks of group g. device: that attends; null: this host.
  KvCache(ModelSpec const& spec, std::vector<KvCacheSpec> const& groups, std::vector<std::size_t> const& blocks,
          DeviceMemory* device = nullptr);
  KvLayer& layer(std::size_t index) { return layers_[index]; }
  // Has the system give all its memory now, of this host, spread over the nodes of these threads: see touch_pages().
  // Any thread, while steps run.
  void touch(ThreadPlan const& threads, std::stop_token const& stop);
  [[nodiscard]] std::size_t num_groups() const { return num_groups_; }
  [[nodiscard]] std::size_t group_of(std::size_t layer) const { return group_of_[layer]; }
  // places: [KV groups] of a step. Broken invariant where a token of it has no block.
  void check(std::span<TokenPlaces const> places) const;
  // With an encoder.
  KvLayer& cross(std::size_t layer) { return cross_[layer]; }
  [[nodiscard]] std::size_t cross_group() const { return cross_group_; }
  KvLayer& encoder_layer() { return encoder_.front(); }  // one after the other

 private:
  std::vector<KvLayer> layers_;
  std::size_t num_groups_;
  std::vector<std::size_t> group_of_;
  std::vector<KvLayer> cross_;    // [layers], or empty
  std::vector<KvLayer> encoder_;  // one, or empty
  std::size_t cross_group_ = 0;
};

}  // namespace expertmesh
