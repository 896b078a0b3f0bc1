// Which coordinator a request goes to: the one with the least to do, unless another has the beginning of its prompt in
// its prefix cache and not much more to do. Pure: no I/O, no threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace expertmesh {

struct BalancerOptions {
  std::size_t num_backends = 0;
  std::size_t margin_tokens = 4096;  // that a backend which knows the prompt may be behind the least busy one
  std::size_t max_prefixes = 65536;  // that are remembered, the least recently used are forgotten
};

// What the choice goes by. Tokens are estimates; what is kept of them is how long a coordinator will be busy.
struct PromptSummary {
  std::size_t tokens = 0;                 // of the prompt and of the answer
  std::vector<std::uint64_t> prefixes{};  // hashes of the prompt's first block, of its first two, …
};

class Balancer {
 public:
  explicit Balancer(BalancerOptions options);

  struct Choice {
    std::size_t backend = 0;
    std::size_t known_blocks = 0;  // of the prompt's beginning, that this backend had before
  };
  // Among the eligible [num_backends]; none: there is none. The request's tokens are outstanding from now on. Of
  // several with as little to do it is the one that was chosen longest ago.
  std::optional<Choice> choose(PromptSummary const& prompt, std::vector<bool> const& eligible);
  void finish(std::size_t backend, std::size_t tokens);  // of an earlier choice
  void forget(std::size_t backend);                      // its prefixes: it has started anew

  [[nodiscard]] std::size_t outstanding_tokens(std::size_t backend) const { return loads_.at(backend).tokens; }
  [[nodiscard]] std::size_t num_prefixes() const { return recent_.size(); }

 private:
  struct Load {
    std::size_t tokens = 0;
    std::uint64_t last_chosen = 0;  // number of the choice
  };
  struct Prefix {
    std::uint64_t hash = 0;
    std::size_t backend = 0;
  };
  [[nodiscard]] std::optional<Choice> longest_known(PromptSummary const& prompt, std::vector<bool> const& eligible,
                                                    std::size_t most_tokens) const;
  void remember(PromptSummary const& prompt, std::size_t backend);

  BalancerOptions options_;
  std::vector<Load> loads_;  // [num_backends]
  std::uint64_t num_choices_ = 0;
  std::list<Prefix> recent_;  // the most recently used first
  std::unordered_map<std::uint64_t, std::list<Prefix>::iterator> places_;
};

}  // namespace expertmesh
