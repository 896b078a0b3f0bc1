// Experts behind a transport: packs rows for the workers that hold the chosen experts, and combines what comes back in
// slot order, so that the result has the same bits wherever the experts run. Rows that a dying worker owes are asked of
// another holder, or run by this process from the checkpoint: the step goes on.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"
#include "common/kernels/exec.h"
#include "common/transport/row_link.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/worker_group.h"
#include "coordinator/experts/experts.h"
#include "coordinator/experts/pace_monitor.h"
#include "coordinator/experts/recovery_book.h"
#include "coordinator/observe/trace_lane.h"

namespace expertmesh {

struct RemoteExpertsLimits {
  std::size_t experts_per_token = 1;  // K
  std::size_t max_tokens = 1;         // T of one dispatch
  bool checksums = false;             // in every message, both ways
  std::size_t own_cache_bytes = 0;    // of experts this process keeps for workers that died; see OwnExpertsLimits
  Device* expert_device = nullptr;    // that the workers' kind of kernels runs on; null: a processor
  bool mixed_numerics = false;        // workers may give other bits than this process for the same rows
  // Rows of a member with a link_id, from device to device past the host; empty: none has one. Until the link is ready
  // its rows go with the messages; so they do if it never is, unless links are required: then the member is lost.
  std::function<std::shared_ptr<RowLink>(WorkerPeer const&)> make_link{};
  bool links_required = false;
  std::size_t static_bytes = 0;  // of a layer, up to which steps go by the static form (static_exchange.h); 0: none
  TraceLane* trace = nullptr;    // of the engine thread: hears of exchanges, but for those in the static form
};

class RemoteExperts final : public Experts {
 public:
  static constexpr std::size_t kNumSlots = 2;  // exchanges in flight at once: two micro-batches

  // exec: of the engine, for rounding, combining, and for experts without a holder, which are loaded from source.
  // Buffers are allocated here, and again when a worker joins.
  RemoteExperts(ExpertModelSpec const& model, WeightSource const& source, RemoteExpertsLimits const& limits,
                Exec const& exec, std::shared_ptr<WorkerGroup> group);
  ~RemoteExperts() override;

  // Of the coordinator's device, for one worker with a link.
  static std::size_t link_buffer_bytes(ExpertModelSpec const& model, std::size_t max_tokens,
                                       std::size_t experts_per_token);

  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) override;
  StepExperts* begin_step(StepShape const& shape) override;
  void progress() override;
  void move() override;
  void pause(PollPause pause) override;
  void wake() override;
  void idle() override;
  struct Traffic {
    std::size_t bytes_sent = 0;
    std::size_t bytes_received = 0;
    std::size_t shm_bytes_sent = 0;  // of them, through shared memory
    std::size_t shm_bytes_received = 0;
    std::size_t link_bytes_sent = 0;  // of rows past the messages; not in the two above
    std::size_t link_bytes_received = 0;
    std::vector<std::size_t> rows_sent;  // per MoE layer: a token counts once per worker it goes to
  };
  [[nodiscard]] Traffic const& traffic() const;  // since start; engine thread
  // In the static form, since start; engine thread.
  struct StaticSteps {
    std::size_t good = 0;
    std::size_t lost = 0;  // which have been run again in the exact form
  };
  [[nodiscard]] StaticSteps static_steps() const;
  // What workers' deaths cost, since start; engine thread.
  [[nodiscard]] Recoveries recoveries() const;
  // Whom the last second or so showed to be slow, or no longer; engine thread, about once a second.
  std::vector<PaceMonitor::Verdict> judge_paces();
  [[nodiscard]] WorkerGroup& group();

 protected:
  bool complete(Exchange exchange) override;
  void wait(Exchange exchange, std::coroutine_handle<> waiter) override;
  void finish(Exchange exchange, MatrixView<float> out) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Experts in worker processes. The cluster must outlive the result.
std::unique_ptr<RemoteExperts> make_cluster_experts(Cluster& cluster, ExpertModelSpec const& model,
                                                    WeightSource const& source, RemoteExpertsLimits const& limits,
                                                    Exec const& exec);

// Experts in this process, on exec's pool: the same exchange over the in-process transport. Loads every expert.
// on_bytes(loaded, total): packed bytes so far, from loading threads, one call at a time.
std::unique_ptr<RemoteExperts> make_local_experts(ExpertModelSpec const& model, WeightSource const& source,
                                                  RemoteExpertsLimits limits, Exec const& exec,
                                                  std::function<void(std::size_t, std::size_t)> const& on_bytes);

}  // namespace expertmesh
