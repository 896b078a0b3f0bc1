// Experts that no worker holds just now, run by this process: loaded from the checkpoint when a row first needs them,
// kept up to a bound. What makes a worker's death a pause and not an error: as long as this process lives, every expert
// has a holder.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"
#include "common/experts/row_groups.h"

namespace expertmesh {

struct OwnExpertsLimits {
  std::size_t max_rows = 1;     // of one run()
  std::size_t cache_bytes = 0;  // of packed experts kept; fewer than a run needs: they are streamed through it
  Device* device = nullptr;     // that runs them; null: this processor
};

class OwnExperts {
 public:
  // model and source must outlive it. exec: its ISA and pool are used, with scratch of its own, not its device.
  OwnExperts(ExpertModelSpec const& model, WeightSource const& source, Exec const& exec, OwnExpertsLimits limits);

  // One row of a layer: an index into ExpertModelSpec::layers is the caller's, the ids are global.
  struct Row {
    std::uint32_t expert = 0;
    std::byte const* in = nullptr;  // [H] of the wire dtype
    std::byte* out = nullptr;       // [H] of the wire dtype
  };
  // Bits as from any worker. Throws what the source throws (ModelError, FileError); nothing is lost then but the rows.
  void run(std::size_t layer_index, std::span<Row const> rows);

  // Since start.
  struct Loads {
    std::size_t experts = 0;
    std::size_t bytes = 0;  // packed
    double seconds = 0;
    std::size_t rows = 0;  // that were run
  };
  [[nodiscard]] Loads const& loads() const { return loads_; }
  [[nodiscard]] std::size_t resident_bytes() const { return resident_bytes_; }

 private:
  struct Kept {
    FfnWeights weights;
    std::size_t bytes = 0;  // 0: not here
    std::uint64_t last_round = 0;
  };

  [[nodiscard]] std::size_t expert_bytes(std::size_t layer_index) const;  // of one, packed
  void load_groups(std::size_t layer_index, std::size_t begin, std::size_t end);
  void make_room(std::size_t bytes);

  ExpertModelSpec const& model_;
  WeightSource const& source_;
  Exec const exec_;
  OwnExpertsLimits const limits_;
  std::vector<std::vector<Kept>> kept_;  // [layers][E]
  RowGroups groups_;                     // numbered by expert of the layer
  std::vector<std::uint32_t> to_load_;   // of one load_groups()
  std::size_t resident_bytes_ = 0;
  std::uint64_t num_rounds_ = 0;
  Loads loads_;
};

}  // namespace expertmesh
