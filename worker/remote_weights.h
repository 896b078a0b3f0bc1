// The coordinator's checkpoint as a source of weights, for a worker whose host has none.
#pragma once
#include <memory>
#include <string>

#include "common/checkpoint/weight_source.h"
#include "common/protocol/control_messages.h"

namespace expertmesh {

// address: "HOST:PORT" of its weight port. hello: the worker's own, with the life it was given. Throws NetworkError
// when the connection breaks, ModelError for what the coordinator's checkpoint lacks.
std::unique_ptr<WeightSource> fetch_weights(std::string const& address, std::string const& secret,
                                            control::Hello const& hello);

}  // namespace expertmesh
