// Experts of one model that several stores of this process hold together: each is loaded once, and goes with the last
// store that holds it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "common/kernels/grouped_ffn.h"

namespace expertmesh {

// Any thread. Nobody waits for another's loading: who finds an expert claimed loads others first, and then loads it as
// well if it is still not there; the copy that was entered first is the one that all hold.
class SharedExperts {
 public:
  using Expert = std::shared_ptr<FfnWeights const>;

  struct Found {
    Expert expert;         // null: no store holds it
    bool claimed = false;  // then: whether it is the caller's to load, as nobody else does
  };
  Found find_or_claim(std::size_t layer_index, std::uint32_t expert);
  // What all hold from now on in place of `loaded`.
  Expert enter(std::size_t layer_index, std::uint32_t expert, Expert loaded);
  void give_up(std::size_t layer_index, std::uint32_t expert);  // claimed, and cannot be loaded

 private:
  struct Entry {
    std::weak_ptr<FfnWeights const> expert;
    bool claimed = false;
  };

  std::mutex mutex_;
  std::map<std::pair<std::size_t, std::uint32_t>, Entry> entries_;  // guarded by mutex_; of experts ever held
};

}  // namespace expertmesh
