#include "coordinator/scheduler/kv_block_pool.h"

#include <utility>

#include "common/base/check.h"

namespace expertmesh {

KvBlockPool::KvBlockPool(std::size_t num_blocks, std::function<void(std::uint32_t)> dropped)
    : references_(num_blocks, 0), kept_(num_blocks, false), waiting_(num_blocks + 1), dropped_(std::move(dropped)) {
  free_.reserve(num_blocks);
  for (std::size_t b = num_blocks; b > 0; --b)
    free_.push_back(static_cast<std::uint32_t>(b - 1));  // block 0 is taken first
  waiting_[head()] = {head(), head()};
}

void KvBlockPool::append_waiting(std::uint32_t block) {
  std::uint32_t const last = waiting_[head()].before;
  waiting_[block] = {last, head()};
  waiting_[last].after = waiting_[head()].before = block;
}

void KvBlockPool::remove_waiting(std::uint32_t block) {
  auto const [before, after] = waiting_[block];
  waiting_[before].after = after;
  waiting_[after].before = before;
}

std::uint32_t KvBlockPool::take() {
  EM_CHECK(num_free() > 0, "all " << num_blocks() << " KV blocks are in use");
  std::uint32_t block = 0;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else {
    block = waiting_[head()].after;
    remove_waiting(block);
    kept_[block] = false;
    dropped_(block);
  }
  references_[block] = 1;
  ++num_used_;
  ++num_references_;
  return block;
}

void KvBlockPool::share(std::uint32_t block) {
  EM_CHECK(references_[block] > 0 || kept_[block], "block " << block << " is free");
  if (references_[block]++ == 0) {
    remove_waiting(block);
    ++num_used_;
  }
  ++num_references_;
}

void KvBlockPool::release(std::uint32_t block) {
  EM_CHECK(references_[block] > 0, "block " << block << " is free already");
  --num_references_;
  if (--references_[block] > 0) return;
  --num_used_;
  if (kept_[block])
    append_waiting(block);
  else
    free_.push_back(block);
}

void KvBlockPool::keep(std::uint32_t block) {
  EM_CHECK(references_[block] > 0, "block " << block << " is free");
  EM_CHECK(dropped_ != nullptr, "nobody would hear that block " << block << " is dropped");
  kept_[block] = true;
}

void KvBlockPool::check_integrity() const {
  std::vector<bool> listed(num_blocks(), false);
  for (std::uint32_t block : free_) {
    EM_CHECK(!listed[block] && !kept_[block], "block " << block << " is listed as free twice, or kept");
    listed[block] = true;
  }
  for (std::uint32_t block = waiting_[head()].after; block != head(); block = waiting_[block].after) {
    EM_CHECK(!listed[block] && kept_[block], "block " << block << " waits twice, or is not kept");
    listed[block] = true;
  }
  std::size_t used = 0;
  std::size_t references = 0;
  for (std::size_t b = 0; b < num_blocks(); ++b) {
    EM_CHECK(listed[b] == (references_[b] == 0),
             "block " << b << " has " << references_[b] << " references, listed as free or waiting: " << listed[b]);
    used += references_[b] > 0 ? 1 : 0;
    references += references_[b];
  }
  EM_CHECK(used == num_used_ && references == num_references_,
           used << " blocks with " << references << " references, counted " << num_used_ << ", " << num_references_);
}

}  // namespace expertmesh
