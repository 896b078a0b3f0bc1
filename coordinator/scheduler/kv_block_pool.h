// The blocks of one KV group: a fixed number, handed out one by one, counted by reference.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace expertmesh {

class KvBlockPool {
 public:
  explicit KvBlockPool(std::size_t num_blocks);
  [[nodiscard]] std::size_t num_blocks() const { return references_.size(); }
  [[nodiscard]] std::size_t num_free() const { return free_.size(); }
  [[nodiscard]] std::size_t num_used() const { return num_blocks() - num_free(); }

  std::uint32_t take();               // a free block, with one reference; one must be free
  void share(std::uint32_t block);    // one more reference
  void release(std::uint32_t block);  // one less; the last one frees it

  // Aborts unless every block is either free or referenced, and free ones are listed once.
  void check_integrity() const;

 private:
  std::vector<std::uint32_t> references_;  // [blocks]
  std::vector<std::uint32_t> free_;        // stack
};

}  // namespace expertmesh
