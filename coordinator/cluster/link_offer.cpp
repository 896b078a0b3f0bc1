#include "coordinator/cluster/link_offer.h"

#include "common/transport/nccl_link.h"

namespace expertmesh {
namespace {

constexpr char const* kConnecting = "host (nccl is not connected yet)";

}  // namespace

bool is_connecting(std::string const& how) {
  return how == kConnecting;
}

LinkOffer offer_link(NcclApi& nccl, std::uint32_t theirs) {
  auto const ours = static_cast<std::uint32_t>(nccl.version());
  if (theirs == 0)
    return {.id = {}, .how = "host (the worker has no NCCL for a GPU of its own, or serves several coordinators)"};
  if (theirs != ours)
    return {.id = {},
            .how = "host (the worker has NCCL " + nccl_version_text(static_cast<int>(theirs)) + ", the coordinator " +
                   nccl_version_text(static_cast<int>(ours)) + ")"};
  try {
    return {.id = make_nccl_id(nccl), .how = kConnecting};
  } catch (NcclError const& error) {
    return {.id = {}, .how = std::string("host (") + error.what() + ")"};
  }
}

}  // namespace expertmesh
