#include "worker/capacity.h"

#include <algorithm>

#include "common/base/available_memory.h"
#include "common/kernels/exec.h"
#include "common/kernels/machine_ceilings.h"

namespace expertmesh {
namespace {

// A device reads more and more, until one pass takes long enough for its clock.
constexpr std::size_t kLeastDeviceBytes = std::size_t{64} << 10;
constexpr std::size_t kMostDeviceBytes = std::size_t{512} << 20;
constexpr double kDevicePassSeconds = 100e-6;
constexpr double kDeviceShare = 0.9;  // of what is free there, for experts; the rest is for rows

double measure(ThreadPool& pool) {
  Exec const exec(best_isa(), pool, {.max_rows = 1, .max_columns = 1});
  return measure_read_bandwidth(exec, kQuickReadBytes, kQuickPasses);
}

double measure(Device& device) {
  std::size_t const most = std::min(kMostDeviceBytes, device.free_bytes() / 4);
  for (std::size_t bytes = kLeastDeviceBytes;; bytes *= 2) {
    double const rate = measure_read_bandwidth(device, bytes, kQuickPasses);
    if (2 * bytes > most || static_cast<double>(bytes) >= kDevicePassSeconds * rate) return rate;
  }
}

}  // namespace

control::Capacity capacity_of(ThreadPool& pool, Device* device, double gigabytes_per_second) {
  bool const measured = gigabytes_per_second <= 0;
  double const rate = !measured ? gigabytes_per_second * 1e9 : device ? measure(*device) : measure(pool);
  std::size_t const memory = device ? static_cast<std::size_t>(kDeviceShare * static_cast<double>(device->free_bytes()))
                                    : available_memory_bytes();
  return {.device = device ? device->name() : "cpu",
          .threads = device ? 1 : static_cast<std::uint32_t>(pool.num_threads()),
          .bytes_per_second = static_cast<std::uint64_t>(std::max(rate, 1.0)),
          .measured = measured,
          .memory_bytes = memory};
}

}  // namespace expertmesh
