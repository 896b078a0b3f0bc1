// MPI as a service of this process: initialised once, spawns worker processes, and ends without MPI_Finalize (which
// waits for ever once any process of the job has died). mpi.h stays out of this header.
#pragma once
#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

// Open MPI's own declaration of what MPI_Comm points to.
struct ompi_communicator_t;

namespace expertmesh {

using MpiComm = ompi_communicator_t*;  // an MPI_Comm

// Calls MPI_Init_thread for MPI_THREAD_MULTIPLE; errors of MPI calls are returned from then on. Once, before anything
// else of this file. The environment comes from launch/mpi_env.sh. Throws MpiError.
void init_mpi();

// Starts one process of `program` on this host and returns the intercommunicator to it. Returns or throws MpiError
// before the deadline, whatever becomes of the process: a spawn that has not ended by then is left to a thread of its
// own for ever (asleep), and a process that still turns up has no one to talk to. If the process died while it was
// inside MPI_Init, Open MPI 4.1 may lose the next spawn as well (MpiError at its deadline); the one after that works.
// give_up, if there is one, is asked now and then: true ends the wait like the deadline. Thread-safe; one spawn at a
// time. Never call it from the step path.
MpiComm spawn_worker(std::filesystem::path const& program, std::vector<std::string> const& arguments,
                     std::chrono::milliseconds deadline, std::function<bool()> const& give_up = nullptr);

// Takes in one process that comes from elsewhere: tells on_port the name that it has to connect to, and returns the
// intercommunicator to it. has_called: whether that process has said, by another way, that its on_called was called; it
// is asked now and then, and until then nothing goes from here to there (see pmix_connect.h). Otherwise as
// spawn_worker, but that a process which dies before that costs nothing.
MpiComm accept_worker(std::function<void(std::string const& port)> const& on_port,
                      std::function<bool()> const& has_called, std::chrono::milliseconds deadline,
                      std::function<bool()> const& give_up);
// The other end of it. on_called: may be called after this has returned, if it was given up. Returns when it is there;
// throws MpiError, of code ETIMEDOUT if it takes too long or when give_up, which is asked now and then, says so: Open
// MPI 4.1 makes no other connection in this process from then on.
MpiComm connect_to_port(std::string const& port, std::function<void()> on_called, std::function<bool()> const& give_up);

// In a spawned process: the intercommunicator to the process that spawned it. Throws MpiError if nobody did.
MpiComm parent_comm();

// How every process that called init_mpi ends, well or badly: flushes the standard streams and leaves. The Open MPI
// daemon then ends what the process had spawned and removes itself.
[[noreturn]] void exit_without_finalize(int exit_code);

}  // namespace expertmesh
