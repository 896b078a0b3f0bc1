// What a worker's coordinators share: its compute threads or device, the loop and its transports, and the experts, each
// of which is held once. They have to agree on what is computed: the first one's word holds.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/experts/expert_store.h"
#include "common/experts/load_figures.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/protocol/control_messages.h"
#include "worker/worker.h"
#include "worker/worker_loop.h"
#include "worker/worker_transport.h"

namespace expertmesh {

class WorkerMachine {
 public:
  // On the thread that will run the loop; MPI has begun. Throws DeviceError. Options, hooks and bell must outlive it.
  WorkerMachine(WorkerOptions const& options, WorkerHooks const& hooks, Doorbell& bell);

  [[nodiscard]] WorkerLoop& loop() { return *loop_; }

  // ---- any thread
  [[nodiscard]] control::Capacity const& capacity() const { return capacity_; }
  [[nodiscard]] Device* device() const { return device_.get(); }

  // The profile, model and checkpoint of an assignment, which hold for all coordinators from the first one on. Throws
  // ModelError that names what is other than the first one's.
  void agree_on(control::Assign const& assign);
  [[nodiscard]] Exec const& exec() const { return *exec_; }  // once they have agreed

  struct Loaded {
    ExpertStore store;
    std::vector<std::vector<std::uint64_t>> checksums;  // see ExpertStore
    LoadFigures figures;
  };
  // On threads of their own: all that this worker may have, or, beside rows that are served, one that gives way to
  // them. Experts that are held here already are shared. Throws what the source or on_bytes throws.
  enum class Pace : std::uint8_t { full, beside_rows };
  Loaded load(HeldExperts const& held, WeightSource const& source, Pace pace, ExpertStore::OnBytes const& on_bytes);
  [[nodiscard]] Pace pace() const;  // of a coordinator's first load

  PeerId new_peer() { return PeerId(next_peer_++); }
  void add_peer(PeerId peer, DataPath&& path);  // the loop's thread

 private:
  WorkerOptions const& options_;
  ThreadPool pool_;
  std::unique_ptr<Device> device_;
  control::Capacity capacity_;
  WorkerTransports transports_;
  std::unique_ptr<Transport> wrapped_;
  std::optional<WorkerLoop> loop_;
  SharedExperts experts_;
  std::atomic<std::uint32_t> next_peer_ = 0;

  std::mutex mutex_;
  std::optional<control::Assign> first_;  // guarded by mutex_
  std::optional<Exec> exec_;
};

}  // namespace expertmesh
