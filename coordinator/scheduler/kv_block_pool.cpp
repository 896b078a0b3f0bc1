#include "coordinator/scheduler/kv_block_pool.h"

#include "common/base/check.h"

namespace expertmesh {

KvBlockPool::KvBlockPool(std::size_t num_blocks) : references_(num_blocks, 0) {
  free_.reserve(num_blocks);
  for (std::size_t b = num_blocks; b > 0; --b)
    free_.push_back(static_cast<std::uint32_t>(b - 1));  // block 0 is taken first
}

std::uint32_t KvBlockPool::take() {
  EM_CHECK(!free_.empty(), "all " << num_blocks() << " KV blocks are in use");
  std::uint32_t const block = free_.back();
  free_.pop_back();
  references_[block] = 1;
  return block;
}

void KvBlockPool::share(std::uint32_t block) {
  EM_CHECK(references_[block] > 0, "block " << block << " is free");
  ++references_[block];
}

void KvBlockPool::release(std::uint32_t block) {
  EM_CHECK(references_[block] > 0, "block " << block << " is free already");
  if (--references_[block] == 0) free_.push_back(block);
}

void KvBlockPool::check_integrity() const {
  std::vector<bool> listed(num_blocks(), false);
  for (std::uint32_t block : free_) {
    EM_CHECK(!listed[block], "block " << block << " is listed as free twice");
    listed[block] = true;
  }
  for (std::size_t b = 0; b < num_blocks(); ++b)
    EM_CHECK(listed[b] == (references_[b] == 0),
             "block " << b << " has " << references_[b] << " references, listed as free: " << listed[b]);
}

}  // namespace expertmesh
