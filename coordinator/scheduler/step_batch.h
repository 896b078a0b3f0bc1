// The ragged arrays of one step, allocated once from the limits. Written by the scheduler, read by the step runner.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "common/kernels/paged_attention.h"
#include "coordinator/scheduler/sequence.h"

namespace expertmesh {

// A row of the batch whose logits are needed.
struct LogitRow {
  std::uint32_t row = 0;       // in the batch
  std::uint32_t sequence = 0;  // index into StepBatch::sequences()
  std::uint32_t position = 0;  // of the row's token: its logits are about position + 1
  bool sample = false;         // the sequence's next token comes from here
};

class StepBatch {
 public:
  struct Limits {
    std::size_t max_tokens = 0;               // T
    std::size_t max_sequences = 0;            // B
    std::size_t block_tokens = 0;             // of every KV group
    std::size_t max_blocks_per_sequence = 0;  // of the longest sequence's table
    std::vector<std::size_t> most_held = {};  // [KV groups] of these, at one time
    std::optional<std::size_t> cross_group = {};
  };
  explicit StepBatch(Limits const& limits);
  StepBatch(StepBatch const&) = delete;  // places() point into it
  StepBatch& operator=(StepBatch const&) = delete;

  void clear();
  // Appends tokens [sequence.num_computed, + count) of the sequence, which has blocks for them in every group.
  void add(Sequence& sequence, std::size_t count);
  // Leaves a null in its place in sequences(), if it is there; its rows stay.
  void forget(Sequence& sequence);

  [[nodiscard]] std::size_t num_tokens() const { return ids_.size(); }
  [[nodiscard]] std::size_t num_decodes() const { return num_decodes_; }  // sequences that run their only missing token
  [[nodiscard]] std::span<TokenId const> ids() const { return ids_; }     // [T]
  [[nodiscard]] std::span<std::uint32_t const> positions() const { return positions_; }            // [T]
  [[nodiscard]] std::span<std::uint32_t const> prompt_lengths() const { return prompt_lengths_; }  // [T] tokens
  [[nodiscard]] std::span<std::uint32_t const> offsets() const { return offsets_; }  // [B+1] rows of each sequence
  [[nodiscard]] std::span<Sequence* const> sequences() const { return sequences_; }  // [B]
  [[nodiscard]] std::span<std::uint32_t const> sequence_of() const { return sequence_of_; }  // [T] index into them
  [[nodiscard]] std::vector<TokenPlaces> const& places() const { return places_; }           // [KV groups]
  [[nodiscard]] std::span<LogitRow const> logit_rows() const { return logit_rows_; }         // ascending rows
  // Makes places() after the last add().
  void seal();

 private:
  // What TokenPlaces points to. Only blocks that are held are copied, after one kNoKvBlock for each sequence. An offset
  // is where the sequence's first block would be: before the entries copied where that was freed, never before
  // `blocks`, which begins with the length of a whole table for this.
  struct GroupTables {
    std::vector<std::uint32_t> blocks;
    std::vector<std::uint32_t> offsets;  // [B]
  };
  std::size_t block_tokens_;
  std::size_t max_blocks_per_sequence_;
  std::vector<TokenId> ids_;
  std::vector<std::uint32_t> positions_;
  std::vector<std::uint32_t> prompt_lengths_;  // [T] of the token's sequence
  std::vector<std::uint32_t> sequence_of_;     // [T]
  std::vector<std::uint32_t> input_ends_;      // [T] last position of its sequence's input, if there are encoders
  std::optional<std::size_t> cross_group_;
  std::vector<std::uint32_t> offsets_;
  std::vector<Sequence*> sequences_;
  std::vector<GroupTables> tables_;
  std::vector<TokenPlaces> places_;
  std::vector<LogitRow> logit_rows_;
  std::size_t num_decodes_ = 0;
};

}  // namespace expertmesh
