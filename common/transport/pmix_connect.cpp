#include "common/transport/pmix_connect.h"

#include <dlfcn.h>
#include <pmix.h>

#include <cstdlib>
#include <cstring>
#include <span>
#include <utility>

#include "common/base/check.h"

namespace expertmesh {
namespace {

struct Order {
  std::function<bool()> then;
  std::span<pmix_proc_t const> processes{};  // of both jobs, in PMIx_Connect
};
thread_local Order order;

}  // namespace

AfterPmixConnect::AfterPmixConnect(std::function<bool()> then) {
  EM_CHECK(!order.then, "one connection at a time and thread");
  order.then = std::move(then);
}

AfterPmixConnect::~AfterPmixConnect() {
  order.then = nullptr;
}

void call_other_daemon() {
  char const* const own = std::getenv("PMIX_NAMESPACE");
  for (pmix_proc_t const& process : order.processes) {
    if (own != nullptr && std::strncmp(process.nspace, own, sizeof process.nspace) == 0) continue;
    // What is asked for does not matter: it is not there, and to know that, the daemons have to talk.
    pmix_value_t* value = nullptr;
    if (PMIx_Get(&process, "expertmesh.hello", nullptr, 0, &value) == PMIX_SUCCESS && value != nullptr)
      PMIX_VALUE_RELEASE(value);
  }
}

}  // namespace expertmesh

// In place of the library's, which MPI would call.
extern "C" pmix_status_t PMIx_Connect(pmix_proc_t const processes[], std::size_t num_processes,
                                      pmix_info_t const info[], std::size_t num_info) {
  using Connect = pmix_status_t (*)(pmix_proc_t const*, std::size_t, pmix_info_t const*, std::size_t);
  static auto const connect = reinterpret_cast<Connect>(dlsym(RTLD_NEXT, "PMIx_Connect"));
  EM_CHECK(connect != nullptr, "there is no PMIx_Connect behind this one");
  pmix_status_t const status = connect(processes, num_processes, info, num_info);
  auto& order = expertmesh::order;
  if (status != PMIX_SUCCESS || !order.then) return status;
  order.processes = {processes, num_processes};
  bool const go_on = order.then();
  order.processes = {};
  return go_on ? PMIX_SUCCESS : PMIX_ERR_TIMEOUT;
}
