// Which bytes the workers have loaded for which expert. Whoever loads one that somebody has loaded before has the same
// bytes, or one of the two has a bad disk or memory: what this process reads decides.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"
#include "common/protocol/control_messages.h"

namespace expertmesh {

class ChecksumBook {
 public:
  // read_all: this process reads every expert now, on all cores. Both must outlive the book.
  ChecksumBook(ExpertModelSpec const& model, WeightSource const& source, bool read_all);

  // What is wrong with what a worker says it has loaded; empty: nothing. May read an expert.
  std::string enter(control::Loaded const& loaded);

 private:
  [[nodiscard]] std::uint64_t own_checksum(std::size_t layer_index, std::uint32_t expert) const;

  ExpertModelSpec const& model_;
  WeightSource const& source_;
  std::vector<std::vector<std::uint64_t>> known_;  // [layers][E]; 0: not yet
};

}  // namespace expertmesh
