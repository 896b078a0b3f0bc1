// The experts of one placement, ready to serve.
#pragma once
#include "common/experts/expert_service.h"
#include "common/experts/expert_store.h"

namespace expertmesh {

struct ServedPlacement {
  // store: what the placement says, shared with the one before where they agree.
  ServedPlacement(ExpertStore loaded, Exec const& exec, ExpertServiceOptions const& options)
      : store(std::move(loaded)), service(store, exec, options) {}
  ServedPlacement(ServedPlacement const&) = delete;
  ServedPlacement& operator=(ServedPlacement const&) = delete;

  ExpertStore store;
  ExpertService service;
};

}  // namespace expertmesh
