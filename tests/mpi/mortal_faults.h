// Which life of a mortal worker ends how: known to the worker and to the test that counts.
#pragma once
#include <cstdint>
#include <utility>

namespace expertmesh {

enum class ServingFault : int {
  after_request,  // a request is there
  after_compute,  // its answer is ready
  while_sending,  // handed to MPI, not further
  header_only,    // the header without its rows, then death
  after_answer,   // sent
  short_answer,   // a byte is missing
  long_answer,    // a byte too many
  wrong_epoch,
  wrong_magic,
  not_a_number,  // rows of NaN
  stopped,       // SIGSTOP
};
constexpr int kServingFaults = 11;

enum class StartFault : int { before_hello, before_mpi, while_loading };
constexpr int kStartFaults = 3;

// Of an odd incarnation: the fault and the way of dying, where it is a death.
inline std::pair<ServingFault, int> serving_fault(std::uint32_t worker, std::uint32_t incarnation) {
  int const turn = static_cast<int>(incarnation / 2 + worker);
  return {static_cast<ServingFault>(turn % kServingFaults), turn / kServingFaults + turn};
}
// Of an even one.
inline StartFault start_fault(std::uint32_t worker, std::uint32_t incarnation) {
  return static_cast<StartFault>((incarnation / 2 + worker) % kStartFaults);
}

}  // namespace expertmesh
