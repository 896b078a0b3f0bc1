#include "common/transport/mpi_runtime.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
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

namespace expertmesh {

namespace {

constexpr auto kLookInterval = std::chrono::milliseconds(20);  // between questions to give_up

// Shared by the caller and the disposable thread, whichever ends last.
struct Spawn {
  std::string program;
  std::vector<std::string> arguments;

  std::mutex mutex;
  std::condition_variable ended;
  std::optional<int> code;  // set when MPI_Comm_spawn has returned
  MPI_Comm comm = MPI_COMM_NULL;

  void run() {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    MPI_Comm spawned = MPI_COMM_NULL;
    int process_code = MPI_SUCCESS;
    int spawn_code =
        MPI_Comm_spawn(program.c_str(), argv.data(), 1, MPI_INFO_NULL, 0, MPI_COMM_SELF, &spawned, &process_code);
    if (spawn_code == MPI_SUCCESS) spawn_code = process_code;
    if (spawn_code == MPI_SUCCESS) spawn_code = MPI_Comm_set_errhandler(spawned, MPI_ERRORS_RETURN);
    std::lock_guard const lock(mutex);
    code = spawn_code;
    comm = spawned;
    ended.notify_one();
  }
};

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
  auto const give_up_at = std::chrono::steady_clock::now() + deadline;
  check_program(program);
  auto const spawn = std::make_shared<Spawn>();
  spawn->program = std::filesystem::absolute(program).string();
  spawn->arguments = arguments;

  // A spawn is collective over MPI_COMM_SELF: the calls must not overlap as long as anybody waits for them.
  static std::timed_mutex one_at_a_time;
  std::unique_lock const turn(one_at_a_time, give_up_at);
  std::unique_lock lock(spawn->mutex);
  if (turn) std::thread([spawn] { spawn->run(); }).detach();
  bool abandoned = false;
  while (turn && !spawn->code && !abandoned && std::chrono::steady_clock::now() < give_up_at) {
    spawn->ended.wait_until(lock, std::min(give_up_at, std::chrono::steady_clock::now() + kLookInterval));
    abandoned = give_up && give_up();
  }
  if (!spawn->code) {
    throw MpiError("MPI_Comm_spawn", ETIMEDOUT,
                   abandoned ? "the process died, or hung, before or inside MPI_Init"
                             : "the process did not reach MPI within " + std::to_string(deadline.count()) +
                                   " ms (it died, or hangs, before or inside MPI_Init)",
                   spawn->program);
  }
  mpi_check(*spawn->code, "MPI_Comm_spawn", spawn->program);
  return spawn->comm;
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
