// How rows go between the coordinator and its workers, as far as the user has a say.
#pragma once
#include <cstdint>

namespace expertmesh {

enum class RowTransport : std::uint8_t {
  automatic,  // by NCCL where both ends have a GPU and the library
  host,       // by MPI, through the hosts
  nccl,       // by NCCL, or not at all
};

}  // namespace expertmesh
