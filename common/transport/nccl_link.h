// A RowLink by NCCL: a communicator of two ranks with a queue of its own, that never blocks the host.
#pragma once
#include <chrono>
#include <memory>
#include <string>

#include "common/kernels/device.h"
#include "common/transport/nccl_api.h"
#include "common/transport/row_link.h"

namespace expertmesh {

enum class LinkEnd : int { coordinator = 0, worker = 1 };  // the ranks

struct NcclLinkOptions {
  LinkEnd end = LinkEnd::coordinator;
  std::string peer;                            // for errors: "worker 3"
  std::chrono::milliseconds connect_time{0};   // from the making to the first bytes there and back
  std::chrono::milliseconds transfer_time{0};  // without anything being done
};

// Both ends make theirs of the same id. The device must outlive it. Never throws for what NCCL says: the link has
// failed then.
std::unique_ptr<RowLink> make_nccl_link(std::shared_ptr<NcclApi> api, NcclUniqueId const& id, Device& device,
                                        NcclLinkOptions const& options, RowLink::Time now);

// An id as text, for control messages: hexadecimal. Throws NcclError.
std::string make_nccl_id(NcclApi& api);
// None: not such a text.
std::optional<NcclUniqueId> nccl_id_of(std::string const& text);

}  // namespace expertmesh
