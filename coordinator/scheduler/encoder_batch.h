// The inputs that the encoder works on, whole, as ragged arrays; allocated once from the limits. A step may do a part
// of the work; then the batch stays as it is for the next one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/paged_attention.h"
#include "coordinator/scheduler/sequence.h"

namespace expertmesh {

class EncoderBatch {
 public:
  struct Limits {
    std::size_t max_tokens = 0;     // R of all inputs together
    std::size_t max_sequences = 0;  // B
    std::size_t block_tokens = 0;
  };
  EncoderBatch() = default;
  explicit EncoderBatch(Limits const& limits);
  EncoderBatch(EncoderBatch const&) = delete;  // places() point into it
  EncoderBatch& operator=(EncoderBatch const&) = delete;

  void clear();
  // A sequence that holds the blocks of `table` for all of its input.
  void add(Sequence& sequence, BlockTable const& table);
  void seal();  // after the last add(): makes places()
  // How many of the tokens the next step may take through the encoder, or as much work on all of them.
  void set_budget(std::size_t tokens) { budget_ = tokens; }

  [[nodiscard]] bool empty() const { return sequences_.empty(); }
  [[nodiscard]] bool contains(Sequence const& sequence) const;
  [[nodiscard]] std::uint64_t id() const { return id_; }  // another one after each clear()
  [[nodiscard]] std::size_t budget() const { return budget_; }
  [[nodiscard]] std::size_t num_tokens() const { return ids_.size(); }
  [[nodiscard]] std::span<TokenId const> ids() const { return ids_; }                // [R]
  [[nodiscard]] std::span<Sequence* const> sequences() const { return sequences_; }  // [B]
  [[nodiscard]] std::span<std::uint32_t const> lengths() const { return lengths_; }  // [R] of the token's input
  // Of all [R] tokens. All attend to the whole of their input.
  [[nodiscard]] TokenPlaces const& places() const { return places_; }

 private:
  std::size_t block_tokens_ = 0;
  std::uint64_t id_ = 0;
  std::size_t budget_ = 0;
  std::vector<TokenId> ids_;
  std::vector<std::uint32_t> positions_;
  std::vector<std::uint32_t> lengths_;
  std::vector<std::uint32_t> last_;
  std::vector<std::uint32_t> sequence_of_;
  std::vector<Sequence*> sequences_;
  std::vector<std::uint32_t> blocks_;
  std::vector<std::uint32_t> offsets_;  // [B]
  TokenPlaces places_;
};

}  // namespace expertmesh
