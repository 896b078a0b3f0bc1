// One exchange of rows in flight: a layer's rows out to the workers, and theirs back. Private to coordinator/experts.
#pragma once
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/moe/routing.h"
#include "common/protocol/dispatch_layout.h"
#include "common/transport/transport.h"

namespace expertmesh {

// What a worker still has to do for an exchange.
struct Leg {
  enum class State : std::uint8_t {
    none,      // no rows for this worker
    waiting,   // sent, not yet answered
    answered,  // rows are here
    lost,      // the worker died owing them
  };
  std::size_t num_rows = 0;
  std::size_t num_entries = 0;
  State state = State::none;
  bool send_done = false;
  bool recv_done = false;
  OpId send{};
  OpId recv{};
  ExchangeId id{};
};

struct ExchangeSlot {
  bool in_use = false;
  std::size_t layer_index = 0;  // into ExpertModelSpec::layers
  RoutingView routing;
  std::coroutine_handle<> waiter;
  std::vector<Leg> legs;                      // [N]
  std::vector<std::byte const*> answer_rows;  // [T*K] where each slot's row lies in the answers
};

// The messages of one slot; registered with the transport, so they live until it is gone.
struct SlotBuffers {
  AlignedBuffer<std::byte> wire_rows;              // [T,H] of the wire dtype
  std::vector<AlignedBuffer<std::byte>> requests;  // [N]
  std::vector<AlignedBuffer<std::byte>> answers;   // [N]
};

}  // namespace expertmesh
