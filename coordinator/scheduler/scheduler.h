// Continuous batching, first come first served: which tokens of which sequences run in a step.
//
// A step holds at most max_num_batched_tokens tokens: first one token of every sequence that decodes, then chunks of
// the prompts being computed, then new sequences as long as places and KV blocks last. A sequence starts when there are
// blocks for the tokens it has; it takes further ones as it grows. When none is free, the sequence that arrived last
// gives all of its own back and waits to be computed again from its first token: the same bits, since a token's logits
// depend on its sequence alone.
//
// In a group with a span (a window, or chunks of the sequence) it gives a block back as soon as no later token attends
// to it, and it starts with blocks for the span and for one step's tokens, however long its prompt is: while that is
// being computed, the blocks at its front go to its end. So a prompt never waits for blocks once it has begun.
//
// Where the model has an encoder, a sequence that has started waits for it: schedule() also says whose inputs the
// encoder takes next (encoder_batch()). Several short ones at a time, or one that may take several steps while others
// decode; all of that counts as prompt tokens do. Blocks of the input's keys and values are held from the start to the
// end. A sequence that gave its blocks back goes through the encoder again.
//
// With the prefix cache every whole block that has been computed is kept after its sequence, until its place is needed.
// A sequence that wants it starts behind the longest beginning that is still there in every group (in one with a span:
// as much as its next token attends to), at least one token short of its end. A token's keys and values depend on the
// tokens before it alone, so it is the same bits.
//
// Fairness: none overtakes an earlier one, and the earliest is never preempted, so each ends after at most the work of
// those before it.
#pragma once
#include <cstddef>
#include <deque>
#include <limits>
#include <optional>
#include <vector>

#include "coordinator/scheduler/encoder_batch.h"
#include "coordinator/scheduler/kv_block_pool.h"
#include "coordinator/scheduler/kv_cache_spec.h"
#include "coordinator/scheduler/prefix_cache.h"
#include "coordinator/scheduler/step_batch.h"

namespace expertmesh {

struct SchedulerLimits {
  std::size_t max_num_seqs = 0;            // B
  std::size_t max_num_batched_tokens = 0;  // T, at least B
  std::size_t max_model_len = 0;           // tokens of one sequence; of its input, too, where there is an encoder
  std::size_t num_expert_counts = 0;       // that the model keeps of a sequence
  bool prefix_cache = false;               // not with an encoder, nor with expert counts
};

class Scheduler {
 public:
  // blocks[g]: KV blocks of group g. The groups have one block size.
  Scheduler(SchedulerLimits const& limits, std::vector<KvCacheSpec> const& groups,
            std::vector<std::size_t> const& blocks);

  // Whether a sequence of this length can run when it has the cache to itself, with no step cut short. Any thread.
  [[nodiscard]] bool fits_ever(std::size_t max_length) const;
  [[nodiscard]] SchedulerLimits const& limits() const { return limits_; }

  // The sequence must outlive its stay; fits_ever(max_length). Each arrives after the ones before.
  void submit(Sequence& sequence);
  // Takes a sequence out, waiting or running, and frees its blocks. It must be here. At any time: the batch of a step
  // that is under way forgets it.
  void remove(Sequence& sequence);

  // The next step's batch; empty if nothing is to be done. Valid until the next call. Does not allocate. A step that
  // is given up needs no complete_step(): the next batch has its tokens again. max_prefill_tokens (at least 1): of
  // prompt chunks, in a step in which others decode.
  StepBatch const& schedule(std::size_t max_prefill_tokens = std::numeric_limits<std::size_t>::max());
  // The encoder's work that goes with the last schedule(); empty if there is none.
  [[nodiscard]] EncoderBatch const& encoder_batch() const { return encoder_batch_; }
  // All of it has been done.
  void complete_encoding();
  // The batch has run: its tokens are in the cache. The caller appends sampled tokens and removes what has ended.
  void complete_step();

  [[nodiscard]] std::size_t num_waiting() const { return waiting_.size() + preempted_.size(); }
  [[nodiscard]] std::size_t num_running() const { return running_.size(); }
  [[nodiscard]] bool empty() const { return num_waiting() == 0 && running_.empty(); }
  [[nodiscard]] std::size_t num_preemptions() const { return num_preemptions_; }  // since start
  // Tokens of sequences that wanted the prefix cache, when they first started, and those that were there; since start.
  struct PrefixCounts {
    std::size_t asked = 0;
    std::size_t found = 0;
  };
  [[nodiscard]] PrefixCounts prefix_counts() const { return prefix_counts_; }
  [[nodiscard]] double kv_usage() const;  // share of blocks in use, 0…1, of the fullest group
  // Aborts unless blocks in use are exactly those of running sequences, and none of these is out of reach.
  void check_integrity() const;

 private:
  struct Group {
    KvCacheSpec spec;
    KvBlockPool pool;
  };
  [[nodiscard]] std::size_t blocks_for(std::size_t tokens) const;
  [[nodiscard]] std::size_t most_blocks(Group const& group, std::size_t tokens) const;
  [[nodiscard]] std::size_t tokens_in(std::size_t group, Sequence const& sequence) const;
  [[nodiscard]] std::size_t num_missing(std::size_t group, Sequence const& sequence) const;
  [[nodiscard]] std::size_t num_growing(std::size_t group) const;
  [[nodiscard]] bool has_room(Sequence const& sequence) const;
  [[nodiscard]] bool may_start(Sequence const& sequence) const;
  void grow(Sequence& sequence);
  [[nodiscard]] std::size_t find_prefix(Sequence const& sequence);
  void attach_prefix(Sequence& sequence);
  void remember(Sequence& sequence);
  void free_out_of_reach(Sequence& sequence);
  void free_blocks(Sequence& sequence);
  bool make_room(std::size_t running_index);
  void preempt_last();
  [[nodiscard]] Sequence* next_to_admit() const;
  bool admit_next();
  void fill_encoder_batch(std::size_t budget);
  void drop_from_encoder(Sequence& sequence);

  SchedulerLimits limits_;
  std::size_t block_tokens_;
  std::vector<Group> groups_;  // [KV groups]
  // Every running sequence arrived before every preempted one, and that before every waiting one.
  std::vector<Sequence*> running_;    // in order of arrival
  std::vector<Sequence*> preempted_;  // the earliest last
  std::deque<Sequence*> waiting_;     // in order of arrival, never run
  std::size_t num_preemptions_ = 0;
  std::optional<std::size_t> cross_group_;  // with an encoder
  std::optional<PrefixCache> prefix_cache_;
  std::vector<PrefixCache::Entry> found_;    // [blocks] of find_prefix
  std::vector<std::uint32_t> known_blocks_;  // [KV groups] of remember
  PrefixCounts prefix_counts_;
  StepBatch batch_;
  EncoderBatch encoder_batch_;
};

}  // namespace expertmesh
