// NCCL's functions over a Unix socket, for communicators of two ranks whose devices are emulated (tests/cuda_on_host):
// a stream is a QueueOnHost. It is as strict as a GPU may be: a send is done only when the other end has received it,
// and what has lost its other end hangs until the communicator is aborted. What NCCL would answer with a hang or with
// wrong bytes, sizes that differ, is an error here.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/transport/nccl_api.h"
#include "queue_on_host.h"

namespace {

using expertmesh::NcclConfig;
using expertmesh::NcclResult;
using expertmesh::NcclUniqueId;
using expertmesh::cuda_on_host::QueueOnHost;

constexpr int kVersion = 22899;
constexpr std::size_t kNameBytes = 32;  // of an id: letters

sockaddr_un address_of(NcclUniqueId const& id, socklen_t* length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, id.internal, kNameBytes);  // a name that is no file
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + kNameBytes);
  return address;
}

// Sockets that ids were made with, until rank 0 comes for them.
std::mutex listening_mutex;
std::map<std::string, int> listening;

std::string name_of(NcclUniqueId const& id) {
  return std::string(id.internal, kNameBytes);
}

bool write_all(int socket, void const* bytes, std::size_t count) {
  auto const* at = static_cast<char const*>(bytes);
  while (count > 0) {
    ssize_t const done = ::send(socket, at, count, MSG_NOSIGNAL);
    if (done <= 0) return false;
    at += done;
    count -= static_cast<std::size_t>(done);
  }
  return true;
}
bool read_all(int socket, void* bytes, std::size_t count) {
  auto* at = static_cast<char*>(bytes);
  while (count > 0) {
    ssize_t const done = ::recv(socket, at, count, 0);
    if (done <= 0) return false;
    at += done;
    count -= static_cast<std::size_t>(done);
  }
  return true;
}

struct Transfer {
  bool sends = false;
  void* memory = nullptr;
  std::size_t bytes = 0;
};

// One end, shared with the work that is in queues.
class End {
 public:
  ~End() {
    if (socket_ >= 0) close(socket_);
    if (listener_ >= 0) close(listener_);
  }

  void begin(NcclUniqueId const& id, int rank) {
    if (rank == 0) {
      std::lock_guard const lock(listening_mutex);
      auto const found = listening.find(name_of(id));
      if (found == listening.end()) return fail(NcclResult::invalid_usage);
      listener_ = found->second;
      listening.erase(found);
    } else {
      socket_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    }
    connector_ = std::thread([this, id, rank] { connect(id, rank); });
  }

  [[nodiscard]] NcclResult error() const { return error_.load(); }

  void run(QueueOnHost& queue, std::vector<Transfer> const& transfers) {
    {
      std::unique_lock const lock(mutex_);
      if (ended_) return;
      ++running_;
    }
    if (!move(queue, transfers)) {
      NcclResult success = NcclResult::success;
      error_.compare_exchange_strong(success, NcclResult::remote_error);
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return ended_; });
    }
    std::unique_lock const lock(mutex_);
    --running_;
    changed_.notify_all();
  }

  // Whatever hangs goes on, to nothing.
  void end() {
    std::unique_lock const lock(mutex_);
    ended_ = true;
    if (socket_ >= 0) shutdown(socket_, SHUT_RDWR);
    if (listener_ >= 0) shutdown(listener_, SHUT_RDWR);
    changed_.notify_all();
  }
  void abort() {
    end();
    if (connector_.joinable()) connector_.join();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return running_ == 0 && num_recorded_ == 0; });
  }

  // While it lives, so does a recording in which this end is: as long abort() does not come to its end, as NCCL's.
  std::shared_ptr<void> recorded() {
    std::lock_guard const lock(mutex_);
    ++num_recorded_;
    return {nullptr, [this](void*) {
              std::lock_guard const inner(mutex_);
              --num_recorded_;
              changed_.notify_all();
            }};
  }
  // The library's own thread puts it into a recording: the call is in progress until that has been seen once.
  void begin_call() { in_progress_ = true; }
  bool end_call() { return in_progress_.exchange(false); }
  [[nodiscard]] bool in_progress() const { return in_progress_; }

 private:
  void fail(NcclResult error) { error_ = error; }

  void connect(NcclUniqueId const& id, int rank) {
    if (rank == 0) {
      int const accepted = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      std::unique_lock const lock(mutex_);
      socket_ = accepted;
      if (ended_ && socket_ >= 0) shutdown(socket_, SHUT_RDWR);
      if (socket_ < 0) return fail(NcclResult::system_error);
    } else {
      socklen_t length = 0;
      sockaddr_un const address = address_of(id, &length);
      if (::connect(socket_, reinterpret_cast<sockaddr const*>(&address), length) != 0)
        return fail(NcclResult::system_error);
    }
    char hello = 'n';
    bool const met = write_all(socket_, &hello, 1) && read_all(socket_, &hello, 1);
    fail(met ? NcclResult::success : NcclResult::remote_error);
  }

  // Sends first, so that both ends of a group may send something small.
  bool move(QueueOnHost& queue, std::vector<Transfer> const& transfers) {
    std::vector<char> bytes;
    char done = 'd';
    for (Transfer const& t : transfers) {
      if (!t.sends) continue;
      bytes.resize(t.bytes);
      queue.read(bytes.data(), t.memory, t.bytes);
      std::uint64_t const size = t.bytes;
      if (!write_all(socket_, &size, sizeof size) || !write_all(socket_, bytes.data(), t.bytes)) return false;
    }
    for (Transfer const& t : transfers) {
      if (t.sends) continue;
      std::uint64_t size = 0;
      if (!read_all(socket_, &size, sizeof size)) return false;
      if (size != t.bytes) {
        std::fprintf(stderr, "nccl_on_host: a receive of %zu bytes meets a send of %zu\n", t.bytes,
                     static_cast<std::size_t>(size));
        fail(NcclResult::invalid_usage);
        return false;
      }
      bytes.resize(t.bytes);
      if (!read_all(socket_, bytes.data(), t.bytes)) return false;
      queue.write(t.memory, bytes.data(), t.bytes);
      if (!write_all(socket_, &done, 1)) return false;
    }
    for (Transfer const& t : transfers)
      if (t.sends && !read_all(socket_, &done, 1)) return false;
    return true;
  }

  std::atomic<NcclResult> error_ = NcclResult::in_progress;
  std::atomic<bool> in_progress_ = false;
  std::thread connector_;
  int listener_ = -1;
  int socket_ = -1;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::size_t running_ = 0;
  std::size_t num_recorded_ = 0;
};

}  // namespace

namespace expertmesh {
struct NcclComm {
  std::shared_ptr<End> end = std::make_shared<End>();
};
}  // namespace expertmesh

namespace {
using expertmesh::NcclComm;

struct Group {
  std::size_t depth = 0;
  std::shared_ptr<End> end;
  QueueOnHost* queue = nullptr;
  std::vector<Transfer> transfers;
};
thread_local Group group;

NcclResult push(NcclComm* comm, void* queue, Transfer const& transfer) {
  if (comm->end->error() != NcclResult::success || comm->end->in_progress()) return NcclResult::invalid_usage;
  if (group.depth > 0) {
    group.end = comm->end;
    group.queue = static_cast<QueueOnHost*>(queue);
    group.transfers.push_back(transfer);
    return NcclResult::success;
  }
  auto* const on = static_cast<QueueOnHost*>(queue);
  bool const records = on->is_recording();
  on->push([on, end = comm->end, transfer, recorded = records ? comm->end->recorded() : nullptr] {
    end->run(*on, {transfer});
  });
  if (!records) return NcclResult::success;
  comm->end->begin_call();
  return NcclResult::in_progress;
}
}  // namespace

extern "C" {

NcclResult ncclGetVersion(int* version) {
  char const* const wanted = std::getenv("EM_NCCL_ON_HOST_VERSION");
  *version = wanted ? std::atoi(wanted) : kVersion;
  return NcclResult::success;
}

NcclResult ncclGetUniqueId(NcclUniqueId* id) {
  std::random_device random;
  *id = {};
  for (std::size_t i = 0; i < kNameBytes; ++i) id->internal[i] = static_cast<char>('a' + random() % 26);
  int const listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t length = 0;
  sockaddr_un const address = address_of(*id, &length);
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr const*>(&address), length) != 0 ||
      listen(listener, 1) != 0)
    return NcclResult::system_error;
  std::lock_guard const lock(listening_mutex);
  listening[name_of(*id)] = listener;
  return NcclResult::success;
}

NcclResult ncclCommInitRankConfig(NcclComm** comm, int num_ranks, NcclUniqueId id, int rank, NcclConfig* config) {
  *comm = nullptr;
  if (num_ranks != 2 || rank < 0 || rank > 1 || config->magic != NcclConfig().magic || config->blocking != 0)
    return NcclResult::invalid_argument;
  *comm = new NcclComm;
  (*comm)->end->begin(id, rank);
  return NcclResult::in_progress;
}

NcclResult ncclCommGetAsyncError(NcclComm* comm, NcclResult* error) {
  *error = comm->end->end_call() ? NcclResult::in_progress : comm->end->error();
  return NcclResult::success;
}

// Memory from elsewhere is seen to here as well: what is registered is that of an emulated device.
NcclResult ncclCommRegister(NcclComm* comm, void* bytes, std::size_t count, void** handle) {
  if (comm->end->error() != NcclResult::success || bytes == nullptr || count == 0) return NcclResult::invalid_argument;
  *handle = bytes;
  return NcclResult::success;
}

NcclResult ncclSend(void const* bytes, std::size_t count, int /*type*/, int /*peer*/, NcclComm* comm, void* queue) {
  return push(comm, queue, {.sends = true, .memory = const_cast<void*>(bytes), .bytes = count});
}

NcclResult ncclRecv(void* bytes, std::size_t count, int /*type*/, int /*peer*/, NcclComm* comm, void* queue) {
  return push(comm, queue, {.sends = false, .memory = bytes, .bytes = count});
}

NcclResult ncclGroupStart() {
  ++group.depth;
  return NcclResult::success;
}

NcclResult ncclGroupEnd() {
  if (group.depth == 0) return NcclResult::invalid_usage;
  if (--group.depth > 0 || group.transfers.empty()) return NcclResult::success;
  group.queue->push([end = std::move(group.end), on = group.queue, transfers = std::move(group.transfers)] {
    end->run(*on, transfers);
  });
  group = {};
  return NcclResult::success;
}

NcclResult ncclCommRevoke(NcclComm* comm, int /*flags*/) {
  comm->end->end();
  return NcclResult::success;
}

NcclResult ncclCommAbort(NcclComm* comm) {
  comm->end->abort();
  delete comm;
  return NcclResult::success;
}

char const* ncclGetErrorString(NcclResult result) {
  switch (result) {
    case NcclResult::success:
      return "no error";
    case NcclResult::unhandled_cuda_error:
      return "unhandled cuda error";
    case NcclResult::system_error:
      return "unhandled system error";
    case NcclResult::internal_error:
      return "internal error";
    case NcclResult::invalid_argument:
      return "invalid argument";
    case NcclResult::invalid_usage:
      return "invalid usage";
    case NcclResult::remote_error:
      return "remote process exited or there was a network error";
    case NcclResult::in_progress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}

}  // extern "C"
