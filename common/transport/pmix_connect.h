// Who speaks first when two MPI processes that were started apart connect.
//
// Open MPI 4.1 does it in three steps: both tell the name server where they are and hear where the other is; both tell
// their own daemon (PMIx_Connect); then each asks the other's daemon for addresses. If both daemons call each other at
// the same moment, the one with the smaller name may close both connections and go on listening to neither: it keeps a
// core busy for ever, and if it is the coordinator's, nobody can connect any more. So this program has a PMIx_Connect
// of its own around the library's, in which one of the two waits until the other's daemon has called: the answer then
// goes the same way back, and so does all that follows.
#pragma once
#include <functional>

namespace expertmesh {

// For an MPI_Comm_accept or MPI_Comm_connect of this thread while it lives: `then` runs between the second step and the
// third. False: there is no use in it; the MPI call returns an error.
class AfterPmixConnect {
 public:
  explicit AfterPmixConnect(std::function<bool()> then);
  ~AfterPmixConnect();
  AfterPmixConnect(AfterPmixConnect const&) = delete;
  AfterPmixConnect& operator=(AfterPmixConnect const&) = delete;
};

// In `then`: has this process's daemon ask the other's for something, and waits for the answer.
void call_other_daemon();

}  // namespace expertmesh
