#include "coordinator/scheduler/kv_sizing.h"

#include <algorithm>

#include "common/base/check.h"

namespace expertmesh {

std::vector<std::size_t> kv_blocks_for(std::vector<KvCacheSpec> const& groups, SchedulerLimits const& limits,
                                       std::size_t length) {
  std::vector<std::size_t> blocks;
  for (auto const& group : groups) {
    std::size_t const decoding = group.most_blocks(length, 1);
    std::size_t const in_prompt = group.most_blocks(length, limits.max_num_batched_tokens);
    blocks.push_back(std::max(limits.max_num_seqs * decoding + (in_prompt - decoding),
                              group.most_blocks(limits.max_model_len, limits.max_num_batched_tokens)));
  }
  return blocks;
}

std::size_t kv_bytes(std::vector<KvCacheSpec> const& groups, std::vector<std::size_t> const& blocks) {
  std::size_t bytes = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) bytes += groups[g].bytes_per_block * blocks[g];
  return bytes;
}

std::vector<std::size_t> divide_kv_memory(std::vector<KvCacheSpec> const& groups, SchedulerLimits const& limits,
                                          std::size_t bytes) {
  std::size_t length = 0;  // the greatest found to fit
  std::size_t too_long = limits.max_model_len + 1;
  while (too_long - length > 1) {
    std::size_t const middle = length + (too_long - length) / 2;
    (kv_bytes(groups, kv_blocks_for(groups, limits, middle)) <= bytes ? length : too_long) = middle;
  }
  std::vector<std::size_t> blocks = kv_blocks_for(groups, limits, length);
  EM_CHECK(kv_bytes(groups, blocks) <= bytes, "a KV cache of " << bytes << " bytes is too small for one sequence");

  bool const all_have_spans = std::ranges::all_of(groups, &KvCacheSpec::has_span);
  auto const takes_more = [&](KvCacheSpec const& group) { return all_have_spans || !group.has_span(); };
  std::size_t bytes_per_block = 0;  // of one block in each group that takes more
  for (auto const& group : groups) bytes_per_block += takes_more(group) ? group.bytes_per_block : 0;
  std::size_t const more = (bytes - kv_bytes(groups, blocks)) / bytes_per_block;
  std::vector<std::size_t> const usable = kv_blocks_for(groups, limits, limits.max_model_len);
  for (std::size_t g = 0; g < groups.size(); ++g)
    if (takes_more(groups[g])) blocks[g] = all_have_spans ? std::min(blocks[g] + more, usable[g]) : blocks[g] + more;
  return blocks;
}

}  // namespace expertmesh
