// The experts of one placement, ready to serve.
#pragma once
#include <optional>

#include "common/experts/expert_service.h"
#include "common/experts/expert_store.h"
#include "worker/static_step.h"

namespace expertmesh {

struct ServedPlacement {
  // store: what the placement says, shared with the one before where they agree.
  ServedPlacement(ExpertStore loaded, Exec const& exec, ExpertServiceOptions const& options)
      : store(std::move(loaded)), service(store, exec, options) {
    if (options.port) step.emplace(store, exec, options);
  }
  ServedPlacement(ServedPlacement const&) = delete;
  ServedPlacement& operator=(ServedPlacement const&) = delete;

  ExpertStore store;
  ExpertService service;
  std::optional<StaticStep> step{};  // where rows come by a link
};

}  // namespace expertmesh
