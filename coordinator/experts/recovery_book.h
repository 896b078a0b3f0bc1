// What workers' deaths cost the exchanges that meet them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "coordinator/experts/exchange_slot.h"
#include "coordinator/experts/own_experts.h"

namespace expertmesh {

// Since start.
struct Recoveries {
  std::size_t exchanges = 0;          // that met a death
  std::size_t rows = 0;               // asked for again in them
  double seconds = 0;                 // from noticing the death to the end of the exchange
  double predicted_seconds = 0;       // bytes to load over the load rate seen before, and one exchange
  OwnExperts::Loads own;              // experts and rows of this process, in and after them
  std::size_t quarantined_bytes = 0;  // buffers that dead workers' messages still hold
};

class RecoveryBook {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // A worker that owes the exchange rows is dead.
  void noticed(ExchangeSlot& slot, std::uint32_t worker, Time now);
  // So many rows were asked for again; what this process loaded and ran itself, before and in that.
  void asked_again(ExchangeSlot& slot, std::size_t rows, OwnExperts::Loads const& before, OwnExperts::Loads const& now);
  // The exchange, of this layer of the model, is over.
  void ended(ExchangeSlot& slot, std::uint32_t layer, Time now);

  [[nodiscard]] Recoveries const& sums() const { return sums_; }  // without `own` and what is quarantined

 private:
  double usual_seconds_ = 0;  // of an exchange without a death
  Recoveries sums_;
};

}  // namespace expertmesh
