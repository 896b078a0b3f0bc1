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

class Queue final : public ThreadQueue {
 public:
  explicit Queue(DeviceArena& memory) : memory_(memory), thread_([this] { run(); }) {}
  ~Queue() override {
    {
      std::lock_guard const lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Queue(Queue const&) = delete;
  Queue& operator=(Queue const&) = delete;

  void record_by(std::function<void(std::function<void()>)> recorder) override { recorder_ = std::move(recorder); }
  [[nodiscard]] bool is_recording() const override { return recorder_ != nullptr; }
  void push(std::function<void()> work) override {
    if (recorder_) return recorder_([this, work = std::move(work)] { push(work); });
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
  std::function<void(std::function<void()>)> recorder_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<ThreadQueue> make_thread_queue(DeviceArena& memory) {
  return std::make_unique<Queue>(memory);
}

}  // namespace expertmesh::cuda_on_host
