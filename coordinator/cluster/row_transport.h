// How messages and rows go between the coordinator and its workers, as far as the user has a say.
#pragma once
#include <cstdint>

namespace expertmesh {

enum class MessageTransport : std::uint8_t {
  automatic,  // shm to workers of this host where that can be, else mpi
  shm,        // through shared memory, or not at all
  mpi,
};

enum class RowTransport : std::uint8_t {
  automatic,  // by NCCL where both ends have a GPU and the library
  host,       // with the messages, through the hosts
  nccl,       // by NCCL, or not at all
};

}  // namespace expertmesh
