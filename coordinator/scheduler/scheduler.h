// Continuous batching, first come first served: which tokens of which sequences run in a step.
//
// A step holds at most max_num_batched_tokens tokens: first one token of every sequence that decodes, then chunks of
// the prompts being computed, then new sequences as long as places and KV blocks last. There is no preemption: a
// sequence starts only when blocks for its full length can be reserved, and none overtakes an earlier one.
#pragma once
#include <cstddef>
#include <deque>
#include <memory>
#include <vector>

#include "coordinator/scheduler/kv_block_pool.h"
#include "coordinator/scheduler/kv_cache_spec.h"
#include "coordinator/scheduler/step_batch.h"

namespace expertmesh {

struct SchedulerLimits {
  std::size_t max_num_seqs = 0;            // B
  std::size_t max_num_batched_tokens = 0;  // T, at least B
  std::size_t max_model_len = 0;           // tokens of one sequence
};

class Scheduler {
 public:
  // blocks[g]: KV blocks of group g. The groups have one block size.
  Scheduler(SchedulerLimits const& limits, std::vector<KvCacheSpec> const& groups,
            std::vector<std::size_t> const& blocks);

  // Whether a sequence of this length can run when it has the cache to itself. Any thread.
  [[nodiscard]] bool fits_ever(std::size_t max_length) const;
  [[nodiscard]] SchedulerLimits const& limits() const { return limits_; }

  // The sequence must outlive its stay; fits_ever(max_length).
  void submit(Sequence& sequence);
  // Takes a sequence out, waiting or running, and frees its blocks. It must be here. At any time: the batch of a step
  // that is under way forgets it.
  void remove(Sequence& sequence);

  // The next step's batch; empty if nothing is to be done. Valid until the next call. Does not allocate. A step that
  // is given up needs no complete_step(): the next batch has its tokens again.
  StepBatch const& schedule();
  // The batch has run: its tokens are in the cache. The caller appends sampled tokens and removes what has ended.
  void complete_step();

  [[nodiscard]] std::size_t num_waiting() const { return waiting_.size(); }
  [[nodiscard]] std::size_t num_running() const { return running_.size(); }
  [[nodiscard]] bool empty() const { return waiting_.empty() && running_.empty(); }
  [[nodiscard]] double kv_usage() const;  // share of blocks in use, 0…1, of the fullest group
  // Aborts unless blocks in use are exactly those of running sequences.
  void check_integrity() const;

 private:
  [[nodiscard]] std::size_t blocks_for(std::size_t tokens) const;
  bool reserve_blocks(Sequence& sequence);

  SchedulerLimits limits_;
  std::size_t block_tokens_;
  std::vector<KvBlockPool> pools_;  // [KV groups]
  std::deque<Sequence*> waiting_;   // in order of arrival
  std::vector<Sequence*> running_;  // in order of admission
  StepBatch batch_;
};

}  // namespace expertmesh
