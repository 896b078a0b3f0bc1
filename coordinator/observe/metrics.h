// Every number of /metrics, in the field's names under the prefix expertmesh:. One registry per process, no globals.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/model/stage_times.h"

namespace expertmesh {

// accepted = queued + running + finished + failed + cancelled at every scrape: the owner (the engine thread) changes
// them under one lock with serialise().
class Metrics {
 public:
  // moe_layers: indices of the MoE layers, for the per-layer series.
  explicit Metrics(std::vector<std::uint32_t> const& moe_layers, std::size_t num_experts);

  struct Ledger {
    std::uint64_t accepted = 0, queued = 0, running = 0, finished = 0, failed = 0, cancelled = 0;
  };
  void set_ledger(Ledger const& ledger);
  [[nodiscard]] Ledger ledger() const;

  void count_prompt_tokens(std::size_t count);
  void count_generation_tokens(std::size_t count);
  void observe_step(double seconds, std::size_t tokens);
  void count_stages(StageTimes const& step);
  void count_floors(StageSeconds const& step);  // the least that its stages could have taken; 0: none known
  void observe_queue_time(double seconds);
  void observe_time_to_first_token(double seconds);
  void observe_inter_token(double seconds);
  void observe_request(double seconds);  // from acceptance to the last token, of those that finish
  void count_preemptions(std::size_t count);
  void count_prefixes(std::size_t asked, std::size_t found);  // tokens
  void set_kv_usage(double share);                            // 0..1
  void count_http(int status);
  void count_unknown_field(std::string const& field);  // bounded number of label values
  void count_worker_death();
  void set_workers_serving(std::size_t count);
  // What workers' deaths cost since start.
  struct Recoveries {
    std::uint64_t exchanges = 0;  // that met a death
    std::uint64_t rows = 0;       // asked for again
    double seconds = 0;           // of pause, seen
    double predicted_seconds = 0;
    std::uint64_t own_rows = 0;   // run by the coordinator, in and after them
    std::uint64_t own_loads = 0;  // experts that it loaded
    std::uint64_t quarantined_bytes = 0;
  };
  void set_recoveries(Recoveries const& since_start);  // one thread
  // Steps in the static form of the exchange since start: those that counted, and those run again.
  void set_static_steps(std::uint64_t good, std::uint64_t lost);  // one thread
  void set_split_steps(std::uint64_t since_start);                // in two micro-batches; one thread
  void set_graph_steps(std::uint64_t since_start);                // that were one launch; one thread
  void count_transport_bytes(std::string const& transport, std::size_t sent, std::size_t received);
  // Running sums since start: importance[e] = sum of gate weights, load[e] = number of tokens (Shazeer et al. 2017).
  void set_balance(std::size_t moe_layer_index, std::vector<double> const& importance, std::vector<double> const& load,
                   double importance_cv2, double load_cv2);
  // What the per-layer series say, by MoE layer, ascending.
  struct ExpertBalance {
    std::uint32_t layer = 0;
    std::vector<double> importance, load;  // [E]; E is the largest of all layers
    double importance_cv2 = 0, load_cv2 = 0;
  };
  [[nodiscard]] std::vector<ExpertBalance> balance() const;
  // The numbers without a label for layer or expert that somebody draws: few, for a look every second.
  struct Activity {
    double seconds = 0;  // since start
    Ledger ledger;
    double prompt_tokens = 0, generation_tokens = 0;
    struct Sum {
      std::uint64_t count = 0;
      double seconds = 0;
    };
    Sum steps, time_to_first_token, inter_token;
    StageSeconds stages{}, floors{};
    double kv_usage = 0;
    double preemptions = 0, worker_deaths = 0;
  };
  [[nodiscard]] Activity activity() const;
  // Prometheus text exposition format 0.0.4.
  [[nodiscard]] std::string serialise() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace expertmesh
