// What a Stream is on the host: the device's memory. Kernels and copies of the first are done when their call returns,
// but for those that come behind a wait for another stream; those of another when its thread has come to them. So no
// call waits for what another stream waits for, as none does on a GPU.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cuda_on_host.h"
#include "device_arena.h"
#include "thread_queue.h"

namespace expertmesh::cuda_on_host {

constexpr std::size_t kMostSharedBytes = 227 << 10;       // that a block may have, as an H100's
constexpr std::size_t kMostStaticSharedBytes = 48 << 10;  // of them what is not asked for at the launch

struct Stream {
  std::size_t device_index = 0;
  std::shared_ptr<DeviceArena> arena = std::make_shared<DeviceArena>();
  DeviceArena& memory = *arena;
  std::unique_ptr<ThreadQueue> queue{};   // null: the first
  std::unique_ptr<ThreadQueue> behind{};  // of the first: a wait, and what has come behind it
  Stream* first = nullptr;                // of another

  // Of the first: what is asked for when it is launched.
  using Recording = std::vector<std::function<void()>>;
  std::optional<Recording> recording{};  // under way
  std::vector<Stream*> in_recording{};   // others
  bool is_joined = true;                 // of another in a recording: the first waits for all that is in it

  [[nodiscard]] bool runs_at_once() const { return !queue && (!behind || behind->idle()); }
  // At once, or when it is its turn.
  void run(std::function<void()> work) const {
    if (runs_at_once())
      work();
    else
      (queue ? queue : behind)->push(std::move(work));
  }
  void finish() const {
    if (queue) queue->finish();
    if (behind) behind->finish();
  }
};

}  // namespace expertmesh::cuda_on_host
