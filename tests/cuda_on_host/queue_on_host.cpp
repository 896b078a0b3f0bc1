#include "queue_on_host.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "common/base/check.h"
#include "thread_queue.h"

namespace expertmesh::cuda_on_host {
namespace {

class ThreadQueue final : public QueueOnHost {
 public:
  explicit ThreadQueue(DeviceArena& memory) : memory_(memory), thread_([this] { run(); }) {}
  ~ThreadQueue() override {
    {
      std::lock_guard const lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  ThreadQueue(ThreadQueue const&) = delete;
  ThreadQueue& operator=(ThreadQueue const&) = delete;

  void push(std::function<void()> work) override {
    {
      std::lock_guard const lock(mutex_);
      work_.push_back(std::move(work));
    }
    changed_.notify_all();
  }
  void finish() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return work_.empty(); });
  }
  [[nodiscard]] bool idle() override {
    std::lock_guard const lock(mutex_);
    return work_.empty();
  }
  void read(void* to, void const* device, std::size_t bytes) override {
    EM_CHECK(memory_.is_allocated(device, bytes), bytes << " bytes from " << device);
    DeviceArena::Access const access(memory_);
    std::memcpy(to, device, bytes);
  }
  void write(void* device, void const* from, std::size_t bytes) override {
    EM_CHECK(memory_.is_allocated(device, bytes), bytes << " bytes to " << device);
    DeviceArena::Access const access(memory_);
    std::memcpy(device, from, bytes);
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || !work_.empty(); });
      if (work_.empty()) return;
      std::function<void()> const& work = work_.front();  // stays where it is while others are pushed
      lock.unlock();
      work();
      lock.lock();
      work_.pop_front();
      changed_.notify_all();
    }
  }

  DeviceArena& memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<QueueOnHost> make_thread_queue(DeviceArena& memory) {
  return std::make_unique<ThreadQueue>(memory);
}

}  // namespace expertmesh::cuda_on_host
