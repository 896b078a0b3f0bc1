// What a Stream is on the host: the device's memory. Kernels and copies are done when their call returns.
#pragma once
#include <cstddef>
#include <optional>
#include <vector>

#include "cuda_on_host.h"
#include "device_arena.h"

namespace expertmesh::cuda_on_host {

constexpr std::size_t kMostSharedBytes = 227 << 10;       // that a block may have, as an H100's
constexpr std::size_t kMostStaticSharedBytes = 48 << 10;  // of them what is not asked for at the launch

struct Stream {
  std::size_t device_index = 0;
  DeviceArena memory{};
  std::optional<std::vector<KernelCall>> recording{};  // under way
};

}  // namespace expertmesh::cuda_on_host
