// The blocks of one KV group: a fixed number, handed out one by one, counted by reference. A block that is kept waits
// with its contents after its last reference is gone, until somebody shares it again or no other block is left.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace expertmesh {

class KvBlockPool {
 public:
  // dropped: hears of each kept block whose contents are given up.
  explicit KvBlockPool(std::size_t num_blocks, std::function<void(std::uint32_t)> dropped = {});
  [[nodiscard]] std::size_t num_blocks() const { return references_.size(); }
  [[nodiscard]] std::size_t num_free() const { return num_blocks() - num_used_; }  // waiting ones too
  [[nodiscard]] std::size_t num_used() const { return num_used_; }                 // with a reference
  [[nodiscard]] std::size_t num_references() const { return num_references_; }     // to all of them together

  // A block without one gets a reference: a free one, or the one that has waited longest. num_free() > 0.
  std::uint32_t take();
  void share(std::uint32_t block);    // one more reference; a kept block may have none
  void release(std::uint32_t block);  // one less; with the last one it is free, or waits
  void keep(std::uint32_t block);     // one with a reference
  [[nodiscard]] bool is_kept(std::uint32_t block) const { return kept_[block]; }

  // Aborts unless every block is either free, waiting or referenced, and listed once.
  void check_integrity() const;

 private:
  // The waiting ones as a ring of indices, the longest first; its head is one past the last block.
  struct Links {
    std::uint32_t before;
    std::uint32_t after;
  };
  [[nodiscard]] std::uint32_t head() const { return static_cast<std::uint32_t>(num_blocks()); }
  void append_waiting(std::uint32_t block);
  void remove_waiting(std::uint32_t block);

  std::vector<std::uint32_t> references_;  // [blocks]
  std::vector<bool> kept_;                 // [blocks]
  std::vector<std::uint32_t> free_;        // stack
  std::vector<Links> waiting_;             // [blocks + 1]
  std::size_t num_used_ = 0;
  std::size_t num_references_ = 0;
  std::function<void(std::uint32_t)> dropped_;
};

}  // namespace expertmesh
