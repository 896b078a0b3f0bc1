// The life of a worker process: say hello, join MPI, load the experts it is given, serve until told to leave; all of it
// for each of its coordinators, which know nothing of each other.
//
// Threads: the first runs the loop of the data plane, for all coordinators (worker_loop.h), with the pool of compute
// threads. Each coordinator has two: one for its control connection, heartbeats above all, which waits for nothing
// (control_client.h), and one that leads through that coordinator's life and may wait for its network, for MPI or for a
// disk (coordinator_session.h). Experts are loaded on further threads. So nothing that one coordinator makes this
// process wait for is ever waited for by the loop, or by what belongs to another.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/protocol/control_messages.h"
#include "common/transport/transport.h"

namespace expertmesh {

struct WorkerOptions {
  std::vector<std::string> coordinators;  // HOST:PORT of each; one, unless it comes by itself
  std::uint32_t worker_id = 0;            // 0: comes by itself, from wherever it is
  std::uint32_t incarnation = 0;
  std::string secret_file;
  std::string model_dir;     // its own copy of the checkpoint; empty: the coordinator's path if it is there, else none
  std::string packed_cache;  // folder for experts as they were packed; empty: none
  std::string device = "cpu";  // or cuda, cuda:N
  std::size_t threads = 0;
  double capacity = 0;                        // gigabytes of weights a second; 0: measured
  std::vector<int> cores;                     // none: any
  bool bind = true;                           // on several NUMA nodes a compute thread keeps to its own
  bool shared_cores = false;                  // with other processes' compute threads
  std::chrono::microseconds longest_wait{0};  // see WorkerLoopOptions
};

// Called at points of that life, where there is something to call: by tests, to end it there.
struct WorkerHooks {
  std::function<void()> started;                   // nothing done yet
  std::function<void()> connected;                 // control connection up, MPI not yet
  std::function<void(control::Assign&)> assigned;  // about to load
  // What the rows go through in place of the transport, which outlives it.
  std::function<std::unique_ptr<Transport>(Transport&)> wrap;
};

// Ends the process, well or badly; throws only before the first connection: FileError, ModelError.
[[noreturn]] void run_worker(WorkerOptions const& options, WorkerHooks const& hooks);

// The program: reads the command line and runs the worker. hooks_for may be empty.
using HooksFor = std::function<WorkerHooks(WorkerOptions const&)>;
int worker_main(int argc, char** argv, HooksFor const& hooks_for);

}  // namespace expertmesh
