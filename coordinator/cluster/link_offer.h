// Whether the rows of a worker can go by NCCL.
#pragma once
#include <cstdint>
#include <string>

namespace expertmesh {

class NcclApi;

struct LinkOffer {
  std::string id{};   // of a new communicator, to be told to the worker; empty: none
  std::string how{};  // one line: what its rows go by until it is connected, and why; empty: by its messages
};
// theirs: control::Hello::nccl of the worker.
LinkOffer offer_link(NcclApi& nccl, std::uint32_t theirs);
// Whether LinkOffer::how is that of a link that is neither connected nor given up yet.
bool is_connecting(std::string const& how);

}  // namespace expertmesh
