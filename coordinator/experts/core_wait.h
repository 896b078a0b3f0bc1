// How a coordinator waits for workers whose cores it shares: each thread of its pool on the core of one of them.
// Private to coordinator/experts.
#pragma once
#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/transport/transport.h"
#include "coordinator/cluster/worker_group.h"
#include "coordinator/experts/exchange_slot.h"

namespace expertmesh {

// Engine thread.
class CoreWait {
 public:
  CoreWait(ThreadPool& pool, Transport& transport, WorkerGroup const& group)
      : pool_(pool), transport_(transport), group_(group) {}

  // Whether no thread of the pool would have to wait for two workers while others wait for it.
  [[nodiscard]] bool suits(std::size_t num_workers) const {
    return pool_.num_threads() == 1 || num_workers <= pool_.num_threads();
  }

  // Until each member that owes a leg of these exchanges has sent its answer, or has died. False, at once: nobody owes
  // any, they do not suit, or a leg's request is not out yet, goes by MPI or is of one that has left. No thread of the
  // pool keeps a worker from its core meanwhile, and each is woken there by the worker that has just done with it: that
  // takes 2 microseconds, on an idle core 15.
  bool wait(std::span<std::shared_ptr<Member> const> members, std::span<ExchangeSlot const> exchanges);

  using Time = std::chrono::steady_clock::time_point;
  // When this answer was there: in the last wait(), or now.
  [[nodiscard]] Time answered(Leg const& leg) const;

 private:
  struct Awaited {
    WorkerPeer const* worker;  // while wait() lasts
    PeerId peer;
    bool owes;
    Time seen{};  // its answer
  };
  void wait_on(std::size_t thread);

  ThreadPool& pool_;
  Transport& transport_;
  WorkerGroup const& group_;
  std::vector<Awaited> awaited_;  // the last member first, as the pool's threads have their cores
};

}  // namespace expertmesh
