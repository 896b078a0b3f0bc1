// The calls of NVIDIA's NCCL that are used, and the library that has them: found at run time, so that programs start
// where there is none. Its ABI is declared here; the tests hold it against nccl.h where there is one.
#pragma once
#include <climits>
#include <cstddef>
#include <memory>
#include <string>

#include "common/base/error.h"

namespace expertmesh {

// A call to NCCL failed. peer: who is at the other end of the communicator.
class NcclError : public OutsideError {
 public:
  using OutsideError::OutsideError;
};

// ---- ncclResult_t, ncclUniqueId, ncclConfig_t, ncclDataType_t, of NCCL 2.28
enum class NcclResult : int {
  success = 0,
  unhandled_cuda_error = 1,
  system_error = 2,
  internal_error = 3,
  invalid_argument = 4,
  invalid_usage = 5,
  remote_error = 6,
  in_progress = 7,
};
struct NcclUniqueId {
  char internal[128];
};
struct NcclComm;  // one end of a communicator
struct NcclConfig {
  static constexpr int kUndefined = INT_MIN;  // the library chooses

  std::size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 22800;
  int blocking = kUndefined;
  int cga_cluster_size = kUndefined;
  int min_ctas = kUndefined;
  int max_ctas = kUndefined;
  char const* net_name = nullptr;
  int split_share = kUndefined;
  int traffic_class = kUndefined;
  char const* comm_name = nullptr;
  int collnet_enable = kUndefined;
  int cta_policy = kUndefined;
  int shrink_share = kUndefined;
  int nvls_ctas = kUndefined;
  int num_channels_per_net_peer = kUndefined;
  int nvlink_centric_sched = kUndefined;
};
constexpr int kNcclBytes = 0;  // ncclInt8

constexpr int kLeastNcclVersion = 22800;
std::string nccl_version_text(int version);  // 22809 is "2.28.9"

// As NCCL's own functions of these names, which its documentation describes. Calls for one communicator come from one
// thread, but for comm_revoke() and comm_abort(). Nothing throws.
class NcclApi {
 public:
  virtual ~NcclApi() = default;
  [[nodiscard]] virtual int version() const = 0;  // 22809; at least kLeastNcclVersion
  virtual NcclResult get_unique_id(NcclUniqueId* id) = 0;
  virtual NcclResult comm_init_rank_config(NcclComm** comm, int num_ranks, NcclUniqueId const& id, int rank,
                                           NcclConfig* config) = 0;
  virtual NcclResult comm_get_async_error(NcclComm* comm, NcclResult* error) = 0;
  // Only where the library has it; else nothing happens. It ends with the communicator.
  virtual NcclResult comm_register(NcclComm* comm, void* bytes, std::size_t count) = 0;
  virtual NcclResult send(void const* bytes, std::size_t count, int peer, NcclComm* comm, void* queue) = 0;
  virtual NcclResult recv(void* bytes, std::size_t count, int peer, NcclComm* comm, void* queue) = 0;
  virtual NcclResult group_start() = 0;
  virtual NcclResult group_end() = 0;
  // Only where the library has it; else nothing happens.
  virtual NcclResult comm_revoke(NcclComm* comm) = 0;
  // The one way in which communicators end here: it asks nothing of the other end, be that alive or dead. It may take
  // long.
  virtual NcclResult comm_abort(NcclComm* comm) = 0;
  [[nodiscard]] virtual std::string error_text(NcclResult result) const = 0;
};

// The library that EXPERTMESH_NCCL names; else libnccl.so.2 where the system's loader finds it, or in a folder
// nvidia/nccl/lib of Python's packages. Throws NcclError that says what was looked for, or which version is too old.
std::shared_ptr<NcclApi> load_nccl();

}  // namespace expertmesh
