#include "coordinator/observe/trace.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/base/log.h"
#include "coordinator/observe/trace_json.h"

namespace expertmesh {
namespace {

constexpr std::chrono::milliseconds kPause{20};            // between looks for events
constexpr std::size_t kWriteBytes = std::size_t{1} << 18;  // at once
constexpr std::size_t kEndBytes = 256;                     // of the limit, kept for the end

std::int64_t now_ns() {
  return trace_ns(std::chrono::steady_clock::now());
}

std::int64_t unix_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

class Trace::Impl {
 public:
  explicit Impl(TraceOptions options) : options_(std::move(options)), json_(now_ns()) {
    file_ = open(options_.file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file_ < 0 || !write(TraceJson::begin(unix_ns()))) {
      std::string const why = std::strerror(errno);
      if (file_ >= 0) close(file_);
      throw ModelError("--trace " + options_.file.string() + ": cannot be written: " + why);
    }
    thread_ = std::thread([this] { run(); });
  }

  ~Impl() {
    {
      std::lock_guard const lock(mutex_);
      stop_ = true;
    }
    stopped_.notify_one();
    thread_.join();
    std::uint64_t lost = 0;
    for (auto const& lane : lanes_) lost += lane->num_lost();
    if (lost > 0)
      spdlog::warn("--trace {}: {} events came faster than they were written", options_.file.string(), lost);
    close(file_);
  }
  Impl(Impl const&) = delete;
  Impl& operator=(Impl const&) = delete;

  TraceLane& new_lane() {
    std::lock_guard const lock(mutex_);
    TraceLane& lane = *lanes_.emplace_back(std::make_unique<TraceLane>(options_.lane_capacity));
    if (ended_) lane.close();
    return lane;
  }

 private:
  void run() {
    give_way_to_others();
    std::unique_lock lock(mutex_);
    while (!ended_) {
      bool const last = stopped_.wait_for(lock, kPause, [this] { return stop_; });
      drain();
      if (last) end("the server ends");
    }
  }

  void drain() {
    for (auto const& lane : lanes_) {
      lane->drain([this](TraceEvent const& event) {
        if (ended_) return;
        event_.clear();
        json_.add(event, event_);
        if (num_bytes_ + pending_.size() + event_.size() + kEndBytes > options_.most_bytes) {
          spdlog::warn("--trace {}: has reached --trace-limit, no more is written", options_.file.string());
          return end("--trace-limit");
        }
        pending_ += event_;
        if (pending_.size() >= kWriteBytes) flush();
      });
    }
    flush();
  }

  void flush() {
    if (ended_ || pending_.empty()) return;
    bool const good = write(pending_);
    pending_.clear();
    if (!good) give_up();
  }

  void end(char const* why) {
    if (ended_) return;
    pending_ += json_.end(why, now_ns());
    if (!write(pending_)) return give_up();
    close_lanes();
  }

  void give_up() {
    spdlog::error("--trace {}: no more is written: {}", options_.file.string(), std::strerror(errno));
    close_lanes();
  }

  void close_lanes() {
    ended_ = true;
    for (auto const& lane : lanes_) lane->close();
  }

  // False: errno says why.
  bool write(std::string_view text) {
    while (!text.empty()) {
      ssize_t const written = ::write(file_, text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return false;
      num_bytes_ += static_cast<std::size_t>(written);
      text.remove_prefix(static_cast<std::size_t>(written));
    }
    return true;
  }

  TraceOptions const options_;
  TraceJson json_;
  int file_ = -1;
  std::size_t num_bytes_ = 0;  // in the file
  std::string pending_;        // lines that are not in the file yet
  std::string event_;
  std::mutex mutex_;  // guards what follows; nobody who puts an event takes it
  std::condition_variable stopped_;
  bool stop_ = false;
  bool ended_ = false;  // no more is written
  std::vector<std::unique_ptr<TraceLane>> lanes_;
  std::thread thread_;
};

Trace::Trace(TraceOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Trace::~Trace() = default;
TraceLane& Trace::new_lane() {
  return impl_->new_lane();
}

}  // namespace expertmesh
