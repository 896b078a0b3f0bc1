// Gives workers of other hosts the tensors of experts that they do not have on a disk of their own, at a bounded rate.
#pragma once
#include <cstddef>
#include <memory>
#include <string>

#include "common/checkpoint/weight_source.h"

namespace expertmesh {

class WeightServer {
 public:
  struct Options {
    std::string address = "127.0.0.1";                    // of the interface to listen on, any free port
    std::string secret;                                   // whoever does not know it gets nothing
    std::size_t bytes_per_second = std::size_t{1} << 30;  // to all together
    std::size_t max_connections = 256;
  };

  // source must outlive it. Threads: one that listens, one a connection. Throws NetworkError.
  WeightServer(WeightSource const& source, Options options);
  ~WeightServer();

  [[nodiscard]] std::string address() const;  // "HOST:PORT"

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
