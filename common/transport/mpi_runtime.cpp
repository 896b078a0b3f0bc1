#include "common/transport/mpi_runtime.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "common/base/error.h"
#include "common/transport/mpi_check.h"
#include "common/transport/pmix_connect.h"

namespace expertmesh {

namespace {

constexpr auto kLookInterval = std::chrono::milliseconds(20);  // between questions to the caller
// The process that has told the port waits less long, and says so.
constexpr auto kConnectTime = std::chrono::seconds(30);

// A call that may never return, and its result: shared by the caller and the disposable thread, whichever ends last.
struct SlowCall {
  std::function<int(MPI_Comm*)> call;  // -> MPI code

  std::mutex mutex;
  std::condition_variable ended;
  std::optional<int> code;  // set when the call has returned
  MPI_Comm comm = MPI_COMM_NULL;

  void run() {
    MPI_Comm made = MPI_COMM_NULL;
    int call_code = call(&made);
    if (call_code == MPI_SUCCESS) call_code = MPI_Comm_set_errhandler(made, MPI_ERRORS_RETURN);
    std::lock_guard const lock(mutex);
    code = call_code;
    comm = made;
    ended.notify_one();
  }
};

// Where a thread waits until another lets it go on, or says that there is no use.
class Gate {
 public:
  void open(bool go_on) {
    std::lock_guard const lock(mutex_);
    if (!go_on_) go_on_ = go_on;
    changed_.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return go_on_.has_value(); });
    return *go_on_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<bool> go_on_;
};

// name: of the MPI call; hung: why it may not have returned. give_up: asked now and then, as long as it waits.
MpiComm run_with_deadline(std::function<int(MPI_Comm*)> call, std::chrono::milliseconds deadline,
                          std::function<bool()> const& give_up, std::string const& name, std::string const& hung,
                          std::string const& peer) {
  auto const give_up_at = std::chrono::steady_clock::now() + deadline;
  auto const slow = std::make_shared<SlowCall>();
  slow->call = std::move(call);
  // These calls are collective over MPI_COMM_SELF: they must not overlap as long as anybody waits for them.
  static std::timed_mutex one_at_a_time;
  std::unique_lock const turn(one_at_a_time, give_up_at);
  std::unique_lock lock(slow->mutex);
  if (turn) std::thread([slow] { slow->run(); }).detach();
  bool abandoned = false;
  while (turn && !slow->code && !abandoned && std::chrono::steady_clock::now() < give_up_at) {
    slow->ended.wait_until(lock, std::min(give_up_at, std::chrono::steady_clock::now() + kLookInterval));
    abandoned = give_up && give_up();
  }
  if (!slow->code) {
    throw MpiError(name, ETIMEDOUT,
                   abandoned ? "the process died, or hung, " + hung
                             : "the process did not reach MPI within " + std::to_string(deadline.count()) +
                                   " ms (it died, or hangs, " + hung + ")",
                   peer);
  }
  mpi_check(*slow->code, name.c_str(), peer);
  return slow->comm;
}

// Open MPI 4.1 never returns from the spawn of a program that cannot be started.
void check_program(std::filesystem::path const& program) {
  auto const refuse = [&](int code) {
    throw MpiError("MPI_Comm_spawn", code, "cannot run the program: " + std::generic_category().message(code),
                   program.string());
  };
  std::error_code error;
  auto const status = std::filesystem::status(program, error);
  if (error) refuse(error.value());
  if (!std::filesystem::is_regular_file(status)) refuse(ENOENT);
  if (::access(program.c_str(), X_OK) != 0) refuse(errno);
}

}  // namespace

void init_mpi() {
  int provided = MPI_THREAD_SINGLE;
  mpi_check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  if (provided != MPI_THREAD_MULTIPLE) {
    throw MpiError("MPI_Init_thread", provided, "this MPI does not serve several threads (MPI_THREAD_MULTIPLE)", "");
  }
  mpi_check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  mpi_check(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

MpiComm spawn_worker(std::filesystem::path const& program, std::vector<std::string> const& arguments,
                     std::chrono::milliseconds deadline, std::function<bool()> const& give_up) {
  check_program(program);
  std::string const path = std::filesystem::absolute(program).string();
  auto const spawn = [path, words = std::vector<std::string>(arguments)](MPI_Comm* spawned) mutable {
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    int process_code = MPI_SUCCESS;
    int const code =
        MPI_Comm_spawn(path.c_str(), argv.data(), 1, MPI_INFO_NULL, 0, MPI_COMM_SELF, spawned, &process_code);
    return code == MPI_SUCCESS ? process_code : code;
  };
  return run_with_deadline(spawn, deadline, give_up, "MPI_Comm_spawn", "before or inside MPI_Init", path);
}

MpiComm accept_worker(std::function<void(std::string const& port)> const& on_port,
                      std::function<bool()> const& has_called, std::chrono::milliseconds deadline,
                      std::function<bool()> const& give_up) {
  std::array<char, MPI_MAX_PORT_NAME> port{};
  mpi_check(MPI_Open_port(MPI_INFO_NULL, port.data()), "MPI_Open_port");
  std::string const name = port.data();
  on_port(name);
  auto const gate = std::make_shared<Gate>();
  auto const accept = [name, gate](MPI_Comm* accepted) {
    AfterPmixConnect const order([&] { return gate->wait(); });
    return MPI_Comm_accept(name.c_str(), MPI_INFO_NULL, 0, MPI_COMM_SELF, accepted);
  };
  auto const look = [&] {
    if (has_called()) gate->open(true);
    return give_up && give_up();
  };
  try {
    return run_with_deadline(accept, deadline, look, "MPI_Comm_accept", "before MPI_Comm_connect", "");
  } catch (MpiError const&) {
    gate->open(false);
    throw;
  }
}

MpiComm connect_to_port(std::string const& port, std::function<void()> on_called,
                        std::function<bool()> const& give_up) {
  auto const connect = [port, on_called = std::move(on_called)](MPI_Comm* made) {
    AfterPmixConnect const order([&] {
      call_other_daemon();
      on_called();
      return true;
    });
    return MPI_Comm_connect(port.c_str(), MPI_INFO_NULL, 0, MPI_COMM_SELF, made);
  };
  return run_with_deadline(connect, kConnectTime, give_up, "MPI_Comm_connect", "inside MPI_Comm_connect", port);
}

MpiComm parent_comm() {
  MPI_Comm parent = MPI_COMM_NULL;
  mpi_check(MPI_Comm_get_parent(&parent), "MPI_Comm_get_parent");
  if (parent == MPI_COMM_NULL) {
    throw MpiError("MPI_Comm_get_parent", MPI_ERR_COMM, "this process was not spawned by a coordinator", "");
  }
  mpi_check(MPI_Comm_set_errhandler(parent, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler", "parent");
  return parent;
}

void exit_without_finalize(int exit_code) {
  std::fflush(nullptr);
  ::_exit(exit_code);
}

}  // namespace expertmesh
