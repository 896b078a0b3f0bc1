// Prints how a load goes: bytes, GB/s, seconds left. At most a few lines a second, on standard error.
#pragma once
#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>

namespace expertmesh {

class LoadProgressPrinter {
 public:
  // total_bytes may be 0 when it is not known yet: see update().
  LoadProgressPrinter(std::string what, std::size_t total_bytes);
  void add(std::size_t bytes);                                     // thread-safe
  void update(std::size_t loaded_bytes, std::size_t total_bytes);  // thread-safe
  void finish();                                                   // the last line: bytes, seconds, GB/s

 private:
  void print(bool last);
  using Clock = std::chrono::steady_clock;
  std::mutex mutex_;
  std::string const what_;
  std::size_t total_;
  std::size_t loaded_ = 0;
  Clock::time_point const start_ = Clock::now();
  Clock::time_point last_print_ = start_;
};

// "1.23 GB", "456.7 MB"
std::string human_bytes(std::size_t bytes);

}  // namespace expertmesh
