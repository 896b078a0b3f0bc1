// The file of --trace: takes events of the threads that write some, and brings them to the file on a thread of its own.
// However the process ends, what has been written can be read: lines of trace_json.h, of all that happened until some
// hundredths of a second before; only the last one may be cut.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

#include "coordinator/observe/trace_lane.h"

namespace expertmesh {

struct TraceOptions {
  std::filesystem::path file;                        // what is there goes
  std::size_t most_bytes = std::size_t{256} << 20;   // of the file; then no more is written, and the log says so
  std::size_t lane_capacity = std::size_t{1} << 15;  // events of a thread that wait for the file
};

class Trace {
 public:
  // Throws ModelError if the file cannot be written.
  explicit Trace(TraceOptions options);
  ~Trace();  // writes what is left, and the end; lanes are not written to any more

  // For one more thread; or for several, one after the other. Lives as long as the trace. Any thread.
  TraceLane& new_lane();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
